"""Single draws of an estimator's loss and gradient, at fixed parameters and arguments."""

import itertools
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import pyro
import torch
from pyro.infer import ELBO
from pyro.poutine.runtime import effectful
from torch import Tensor

from pyro_vae.comparison.replicates import Product, Replicates, whole
from pyro_vae.comparison.results import GROUPS
from pyro_vae.comparison.vectorized import RecordedGradient
from pyro_vae.compiling.untraceable import Untraceable, first_line
from pyro_vae.errors import short_errors
from pyro_vae.tracing.leaves import ProgramParameters, tensors

Engine = Literal["auto", "eager", "vectorized"]
WORTH_DRAWS = 200  # draws of an estimator that make up for recording it, which takes as long as a hundred or more


def checked_engine(engine: Engine) -> Engine:
    """Return the engine; ValueError for a word that is none.

    >>> checked_engine("eager")
    'eager'
    """
    if engine not in get_args(Engine):
        raise ValueError(f'engine: wanted "auto", "eager" or "vectorized", got {engine!r}; leave it out for "auto"')
    return engine


class Block(NamedTuple):
    """Consecutive draws: losses, in nats, and the gradients of each group, in pieces of (draws, some parameters)."""

    losses: Sequence[float]
    gradients: Mapping[str, Sequence[Tensor | Product]]


