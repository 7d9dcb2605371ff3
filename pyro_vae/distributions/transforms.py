"""Normalising flows for priors and guides: Pyro's transforms, made safe to build anew in each call.

A step of a flow is a module whose call returns a transform: ``step()`` in a prior, ``step(h)`` in a guide, where h are
the features of an image. The module holds the parameters. The transform caches its last pass and lives only as long as
the distribution that it is part of. Therefore no pass of an old batch is reused, copied or kept alive.
"""

import warnings
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.transforms import AffineAutoregressive as PyroAffineAutoregressive
from pyro.distributions.transforms.planar import ConditionedPlanar
from pyro.distributions.transforms.utils import clamp_preserve_gradients
from pyro.nn import AutoRegressiveNN, ConditionalAutoRegressiveNN
from torch import Tensor, nn
from torch.distributions import Transform, constraints

from pyro_vae.distributions.families import FullPrecision
from pyro_vae.networks import start_near_zero
from pyro_vae.random import without_autocast

PLANAR_MARGIN = 0.999


class Pushforward(FullPrecision, dist.TransformedDistribution):
    """z = f_T(… f_1(z₀)), z₀ ~ base: log q(z) = log base(z₀) − Σ log |det ∂f_t|.

    It differs from its parent in three ways. Autocast does not lower the precision of its networks. A value is first
    broadcast against the batch, so that it can be scored under a mixture of flows. No object refers back to itself
    (``transform.inv`` and its transform hold each other), so that the graph is freed with the last use of the
    distribution and not by the garbage collector.

    >>> base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    >>> q = Pushforward(base, [dist.transforms.AffineTransform(1.0, 2.0, event_dim=1)])
    >>> torch.allclose(q.log_prob(torch.ones(2)), base.log_prob(torch.zeros(2)) - 2 * torch.tensor(2.0).log())
    True
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log q(z); ``value`` has shape (*sample, *batch, D) or broadcasts to it."""
        if self._validate_args:
            self._validate_sample(value)
        shape = torch.broadcast_shapes(value.shape, self.batch_shape + self.event_shape)
        y = value if value.shape == shape else value.expand(shape)
        log_det = 0.0
        with without_autocast():
            for transform in reversed(self.transforms):
                x = transform._inv_call(y)
                log_det = log_det + transform.log_abs_det_jacobian(x, y)
                y = x
            return self.base_dist.log_prob(y) - log_det


class Backward(Transform):
    """f⁻¹ in place of f: a density that is scored by one pass and sampled by D passes, instead of the reverse.

    >>> shift = Backward(dist.transforms.AffineTransform(1.0, 2.0, event_dim=1))
    >>> shift(torch.tensor([3.0, 5.0]))
    tensor([1., 2.])
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, transform: Transform):
        super().__init__()
        self.transform: Any = transform

    def _call(self, x: Tensor) -> Tensor:
        return self.transform._inv_call(x)

    def _inverse(self, y: Tensor) -> Tensor:
        return self.transform(y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return log |det ∂f⁻¹(x)/∂x|."""
        return -self.transform.log_abs_det_jacobian(y, x)


class AffineAutoregressive(PyroAffineAutoregressive):
    """y_d = σ_d(x_{<d}) x_d + μ_d(x_{<d}) (Kingma et al. 2016; Papamakarios et al. 2017), inverted in any dtype.

    One pass maps x to y. The inverse takes D passes, each of which settles one more dimension.
    """

    def _inverse(self, y: Tensor) -> Tensor:
        x = torch.zeros_like(y)
        for d in self.arn.permutation:
            loc, log_scale = self.arn(x)
            log_scale = clamp_preserve_gradients(log_scale, self.log_scale_min_clip, self.log_scale_max_clip)
            # Only dimension d: the others still depend on zeros, and may overflow if they are fed back.
            x = torch.where(torch.arange(y.shape[-1], device=y.device) == d, (y - loc) * (-log_scale).exp(), x)
            self._cached_log_scale = log_scale
        return x


