"""The parameters of a module as Pyro's param sites, which stay the module's own and out of Pyro's global store."""

import warnings
from collections.abc import Iterator
from weakref import WeakKeyDictionary

import pyro
from pyro.params.param_store import ParamStoreDict, param_with_module_name
from pyro.poutine.runtime import am_i_wrapped, effectful
from torch import Tensor, nn
from torch.distributions import constraints

_NAMES: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()  # of the modules whose parameters Pyro was shown


def parameter_sites(module: nn.Module, recurse: bool = True, name: str | None = None) -> None:
    """Shows the trainable parameters of a module to Pyro as param sites, without its global store.

    What ``pyro.module`` is for, except that the parameters stay the module's own: a second module of the same kind
    cannot be handed the first one's, and none is kept alive. Call it in ``model`` and ``guide`` of a program. Without
    ``recurse`` those of its submodules are left out. Pyro's optimisers know the parameters by the names that
    ``pyro.module(name, module)`` would give them; if no ``name`` is given, it is the type of the module.

    Raises ValueError where an effect handler puts another value into a site, as ``poutine.lift`` does: the module would
    compute with its own.

    >>> from pyro import poutine
    >>> layer = nn.Linear(2, 1)
    >>> len(poutine.trace(lambda: parameter_sites(layer)).get_trace().param_nodes)
    2
    """
    if not am_i_wrapped():
        return
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
    value = parameter.detach()
    value.unconstrained = lambda: parameter  # how SVI finds the leaf that it trains
    seen = _parameter_site(value, name=site, constraint=constraints.real, event_dim=None)
    if seen is not value and getattr(seen, "_t", None) is not value:  # _t: what pyro.infer.inspect has wrapped
        raise ValueError(
            f"site {site!r}: an effect handler gave a parameter another value, but its module computes with its own; "
            "for a distribution over weights sample them in the program, or by pyro.nn.PyroSample"
        )


@effectful(type="param")
def _parameter_site(value: Tensor, **kwargs: object) -> Tensor:
    return value


class ParamStore(ParamStoreDict):
    """Pyro's store beside parameters that modules keep: it knows their names, and says that it does not save them."""

    def __getitem__(self, name: str) -> Tensor:
        if name not in self and name.split(".")[0] in map(_prefix, list(_NAMES)):
            raise KeyError(
                f"{name} is a parameter of a module and not in the store, where Pyro's JIT ELBOs look for it; write "
                "pyro_vae.compiling.compiled(Trace_ELBO(), vae.model, vae.guide, x) in place of JitTrace_ELBO()"
            )
        return super().__getitem__(name)

    def param_name(self, p: Tensor) -> str | None:
        known = super().param_name(p)
        # The shortest: a part that is made of another one names that one's parameters, too.
        return known if known is not None else min((name for name, kept in _kept() if kept is p), key=len, default=None)

    def save(self, filename: str) -> None:
        if _NAMES:
            message = (
                f"param store: it does not hold the parameters of {', '.join(sorted(set(_NAMES.values())))}, which are "
                "their modules' own; write torch.save(vae.state_dict(), path), vae.load_state_dict(torch.load(path))"
            )
            if not self:
                raise ValueError(message)
            warnings.warn(message, stacklevel=2)
        super().save(filename)


def _kept() -> Iterator[tuple[str, nn.Parameter]]:
    for module, name in list(_NAMES.items()):
        for path, parameter in module.named_parameters():
            yield param_with_module_name(name, path), parameter
