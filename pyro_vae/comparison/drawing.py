"""Single draws of an estimator's loss and gradient, at fixed parameters and arguments."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import pyro
import torch
from pyro.infer import ELBO
from pyro.poutine.runtime import effectful
from torch import Tensor

from pyro_vae.comparison.results import GROUPS
from pyro_vae.errors import short_errors
from pyro_vae.tracing.leaves import ProgramParameters, tensors


class Drawer:
    """A program at fixed arguments, and the flat vector that takes the gradient of its parameters, the guide's first.

    Args:
        program: model and guide.
        batches: tuples of arguments.
        kwargs: keyword arguments of model and guide.
        parameters: the leaves whose gradient is taken.

    Raises ValueError where the program has no trainable parameter.
    """

    def __init__(
        self,
        program: tuple[Callable, Callable],
        batches: Sequence[tuple],
        kwargs: Mapping[str, Any],
        parameters: ProgramParameters,
    ):
        self.program, self.batches, self.kwargs = program, batches, kwargs
        groups = {group: leaves for group in GROUPS if (leaves := list(getattr(parameters, group).values()))}
        self.leaves = [leaf for leaves in groups.values() for leaf in leaves]
        if not self.leaves:
            raise ValueError(
                "the program has no trainable parameter: its log-probabilities depend on no tensor that requires a "
                "gradient; use pyro.param, or modules whose parameters are not frozen"
            )
        self.others = [tensor for tensor in tensors((batches, kwargs)) if tensor.is_leaf and tensor.requires_grad]
        self.sizes = {group: [leaf.numel() for leaf in leaves] for group, leaves in groups.items()}
        totals = [sum(sizes) for sizes in self.sizes.values()]
        dtype = torch.float64 if any(leaf.dtype == torch.float64 for leaf in self.leaves) else torch.float32
        self.flat = torch.zeros(sum(totals), dtype=dtype, device=self.leaves[0].device)
        self.parts = dict(zip(groups, self.flat.split(totals)))

    def draw(self, name: str, elbo: ELBO, args: tuple, number: int, draws: int) -> tuple[float, float]:
        """Return a loss, in nats, and the seconds that it took with its gradient, which is left in ``flat``.

        The first draw of a batch runs with Pyro's validation as it is set, the others without. Errors name the
        estimator and the number of the draw.
        """
        try:
            with nullcontext() if number == 1 else pyro.validation_enabled(False), short_errors(args, self.kwargs):
                return self._timed(elbo, args)
        except ValueError as error:
            raise ValueError(f"{name}, draw {number} of {draws}: {error}") from error

    def _timed(self, elbo: ELBO, args: tuple) -> tuple[float, float]:
        self._wait()
        start = time.perf_counter()
        differentiable = getattr(elbo, "differentiable_loss", None)
        if differentiable is not None:
            loss, gradients = self._differentiated(differentiable(*self.program, *args, **self.kwargs))
        else:
            loss, gradients = self._backward(elbo, args)
        self._wait()
        seconds = time.perf_counter() - start
        for part, gradient in zip(self.flat.split([leaf.numel() for leaf in self.leaves]), gradients):
            part.zero_() if gradient is None else part.copy_(gradient.reshape(-1))
        return float(loss), seconds

    def _differentiated(self, loss: Tensor) -> tuple[Tensor, Sequence[Tensor | None]]:
        if not getattr(loss, "requires_grad", False):
            raise ValueError("the loss depends on no parameter of the program, so it has no gradient")
        return loss.detach(), torch.autograd.grad(loss, self.leaves, allow_unused=True)

    def _backward(self, elbo: Any, args: tuple) -> tuple[float, Sequence[Tensor | None]]:
        """Return loss and gradients of an ELBO that writes them into the parameters; old gradients are put back."""
        touched = [*self.leaves, *self.others]
        before = [leaf.grad for leaf in touched]
        model, guide = self.program
        try:
            for leaf in touched:
                leaf.grad = None
            loss = elbo.loss_and_grads(_announced(model), guide, *args, **self.kwargs)
            return loss[0] if isinstance(loss, tuple) else loss, [leaf.grad for leaf in self.leaves]
        finally:
            for leaf, gradient in zip(touched, before):
                leaf.grad = gradient

    def _wait(self) -> None:
        if self.flat.is_cuda:
            torch.cuda.synchronize(self.flat.device)


@effectful(type="param")
def _parameter_site(value: Tensor) -> Tensor:
    return value


def _announced(model: Callable) -> Callable:
    """Return the model with a param site, without which Pyro's ``loss_and_grads`` ignores parameters of modules."""

    def announced(*args: Any, **kwargs: Any) -> Any:
        _parameter_site(torch.zeros(()), name="pyro_vae_parameters")
        return model(*args, **kwargs)

    return announced
