"""The Jacobian of a masked network's step: Jᵀ g = b solved in blocks, from no more than a few passes."""

from bisect import bisect_left, bisect_right
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from pyro.nn import AutoRegressiveNN, ConditionalAutoRegressiveNN
from torch import Tensor
from torch.nn import functional as F

LEAF = 8  # dimensions whose Jacobian is written out
_DEGREES: WeakKeyDictionary = WeakKeyDictionary()


class MaskedStep:
    """y = μ(x) + σ(x) x, where μ_d and σ_d depend on the dimensions before d alone (Germain et al. 2015).

    J = ∂y/∂x is lower triangular in the order of the network. ``solved`` halves it: the upper half of g takes the
    second diagonal block alone; its share in b goes back through the network to the first half, by those hidden units
    alone that see the first half and are seen by the second. Blocks of up to 8 dimensions are written out. All passes
    together multiply about as much as two of the whole network, where J itself would take D.

    Args:
        network: of two outputs for each dimension, μ and log σ, its hidden units in ascending order of what they see.
        inputs: of the network: context and x, of shape (rows, context + D).
        x: in the network's order, of shape (rows, D).
        bounds: between which log σ is clamped; its derivative is not, as in Pyro.
    """

    def __init__(self, network: ConditionalAutoRegressiveNN, inputs: Tensor, x: Tensor, bounds: tuple[float, float]):
        order = network.permutation
        weights = [(layer.weight * layer.mask).detach() for layer in network.layers]
        first = weights[0][:, network.context_dim :].index_select(1, order)
        of_loc, of_scale = (part.index_select(0, order) for part in weights[-1].chunk(2))
        self.weights, self.of_loc, self.of_scale = [first, *weights[1:-1]], of_loc, of_scale
        self.degrees = degrees(network)
        hidden, self.slopes = _passed(network, weights, inputs)
        bias = network.layers[-1].bias.detach().chunk(2)[1].index_select(0, order)
        self.scale = F.linear(hidden, of_scale, bias).clamp(*bounds).exp()
        self.gain = self.scale * x

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


def masked_step(transform: Any, x: Tensor) -> tuple[MaskedStep, Tensor] | None:
    """Return the step of a transform at x (..., D) and its order; None if its network is not of the known kind.

    Args:
        transform: an ``AffineAutoregressive`` of Pyro's.
        x: that it is applied to.
    """
    found = _network(transform.arn)
    if transform.stable or found is None or degrees(found[0]) is None:
        return None
    network, context = found
    x = x.detach()
    inputs = x if context is None else torch.cat([context.detach().expand(*x.shape[:-1], -1), x], -1)
    rows = x.index_select(-1, network.permutation).flatten(0, -2)
    bounds = (transform.log_scale_min_clip, transform.log_scale_max_clip)
    return MaskedStep(network, inputs.flatten(0, -2), rows, bounds), network.permutation


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


def _network(function: Any) -> tuple[ConditionalAutoRegressiveNN, Tensor | None] | None:
    """Return a function's masked network of two outputs and its context, where it is one."""
    context = None
    if isinstance(function, partial):  # as Pyro's conditional transforms write it
        function, context = function.func, function.keywords.get("context")
    known = type(function) in (ConditionalAutoRegressiveNN, AutoRegressiveNN) and function.skip_layer is None
    return (function, context) if known and function.param_dims == [1, 1] else None


def _passed(network: ConditionalAutoRegressiveNN, weights: list[Tensor], inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return the last hidden units and the derivatives of the nonlinearity in each hidden layer."""
    hidden, slopes = inputs, []
    for layer, weight in zip(network.layers[:-1], weights):
        before = F.linear(hidden, weight, layer.bias.detach()).requires_grad_()
        with torch.enable_grad():
            after = network.f(before)
        slopes.append(torch.autograd.grad(after.sum(), before)[0])
        hidden = after.detach()
    return hidden, slopes
