"""The rows of a batch shared out among the cores, each of which computes the gradient of its share.

On a GPU all rows are one share: random numbers are drawn first there, too, since before version 2.14 torch's compiler
changes the order of draws.
"""

from collections.abc import Callable, Sequence
from functools import partial

import pyro
import torch
from torch import Tensor

from pyro_vae.arguments import as_arguments
from pyro_vae.compiling.artifacts import compiled_graph
from pyro_vae.compiling.joint import Recorded, by_torch
from pyro_vae.compiling.loss import ProgramLoss
from pyro_vae.compiling.noise import Draw, Draws, parts_of, without_draws
from pyro_vae.compiling.private import tensors_only
from pyro_vae.compiling.untraceable import Untraceable, first_line
from pyro_vae.estimation import describe
from pyro_vae.parallel import WORTH, at_once, equal_parts, shared_out
from pyro_vae.random import forked_rng
from pyro_vae.tracing.independence import check_rows
from pyro_vae.tracing.probing import left_as_it_was
from pyro_vae.training.sums import check_sum_over_rows


class Shards:
    """How the rows of a batch are shared out, and what is drawn for all of them.

    All random numbers are drawn first, for the whole batch, as the eager program draws them: the sum of the shares is
    then the loss of the batch up to rounding, and no bit depends on which core is faster.

    Args:
        count: the number of shares, of the same number of rows.
        raw: the raw rows of the batch, a tensor for each field.

    Attributes:
        rows: the raw rows of one share.
        draws: the random operations of the batch, each with the dimension along which it is shared out.
    """

    def __init__(self, count: int, raw: Sequence[Tensor]):
        self.count, self.raw = count, raw
        self.rows = tuple(tensor[: len(tensor) // count].contiguous() for tensor in raw)
        self.draws: list[tuple[Draw, int | None]] = []

    @classmethod
    def of(cls, loss: ProgramLoss, raw: Sequence[Tensor]) -> "Shards | None":
        """Return the shares of a batch: on a CPU one for each core, elsewhere a single one.

        Return None if there is one core, if there are no equal shares, and if a step computes less than ``WORTH``:
        threads would then wait for each other longer than they compute.
        """
        if raw[0].device.type != "cpu":
            return cls(1, raw)
        if len(raw[0]) * sum(parameter.numel() for parameter in loss.parameters()) < WORTH:
            return None
        count = equal_parts(len(raw[0]))
        return cls(count, raw) if count > 1 else None

    def watch_draws(self, loss: ProgramLoss) -> None:
        """Take note of what the loss draws; a trace has shown that its runs change nothing.

        Raises ``Untraceable`` if the loss is no sum over rows, and if random numbers cannot be drawn before the program
        runs, or have no rows.
        """
        if self.count > 1:
            _check_sum_over_rows(loss, self.raw)
        whole, part = _draws(loss, self.raw), _draws(loss, self.rows)
        if [draw.function for draw in whole] != [draw.function for draw in part]:
            raise Untraceable("the program draws other random numbers for fewer rows")
        rows = len(self.raw[0]), len(self.rows[0])
        self.draws = [(w, w.dim_of_rows(p.shape, rows)) for w, p in zip(whole, part)]


class SharedStep:
    """Loss and gradients of a batch, computed by all cores at once.

    Args:
        shards: the shares of the batch.
        recorded: loss and gradients of one share; its draws become arguments.
        sizes: the number of elements of each gradient.

    Raises ``Untraceable`` if it draws other random numbers than the program.
    """

    def __init__(self, shards: Shards, recorded: Recorded, sizes: Sequence[int]):
        self.shards, self.held, self.graph, self.function = shards, recorded.values, recorded.graph, None
        if without_draws(self.graph) != [draw.function for draw, _ in shards.draws]:
            raise Untraceable("the trace draws other random numbers than the program")
        self.groups = shared_out(sizes, shards.count)

    def __call__(self, raw: Sequence[Tensor]) -> tuple[Tensor, list[Tensor], Tensor]:
        """Return loss, gradients, and the norm of the gradients."""
        given = self._given(raw)
        if self.function is None:
            self.function = self._compiled(given[0])
        return self._sum(at_once([partial(self.function, *args) for args in given]), given[0])

    def eagerly(self, raw: Sequence[Tensor]) -> tuple[Tensor, list[Tensor], Tensor]:
        """Return the same by the recorded operations, before they are compiled."""
        with torch.no_grad():
            given = self._given(raw)
            return self._sum([self.graph(*args) for args in given], given[0])

    def _compiled(self, given: Sequence[Tensor]) -> Callable[..., Sequence[Tensor]]:
        if given[-1].device.type == "cpu":
            return compiled_graph(self.graph, given, threads=1)
        return by_torch(self.graph, given)

    def _given(self, raw: Sequence[Tensor]) -> list[list[Tensor]]:
        """Return the arguments of each share."""
        count = self.shards.count
        noise = [parts_of(draw(), dim, count) for draw, dim in self.shards.draws]
        rows = [tensor.chunk(count) for tensor in raw]
        return [[*self.held, *(tensors[i] for tensors in (*rows, *noise))] for i in range(count)]

    def _sum(self, results: Sequence[Sequence[Tensor]], given: Sequence[Tensor]) -> tuple[Tensor, list[Tensor], Tensor]:
        """Return the sums over the shares, in their order; the first share was computed from the tensors given."""
        gradients = [[*result[1:]] for result in results]
        gradients[0] = _own(gradients[0], given)
        summed = at_once([partial(_sums, gradients, indices) for indices in self.groups])
        by_index = {i: tensor for indices, (sums, _) in zip(self.groups, summed) for i, tensor in zip(indices, sums)}
        norm = torch.stack([norm for _, norm in summed]).norm()
        loss = torch.stack([result[0] for result in results]).sum()
        return loss, [by_index[i] for i in range(len(by_index))], norm


def _own(results: list[Tensor], given: Sequence[Tensor]) -> list[Tensor]:
    """Return the results; copies where two of them, or one and a given tensor, share memory."""
    memory = [tensor.untyped_storage().data_ptr() for tensor in (*results, *given)]
    apart = len({*memory[: len(results)]} - {*memory[len(results) :]}) == len(results)
    return results if apart else [result.clone() for result in results]


def _sums(gradients: Sequence[Sequence[Tensor]], indices: Sequence[int]) -> tuple[list[Tensor], Tensor]:
    """Return the sums of these gradients, in the memory of those of the first share, and the norm of all."""
    first, *others = ([of_share[index] for index in indices] for of_share in gradients)
    with torch.no_grad():
        for other in others:
            for tensor, share in zip(first, other):
                tensor += share
        return first, torch.nn.utils.get_total_norm(first)


def _check_sum_over_rows(loss: ProgramLoss, raw: Sequence[Tensor]) -> None:
    """Raise ``Untraceable`` unless the loss is a sum over rows by an estimator that is known, and rows are apart."""
    claimed = describe(loss.elbo)
    if claimed.guide_gradient is None or claimed.model_gradient is None:
        raise Untraceable(f"nothing says that {type(loss.elbo).__name__} is a sum over rows")
    model, guide = loss.functions
    try:
        with left_as_it_was(model, guide), torch.no_grad(), pyro.validation_enabled(False):
            args = as_arguments(loss.observe(*raw) if loss.observe is not None else tuple(raw))
            check_sum_over_rows(loss.elbo, model, guide, args, len(raw[0]))
            check_rows(model, guide, args)
    except ValueError as error:
        raise Untraceable(first_line(error)) from error


def _draws(loss: ProgramLoss, raw: Sequence[Tensor]) -> list[Draw]:
    with left_as_it_was(*loss.functions), forked_rng(raw[0].device), tensors_only():
        loss(*raw)  # an estimator may look at a program once, by a run of its own
        with Draws() as draws:
            loss(*raw)
    return draws.found
