"""The Jacobian of a masked network's step: Jᵀ g = b solved in blocks, from no more than a few passes."""

import threading
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

import torch
from pyro.nn import AutoRegressiveNN, ConditionalAutoRegressiveNN
from torch import Tensor

LEAF = 16  # dimensions whose Jacobian is written out
Passes = list[tuple[Tensor, Tensor]]  # what went into each layer of a network, and what came out
_DEGREES: WeakKeyDictionary = WeakKeyDictionary()


class MaskedStep:
    """y = μ(x) + σ(x) x, where μ_d and σ_d depend on the dimensions before d alone (Germain et al. 2015).

    J = ∂y/∂x is lower triangular in the order of the network. ``solved`` halves it: the upper half of g takes the
    second diagonal block alone; its share in b goes back through the network to the first half, by those hidden units
    alone that see the first half and are seen by the second. Blocks of up to 16 dimensions are written out. All of it
    costs about as much as a few passes of the network, where J itself would take D.

    Args:
        network: of two outputs for each dimension, μ and log σ, its hidden units in ascending order of what they see.
        passes: the network's layers at x, in a graph.
        x: of shape (..., D).
        bounds: between which log σ is clamped; its derivative is not, as in Pyro.
    """

    def __init__(self, network: Any, passes: Passes, x: Tensor, bounds: tuple[float, float]):
        self.order = order = network.permutation
        self.degrees: Any = degrees(network)
        self.slopes = [_rows(_slope(a, h)) for (_, a), (h, _) in pairwise(passes)]
        first, *others, last = ((layer.weight * layer.mask).detach() for layer in network.layers)
        self.weights = [first[:, network.context_dim :].index_select(1, order), *others]
        self.of_loc, self.of_scale = (part.index_select(0, order) for part in last.chunk(2))
        scale = passes[-1][1].detach().chunk(2, -1)[1].clamp(*bounds).exp()
        self.scale, rows = (_rows(part).index_select(-1, order) for part in (scale, x.detach()))
        self.gain = self.scale * rows

    def by_value(self, slope: Tensor) -> Tensor:
        """Return g with Jᵀ g = slope, both of shape (..., D)."""
        g = self.solved(_rows(slope).index_select(-1, self.order))
        return torch.empty_like(g).index_copy(-1, self.order, g).reshape(slope.shape)

    def solved(self, b: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Return g with Jᵀ g = b for the dimensions from ``start`` on, those after ``stop`` left out; (rows, D)."""
        stop = start + b.shape[-1] if stop is None else stop
        if stop - start <= LEAF:
            return torch.linalg.solve_triangular(self._block(start, stop).mT, b.unsqueeze(-1), upper=True).squeeze(-1)
        middle = (start + stop) // 2
        upper = self.solved(b[..., middle - start :], middle, stop)
        lower = b[..., : middle - start] - self._pulled(upper, (middle, stop), (start, middle))
        return torch.cat([self.solved(lower, start, middle), upper], -1)

    def _block(self, start: int, stop: int) -> Tensor:
        """Return J for some dimensions, (rows, stop − start, stop − start)."""
        units = torch.eye(stop - start, dtype=self.gain.dtype, device=self.gain.device)
        rows = self._pulled(units.unsqueeze(1).expand(-1, len(self.gain), -1), (start, stop), (start, stop))
        return rows.movedim(0, -2) + torch.diag_embed(self.scale[:, start:stop])

    def _pulled(self, v: Tensor, outputs: tuple[int, int], inputs: tuple[int, int]) -> Tensor:
        """Return vᵀ ∂y/∂x but for the diagonal σ, for v over some outputs and x over some inputs, none after them."""
        out, into = slice(*outputs), slice(*inputs)
        between = [slice(bisect_left(d, inputs[0] + 1), bisect_right(d, outputs[1] - 1)) for d in self.degrees]
        top = between[-1]
        pull = v @ self.of_loc[out, top] + (v * self.gain[:, out]) @ self.of_scale[out, top]
        for weight, slope, units, below in zip(
            reversed(self.weights), reversed(self.slopes), reversed(between), [*reversed(between[:-1]), into]
        ):
            pull = (pull * slope[:, units]) @ weight[units, below]
        return pull


def masked_network(transform: Any) -> Any:
    """Return the network of an ``AffineAutoregressive`` of Pyro's; None where it is not of the known kind."""
    network: Any = transform.arn
    network = network.func if isinstance(network, partial) else network  # Pyro's way to give a context
    known = type(network) in (ConditionalAutoRegressiveNN, AutoRegressiveNN) and not transform.stable
    usual = known and network.skip_layer is None and network.param_dims == [1, 1]
    return network if usual and degrees(network) is not None else None


@contextmanager
def watched(network: ConditionalAutoRegressiveNN) -> Iterator[Passes]:
    """Record what goes through the layers of a network in this thread."""
    passes: Passes = []
    here = threading.get_ident()

    def record(_: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        if threading.get_ident() == here:
            passes.append((inputs[0], output))

    hooks = [layer.register_forward_hook(record) for layer in network.layers]
    try:
        yield passes
    finally:
        for hook in hooks:
            hook.remove()


def degrees(network: ConditionalAutoRegressiveNN) -> list[list[int]] | None:
    """Return how many dimensions each unit sees, by hidden layer; None if that does not ascend.

    >>> degrees(ConditionalAutoRegressiveNN(3, 1, [4], permutation=torch.arange(3)))
    [[0, 1, 1, 2]]
    """
    if network not in _DEGREES:
        first, *others = (mask.tolist() for mask in network.masks[:-1])
        found = [[round(sum(row[network.context_dim :])) for row in first]]
        for mask in others:
            found.append([max((seen for seen, link in zip(found[-1], row) if link), default=0) for row in mask])
        _DEGREES[network] = found if all(layer == sorted(layer) for layer in found) else None
    return _DEGREES[network]


def _rows(values: Tensor) -> Tensor:
    return values.reshape(-1, values.shape[-1])


def _slope(before: Tensor, after: Tensor) -> Tensor:
    """Return the derivative of a nonlinearity, element by element."""
    return torch.autograd.grad(after.sum(), before, retain_graph=True)[0]
