"""The loss of a program as a module that holds all its parameters."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from pyro_vae.arguments import as_arguments
from pyro_vae.compiling.outside import pyro_settings
from pyro_vae.compiling.private import stored_parameters

STORE = "pyro.get_param_store()"  # its name among the roots


class ProgramLoss(nn.Module):
    """The loss of an ELBO as a module that holds the modules of model and guide.

    ``observe``, if it is given, makes x, or a tuple of all their arguments, from the arguments of a call.

    Attributes:
        owners: the modules of model, guide and ``observe``.
        others: parameters that the loss trains although no module holds them, as those in Pyro's store.
        roots: all objects that the loss refers to, by name.

    >>> import torch
    >>> from pyro.infer import Trace_ELBO
    >>> from pyro_vae.linear_gaussian import LinearGaussian
    >>> program = LinearGaussian(torch.ones(3, 1))
    >>> loss = ProgramLoss(Trace_ELBO(), program.model, program.guide)
    >>> len(list(loss.parameters())) == len(list(program.parameters()))
    True
    """

    def __init__(
        self,
        elbo: Any,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        observe: Callable[..., Any] | None = None,
    ):
        super().__init__()
        self.elbo, self.functions, self.observe = elbo, (model, guide), observe
        self.owners = nn.ModuleList(owners(model, guide, observe))
        self.others = nn.ParameterList()
        self.roots = {"model": model, "guide": guide, "observe": observe, "elbo": elbo, **surroundings()}

    def other(self, leaf: Tensor) -> nn.Parameter:
        """Return the parameter among ``others`` that shares the memory of a leaf; it is added if it is new."""
        for parameter in self.others:
            if parameter.data_ptr() == leaf.data_ptr():
                return parameter
        parameter = leaf if isinstance(leaf, nn.Parameter) else nn.Parameter(leaf.detach())
        self.others.append(parameter)
        return parameter

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the loss, in nats."""
        if self.observe is not None:
            args = as_arguments(self.observe(*args))
        return self.elbo.differentiable_loss(*self.functions, *args, **kwargs)


def surroundings() -> dict[str, Any]:
    """Return what any program may read beside its own objects, by name.

    >>> [*surroundings()]
    ['pyro.get_param_store()', 'pyro.settings']
    """
    return {STORE: stored_parameters(), "pyro.settings": pyro_settings()}


def owners(*functions: Callable | None) -> list[nn.Module]:
    """Return the modules among these functions, and those that own these methods, each once.

    >>> layer = nn.Linear(1, 1)
    >>> owners(layer, layer.forward, print, None)
    [Linear(in_features=1, out_features=1, bias=True)]
    """
    found = [
        function if isinstance(function, nn.Module) else getattr(function, "__self__", None) for function in functions
    ]
    return list(dict.fromkeys(owner for owner in found if isinstance(owner, nn.Module)))
