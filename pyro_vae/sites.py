"""The parameters of a module as Pyro's param sites, which stay in the module and out of Pyro's global store."""

from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import pyro
from pyro.params.param_store import ParamStoreDict, param_with_module_name
from pyro.poutine.runtime import am_i_wrapped, effectful
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_vae.construction import check_parts
from pyro_vae.errors import warn

_NAMES: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()  # modules whose parameters Pyro has seen


def parameter_sites(module: nn.Module, recurse: bool = True, name: str | None = None) -> None:
    """Show the trainable parameters of a module to Pyro as param sites, without its global store.

    It replaces ``pyro.module``, but the parameters stay in the module: a second module of the same kind cannot receive
    the parameters of the first, and no module is kept alive. Call it in ``model`` and ``guide`` of a program. With
    ``recurse=False`` parameters of submodules are left out. Pyro's optimisers know the parameters by the names that
    ``pyro.module(name, module)`` would give them; the default ``name`` is the type of the module.

    Raises ValueError for what is no module, and if an effect handler replaces the value of a site, as ``poutine.lift``
    does, because the module would still compute with its own parameter.

    >>> from pyro import poutine
    >>> layer = nn.Linear(2, 1)
    >>> len(poutine.trace(lambda: parameter_sites(layer)).get_trace().param_nodes)
    2
    """
    if not am_i_wrapped():
        return
    check_parts(**{name or "module": module})
    _NAMES[module] = name or type(module).__name__
    store = pyro.get_param_store()
    if type(store) is ParamStoreDict:
        store.__class__ = ParamStore
    for site, parameter in module.named_parameters(_prefix(module), recurse):
        if parameter.requires_grad:
            _show(site, parameter)


def _prefix(module: nn.Module) -> str:
    return f"{type(module).__name__}-{id(module)}"


def _show(site: str, parameter: nn.Parameter) -> None:
    value: Any = parameter.detach()
    value.unconstrained = lambda: parameter  # SVI trains the leaf that this returns
    seen = _parameter_site(value, name=site, constraint=constraints.real, event_dim=None)
    if (
        seen is not value and getattr(seen, "_t", None) is not value
    ):  # _t: the tensor that pyro.infer.inspect has wrapped
        raise ValueError(
            f"site {site!r}: an effect handler gave a parameter another value, but its module computes with its own; "
            "for a distribution over weights sample them in the program, or by pyro.nn.PyroSample"
        )


@effectful(type="param")
def _parameter_site(value: Tensor, **kwargs: object) -> Tensor:
    return value


class ParameterStoreWarning(UserWarning):
    """Pyro's parameter store is saved without parameters that modules hold."""


class ParamStore(ParamStoreDict):
    """Pyro's store, extended by the names of parameters that modules hold. It warns that it does not save them."""

    def __getitem__(self, name: str) -> Tensor:
        if name not in self and name.split(".")[0] in map(_prefix, list(_NAMES)):
            raise KeyError(
                f"{name} is a parameter of a module and not in the store, where Pyro's JIT ELBOs look for it; write "
                "pyro_vae.compiling.compiled(Trace_ELBO(), vae.model, vae.guide, x) in place of JitTrace_ELBO()"
            )
        return super().__getitem__(name)

    def param_name(self, p: Tensor) -> str | None:
        """Return the name of a parameter in the store, or of one that a module holds; None if it is unknown."""
        known = super().param_name(p)
        # The shortest name: a module that contains another one names its parameters, too.
        return known if known is not None else min((name for name, kept in _kept() if kept is p), key=len, default=None)

    def save(self, filename: str) -> None:
        """Save the store; warn if modules hold parameters, or raise ValueError if it is empty then."""
        if _NAMES:
            message = (
                f"param store: it does not hold the parameters of {', '.join(sorted(set(_NAMES.values())))}, which are "
                "their modules' own; write torch.save(vae.state_dict(), path), vae.load_state_dict(torch.load(path))"
            )
            if not self:
                raise ValueError(message)
            warn(message, ParameterStoreWarning)
        super().save(filename)


def _kept() -> Iterator[tuple[str, nn.Parameter]]:
    for module, name in list(_NAMES.items()):
        for path, parameter in module.named_parameters():
            yield param_with_module_name(name, path), parameter