class Drawer:
    """A program at fixed arguments, and the flat vector that takes the gradient of its parameters, the guide's first.

    Args:
        program: model and guide.
        batches: tuples of arguments.
        kwargs: keyword arguments of model and guide.
        parameters: the leaves whose gradient is taken.
        engine: "eager": each draw runs the program; "vectorized": some draws at once are computed by a recorded graph;
            "auto": so they are where there are enough of them, and the program can be recorded.

    Attributes:
        eager: why the draws of an estimator are eager although that was not asked for, by its name.

    Raises ValueError where the program has no trainable parameter.
    """

    def __init__(
        self,
        program: tuple[Callable, Callable],
        batches: Sequence[tuple],
        kwargs: Mapping[str, Any],
        parameters: ProgramParameters,
        engine: Engine = "eager",
    ):
        self.program, self.batches, self.kwargs, self.engine = program, batches, kwargs, engine
        self.recorded: dict[str, tuple[ELBO, RecordedGradient]] = {}
        self.eager: dict[str, str] = {}
        groups = {group: leaves for group in GROUPS if (leaves := list(getattr(parameters, group).values()))}
        self.leaves = [leaf for leaves in groups.values() for leaf in leaves]
        self.names = [name for group in groups for name in getattr(parameters, group)]
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

    def blocks(self, name: str, elbo: ELBO, args: tuple, draws: int) -> Iterator[Block]:
        """Yield so many draws, in blocks; the first one by itself, eagerly. Blocks share memory with each other."""
        yield self._single(name, elbo, args, 1, draws)
        replicates = self._replicates(name, elbo, args, draws)
        if replicates is None:
            for number in range(2, draws + 1):
                yield self._single(name, elbo, args, number, draws)
            return
        for start in range(1, draws, replicates.together):
            losses, *gradients = replicates(min(replicates.together, draws - start))
            yield Block(whole(losses).tolist(), self._by_group(gradients))

    def _single(self, name: str, elbo: ELBO, args: tuple, number: int, draws: int) -> Block:
        loss, _ = self.draw(name, elbo, args, number, draws)
        return Block([loss], {group: [part[None]] for group, part in self.parts.items()})

    def _by_group(self, gradients: Sequence[Tensor | Product]) -> dict[str, list[Tensor | Product]]:
        """Return the gradients of each group of leaves; those that lie in memory are joined with their neighbours."""
        rest = iter(gradients)
        return {group: _joined([next(rest) for _ in sizes], self.flat.dtype) for group, sizes in self.sizes.items()}

    def _replicates(self, name: str, elbo: ELBO, args: tuple, draws: int) -> Replicates | None:
        """Return what draws some at once; None: draw eagerly."""
        few = self.engine == "auto" and draws * len(self.batches) < WORTH_DRAWS
        if self.engine == "eager" or few or name in self.eager:
            return None
        try:
            return self._recorded(name, elbo).at(args, self.kwargs)
        except Untraceable as error:
            if self.engine != "auto":
                raise Untraceable(f'{name}: {error}; leave engine="vectorized" out') from error
            self.eager[name] = first_line(error)
            logging.getLogger(__name__).info("%s is drawn eagerly: %s", name, self.eager[name])
            return None

    def _recorded(self, name: str, elbo: ELBO) -> RecordedGradient:
        known = self.recorded.get(name)
        if known is None or known[0] is not elbo:
            model, guide = self.program
            roots = {"model": model, "guide": guide, "estimator": elbo}
            gradient = RecordedGradient(partial(self._gradient, elbo), dict(zip(self.names, self.leaves)), roots)
            self.recorded[name] = elbo, gradient
        return self.recorded[name][1]

    def _timed(self, elbo: ELBO, args: tuple) -> tuple[float, float]:
        self._wait()
        start = time.perf_counter()
        loss, gradients = self._gradient(elbo, *args, **self.kwargs)
        self._wait()
        seconds = time.perf_counter() - start
        for part, gradient in zip(self.flat.split([leaf.numel() for leaf in self.leaves]), gradients):
            part.zero_() if gradient is None else part.copy_(gradient.reshape(-1))
        return float(loss), seconds

    def _gradient(self, elbo: ELBO, *args: Any, **kwargs: Any) -> tuple[Any, Sequence[Tensor | None]]:
        differentiable = getattr(elbo, "differentiable_loss", None)
        if differentiable is not None:
            return self._differentiated(differentiable(*self.program, *args, **kwargs))
        return self._backward(elbo, args, kwargs)

    def _differentiated(self, loss: Tensor) -> tuple[Tensor, Sequence[Tensor | None]]:
        if not getattr(loss, "requires_grad", False):
            raise ValueError("the loss depends on no parameter of the program, so it has no gradient")
        return loss.detach(), torch.autograd.grad(loss, self.leaves, allow_unused=True)

    def _backward(self, elbo: Any, args: tuple, kwargs: Mapping[str, Any]) -> tuple[float, Sequence[Tensor | None]]:
        """Return loss and gradients of an ELBO that writes them into the parameters; old gradients are put back."""
        touched = [*self.leaves, *self.others]
        before = [leaf.grad for leaf in touched]
        model, guide = self.program
        try:
            for leaf in touched:
                leaf.grad = None
            loss = elbo.loss_and_grads(_announced(model), guide, *args, **kwargs)
            return loss[0] if isinstance(loss, tuple) else loss, [leaf.grad for leaf in self.leaves]
        finally:
            for leaf, gradient in zip(touched, before):
                leaf.grad = gradient

    def _wait(self) -> None:
        if self.flat.is_cuda:
            torch.cuda.synchronize(self.flat.device)


def _joined(gradients: Sequence[Tensor | Product], dtype: torch.dtype) -> list[Tensor | Product]:
    found: list[Tensor | Product] = []
    for is_product, group in itertools.groupby(gradients, lambda g: isinstance(g, Product) and g.left.dtype == dtype):
        if is_product:
            found += group
        else:
            found.append(torch.cat([(rows := whole(g)).reshape(len(rows), -1) for g in group], 1).to(dtype))
    return found


@effectful(type="param")
def _parameter_site(value: Tensor) -> Tensor:
    return value


def _announced(model: Callable) -> Callable:
    """Return the model with a param site, without which Pyro's ``loss_and_grads`` ignores parameters of modules."""

    def announced(*args: Any, **kwargs: Any) -> Any:
        _parameter_site(torch.zeros(()), name="pyro_vae_parameters")
        return model(*args, **kwargs)

    return announced
