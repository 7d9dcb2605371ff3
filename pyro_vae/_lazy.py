"""Names that a package gives without importing the modules that hold them before one is asked for (PEP 562)."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The ``__getattr__`` and ``__dir__`` of a package, from each name to the module that holds it, or that it is.

    >>> find, _ = lazy("example", {"VAE": "pyro_vae.vae", "plots": "pyro_vae.plots"})
    >>> find("VAE").__name__, find("plots").__name__
    ('VAE', 'pyro_vae.plots')
    """

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = import_module(homes[name])
        return module if homes[name].rpartition(".")[2] == name else getattr(module, name, module)

    return find, lambda: sorted(homes)
