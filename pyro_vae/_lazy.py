"""Modules that are imported when a name of theirs is first used, alone or behind the names of a package (PEP 562)."""

import sys
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from importlib.abc import MetaPathFinder
from typing import Any

EXTRAS = {"matplotlib": "plots"}  # optional packages that whole modules need, and the extra that installs them


class LazyModule:
    """A module that is imported when one of its names is first used; what a command line needs is read without torch.

    >>> math = LazyModule("math")
    >>> math.sqrt(4.0)
    2.0
    """

    def __init__(self, path: str):
        self._path = path

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(self._path), name)

    def __repr__(self) -> str:
        return f"LazyModule({self._path!r})"


def lazy(
    package: str, homes: Mapping[str, str], eager: Iterable[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return the ``__getattr__`` and ``__dir__`` of a package.

    ``homes`` maps each name to the module that holds it, or to the module of that name. ``eager`` lists the names that
    the package imports itself, for ``dir``.

    >>> find, _ = lazy("example", {"VAE": "pyro_vae.vae", "plots": "pyro_vae.plots"})
    >>> find("VAE").__name__, find("plots").__name__
    ('VAE', 'pyro_vae.plots')
    """

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            module = import_module(homes[name])
        except ModuleNotFoundError as error:
            extra = EXTRAS.get(str(error.name).partition(".")[0])
            if extra is None:
                raise
            words = f"{package}.{name} needs {error.name}; install it by pip install 'pyro_vae[{extra}]'"
            raise ModuleNotFoundError(words, name=error.name) from error
        return module if homes[name].rpartition(".")[2] == name else getattr(module, name, module)

    return find, lambda: sorted([*homes, *eager])


class MovedModules(MetaPathFinder):
    """Tells those who import a moved module by its old name, or load an old pickle, where it is now."""

    def __init__(self, package: str, moved: Mapping[str, str]):
        self.package, self.moved = package, moved

    def find_spec(self, fullname: str, path: object, target: object = None) -> None:
        """Raise ModuleNotFoundError for a module that has moved."""
        package, _, name = fullname.rpartition(".")
        if package == self.package and name in self.moved:
            raise ModuleNotFoundError(
                f"No module named {fullname!r}: it is now {self.moved[name]}; import from there, and make objects that "
                "were pickled whole anew",
                name=fullname,
            )

    def register(self) -> None:
        """Be asked after all other finders."""
        sys.meta_path.append(self)