class Planar(ConditionedPlanar):
    """y = x + û tanh(w·x + b) (Rezende & Mohamed 2015), with the inverse that Pyro's class lacks.

    With a = w·x the inverse is one root in one unknown: a + c tanh(a + b) = w·y. Its left side increases, since c = w·û
    = softplus(w·u) − 0.999 is above −1, by a margin that keeps the Jacobian away from zero in float32.
    """

    def slope(self, u: Tensor, w: Tensor) -> Tensor:
        """Return c = w·û."""
        return nn.functional.softplus((w * u).sum(-1, keepdim=True)) - PLANAR_MARGIN

    def u_hat(self, u: Tensor, w: Tensor) -> Tensor:
        """Return û = u + (c − w·u) w / |w|²."""
        return u + (self.slope(u, w) - (w * u).sum(-1, keepdim=True)) * w / w.pow(2).sum(-1, keepdim=True)

    def _inverse(self, y: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]  # Pyro's raises
        bias, u, w = self._params
        a = planar_root(self.slope(u, w), bias, (w * y).sum(-1, keepdim=True))
        return y - self.u_hat(u, w) * torch.tanh(a + bias)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return log (1 + (1 − tanh²(w·x + b)) c)."""
        bias, u, w = self._params
        act = torch.tanh((w * x).sum(-1, keepdim=True) + bias)
        return torch.log1p((1 - act.pow(2)) * self.slope(u, w)).squeeze(-1)


def planar_root(slope: Tensor, bias: Tensor, target: Tensor, bisections: int = 40) -> Tensor:
    """Return the root a of a + slope tanh(a + bias) = target, for slope > −1; differentiable in all three.

    >>> planar_root(torch.tensor(1.0), torch.tensor(0.0), torch.tensor(0.5) + torch.tensor(0.5).tanh())
    tensor(0.5000)
    """

    def excess(a: Tensor) -> Tensor:
        return a + slope * torch.tanh(a + bias) - target

    with torch.no_grad():
        low, high = target - slope.abs(), target + slope.abs()
        for _ in range(bisections):
            middle = (low + high) / 2
            above = excess(middle) > 0
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        a = (low + high) / 2
        derivative = 1 + slope * (1 - torch.tanh(a + bias).pow(2))
    # One Newton step from the root refines the value and has the gradient of the implicit function.
    return a - excess(a) / derivative


def made(
    latent: int, width: int, outputs: list[int], context: int = 0, reverse: bool = False
) -> ConditionalAutoRegressiveNN:
    """Return a masked network (Germain et al. 2015) of two hidden layers that starts near zero.

    With ``reverse`` the first dimension of the order is the last z_d. Raises ValueError if the layers are narrower than
    z: some dimension would then have no unit.

    >>> loc, log_scale = made(latent=3, width=8, outputs=[1, 1])(torch.zeros(5, 3))
    >>> loc.shape, log_scale.shape
    (torch.Size([5, 3]), torch.Size([5, 3]))
    """
    if width < latent:
        raise ValueError(f"width: wanted at least latent = {latent}, got {width}")
    order = torch.arange(latent).flip(0) if reverse else torch.arange(latent)
    options = {"param_dims": outputs, "permutation": order, "nonlinearity": nn.ELU()}
    with warnings.catch_warnings():
        # One dimension is allowed: the parameters of its step depend on the context alone.
        warnings.filterwarnings("ignore", message=".*input_dim = 1")
        if context:
            network = ConditionalAutoRegressiveNN(latent, context, [width, width], **options)
        else:
            network = AutoRegressiveNN(latent, [width, width], **options)
    start_near_zero(network.layers[-1])
    return network


def default_width(latent: int, width: int | None) -> int:
    """Return the width of a step's hidden layers: the given one, or else twice the dimension of z, and at least 64.

    >>> default_width(10, None), default_width(100, None), default_width(10, 16)
    (64, 200, 16)
    """
    return max(64, 2 * latent) if width is None else width
