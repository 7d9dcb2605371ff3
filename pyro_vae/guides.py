"""Guides q(z | x): modules whose call returns a distribution over z, batch that of x, event (D,).

Each owns its network, which maps x, images (..., C, H, W) or rows (..., D), to features (..., F), and a linear head
that maps the features to the parameters of q. The heads start small, so that training starts near N(0, I). Any module
with such a call is a guide; no base class is needed.
"""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae.checks import whole_number
from pyro_vae.construction import Constructed
from pyro_vae.distributions import divergences  # noqa: F401  registers the KL of FullRank and LowRank
from pyro_vae.distributions.families import LowRankMultivariateNormal, MultivariateNormal
from pyro_vae.distributions.transforms import (
    PLANAR_MARGIN,
    AffineAutoregressive,
    Planar,
    Pushforward,
    default_width,
    made,
)
from pyro_vae.networks import Network, applied, start_near_zero
from pyro_vae.random import forked_rng, without_autocast

LOG_SCALE_BOUND = 10.0


class NetworkGuide(Constructed, ABC):
    """Abstract class of the guides here: a network, a linear head, and a distribution from the head's outputs.

    The network may take a single batch dimension, as ``nn.Conv2d`` does (see ``networks.applied``); x then is an image
    (..., C, H, W), or all of its dimensions but the first belong to the event. Within the caller's autocast it is the
    only part whose precision is lowered.
    """

    def __init__(self, network: nn.Module, latent: int, outputs: int, features: int | None):
        super().__init__()
        self.latent = latent
        self.network = network
        self.head = small_head(network, outputs, features)

    def forward(self, x: Tensor) -> dist.TorchDistribution:
        """Return q(z | x) for x (..., *event): batch (...), event (D,)."""
        dims = len(self.network.event) if isinstance(self.network, Network) else min(3, x.dim() - 1)
        features = applied(self.network, x, event_dim=dims)
        batch, wanted = x.shape[: x.dim() - dims], self.head.in_features
        # Three dimensions may be one image without a batch.
        if features.shape[-1:] != (wanted,) or (x.dim() != 3 and features.dim() != len(batch) + 1):
            raise ValueError(
                f"{type(self.network).__name__}: wanted features of shape {(*batch, wanted)} from x of "
                f"{tuple(x.shape)}, got {tuple(features.shape)}; end the network with nn.Flatten(), and give the guide "
                "features=N, the width of its output"
            )
        with without_autocast():
            return self.distribution(self.head(features))

    @abstractmethod
    def distribution(self, outputs: Tensor) -> dist.TorchDistribution:
        """Return q from the outputs (..., outputs) of the head."""


class MeanField(NetworkGuide):
    """q(z | x) = N(loc(x), diag(scale(x)²)) (Kingma & Welling 2014).

    The scale is ``bounded_scale`` of the head's output, between e⁻¹⁰ and e¹⁰. ``features`` is the width of the
    network's output, for a network without the attribute ``out_features``.

    >>> posterior = MeanField(nn.Flatten(-3), latent=2, features=784)
    >>> q = posterior(torch.rand(5, 1, 28, 28))
    >>> q.batch_shape, q.event_shape
    (torch.Size([5]), torch.Size([2]))
    """

    def __init__(self, network: nn.Module, latent: int, features: int | None = None):
        whole_number("latent", latent)
        super().__init__(network, latent, 2 * latent, features)

    def distribution(self, outputs: Tensor) -> dist.Independent:
        """Return N(loc, diag(scale²)) from outputs (..., 2 D)."""
        loc, raw_scale = outputs.chunk(2, -1)
        return dist.Normal(loc, bounded_scale(raw_scale)).to_event(1)


class FullRank(NetworkGuide):
    """q(z | x) = N(loc(x), L(x) L(x)ᵀ), L = diag(scale) (I + N), N strictly lower triangular.

    The diagonal of L is ``bounded_scale`` of the head's output. The head has D (D + 3) / 2 outputs.

    >>> posterior = FullRank(nn.Flatten(-3), latent=3, features=784)
    >>> posterior(torch.rand(5, 1, 28, 28)).covariance_matrix.shape
    torch.Size([5, 3, 3])
    """

    lower: Tensor

    def __init__(self, network: nn.Module, latent: int, features: int | None = None):
        whole_number("latent", latent)
        super().__init__(network, latent, latent * (latent + 3) // 2, features)
        rows, columns = torch.tril_indices(latent, latent, offset=-1)
        self.register_buffer("lower", rows * latent + columns, persistent=False)

    @classmethod
    def started_at(cls, guide: MeanField) -> "FullRank":
        """Return a guide that is the same distribution as a mean-field one at first; it has a network of its own.

        >>> mean_field = MeanField(nn.Flatten(-3), latent=3, features=784)
        >>> x = torch.rand(5, 1, 28, 28)
        >>> torch.equal(FullRank.started_at(mean_field)(x).mean, mean_field(x).mean)
        True
        """
        with forked_rng("cpu"):  # what the new head draws is overwritten
            started = cls(copy.deepcopy(guide.network), guide.latent, guide.head.in_features).to(guide.head.weight)
        with torch.no_grad():
            for new, old in zip(started.head.parameters(), guide.head.parameters()):
                new.zero_()
                new[: len(old)] = old
        return started

    def distribution(self, outputs: Tensor) -> dist.MultivariateNormal:
        """Return N(loc, L Lᵀ) from outputs (..., D (D + 3) / 2)."""
        D = self.latent
        loc, raw_scale, entries = outputs.split([D, D, len(self.lower)], -1)
        N = entries.new_zeros(*entries.shape[:-1], D * D).index_copy(-1, self.lower, entries)
        scale = bounded_scale(raw_scale)
        scale_tril = torch.diag_embed(scale) + scale.unsqueeze(-1) * N.unflatten(-1, (D, D))
        return MultivariateNormal(loc, scale_tril=scale_tril)


class LowRank(NetworkGuide):
    """q(z | x) = N(loc(x), S (I + V Vᵀ) S), S = diag(scale(x)), V(x) of shape (D, rank), 1 ≤ rank ≤ D.

    The scale is ``bounded_scale`` of the head's output. It multiplies V too, so that the matrix to be factored is well
    conditioned at any scale.

    >>> posterior = LowRank(nn.Flatten(-3), latent=3, rank=1, features=784)
    >>> posterior(torch.rand(5, 1, 28, 28)).cov_factor.shape
    torch.Size([5, 3, 1])
    """

    def __init__(self, network: nn.Module, latent: int, rank: int, features: int | None = None):
        whole_number("latent", latent)
        whole_number("rank", rank)
        if rank > latent:
            raise ValueError(f"rank: wanted at most latent = {latent}, got {rank}; for full rank write FullRank")
        super().__init__(network, latent, latent * (2 + rank), features)
        self.rank = rank

    def distribution(self, outputs: Tensor) -> dist.LowRankMultivariateNormal:
        """Return N(loc, S (I + V Vᵀ) S) from outputs (..., D (2 + rank))."""
        D, r = self.latent, self.rank
        loc, raw_scale, entries = outputs.split([D, D, D * r], -1)
        scale = bounded_scale(raw_scale)
        return LowRankMultivariateNormal(loc, scale.unsqueeze(-1) * entries.unflatten(-1, (D, r)), scale.pow(2))


class InverseAutoregressiveStep(Constructed):
    """y_d = σ_d(z_{<d}, h) z_d + μ_d(z_{<d}, h) (Kingma et al. 2016).

    >>> step = InverseAutoregressiveStep(latent=2, context=3, width=8)
    >>> step(torch.zeros(5, 3))(torch.zeros(5, 2)).shape
    torch.Size([5, 2])
    """

    def __init__(self, latent: int, context: int, width: int, reverse: bool = False):
        super().__init__()
        self.network = made(latent, width, [1, 1], context, reverse)

    def forward(self, h: Tensor) -> AffineAutoregressive:
        """Return the transform for features h (..., context)."""
        network: Any = partial(self.network, context=h)
        network.permutation = self.network.permutation
        return AffineAutoregressive(network)


class PlanarStep(Constructed):
    """y = z + û tanh(w·z + b) with b, u and w from h (Rezende & Mohamed 2015); it starts near the identity.

    >>> step = PlanarStep(latent=2, context=3)
    >>> step(torch.zeros(5, 3))(torch.ones(5, 2)).shape
    torch.Size([5, 2])
    """

    def __init__(self, latent: int, context: int):
        super().__init__()
        self.latent = latent
        last = start_near_zero(nn.Linear(context, 1 + 2 * latent))
        self.network = nn.Sequential(nn.ELU(), last)
        direction = nn.functional.normalize(torch.randn(latent), dim=0)
        with torch.no_grad():
            # w is a random direction, and u the multiple of it at which û is zero.
            last.bias[1 : 1 + latent] = direction * math.log(math.expm1(PLANAR_MARGIN))
            last.bias[1 + latent :] = direction

    def forward(self, h: Tensor) -> Planar:
        """Return the transform for features h (..., context)."""
        return Planar(self.network(h).split([1, self.latent, self.latent], -1))


def inverse_autoregressive(latent: int, context: int, depth: int, width: int) -> list[nn.Module]:
    """Return steps for ``Flow``: affine in z_d given h and the dimensions before it, in alternating order.

    >>> len(inverse_autoregressive(latent=4, context=8, depth=3, width=16))
    3
    """
    return [InverseAutoregressiveStep(latent, context, width, reverse=bool(t % 2)) for t in range(depth)]


def planar(latent: int, context: int, depth: int, width: int) -> list[nn.Module]:
    """Return steps for ``Flow``: planar maps whose parameters are linear in elu(h); ``width`` is only that of h.

    >>> len(planar(latent=4, context=8, depth=3, width=16))
    3
    """
    return [PlanarStep(latent, context) for _ in range(depth)]


class Flow(NetworkGuide):
    """q(z | x): z = f_T(… f_1(z₀; h); h), z₀ ~ N(loc(x), diag(scale(x)²)), h(x) features of the image.

    ``steps(latent, context, depth, width)`` returns the modules whose calls ``step(h)`` are the transforms:
    ``inverse_autoregressive`` (the default), ``planar``, or your own function. ``width`` is the size of h and of the
    steps' hidden layers; the default is 2 D, and at least 64. Scoring a sample that was just drawn takes one pass.
    Scoring any other z inverts the flow: D passes of each autoregressive step, a root of each planar step.

    The mean of q has no closed form (``q.mean`` raises NotImplementedError).

    >>> posterior = Flow(nn.Flatten(-3), latent=2, steps=planar, depth=4, features=784)
    >>> q = posterior(torch.rand(5, 1, 28, 28))
    >>> q.log_prob(q.rsample((7,))).shape
    torch.Size([7, 5])
    """

    def __init__(
        self,
        network: nn.Module,
        latent: int,
        steps: Callable[[int, int, int, int], list[nn.Module]] = inverse_autoregressive,
        depth: int = 2,
        width: int | None = None,
        features: int | None = None,
    ):
        whole_number("latent", latent)
        whole_number("depth", depth)
        width = default_width(latent, width)
        whole_number("width", width)
        super().__init__(network, latent, 2 * latent + width, features)
        self.width = width
        self.steps = nn.ModuleList(steps(latent, width, depth, width))

    def distribution(self, outputs: Tensor) -> Pushforward:
        """Return the flow's distribution from outputs (..., 2 D + width)."""
        loc, raw_scale, h = outputs.split([self.latent, self.latent, self.width], -1)
        base = dist.Normal(loc, bounded_scale(raw_scale)).to_event(1)
        return Pushforward(base, [step(h) for step in self.steps])


def bounded_scale(raw: Tensor) -> Tensor:
    """Return scale = exp(b tanh(raw / b)) with b = 10: e^raw near zero, within e⁻ᵇ = 4.5e-5 and eᵇ = 2.2e4.

    The bound is smooth, so that there is a gradient on both sides, and keeps scale² finite in float32.

    >>> bounded_scale(torch.tensor([-50.0, 0.0, 50.0])).log()
    tensor([-9.9991,  0.0000,  9.9991])
    """
    return (LOG_SCALE_BOUND * torch.tanh(raw / LOG_SCALE_BOUND)).exp()


def small_head(network: nn.Module, outputs: int, features: int | None = None) -> nn.Linear:
    """Return a linear map from the features of a network to parameters that starts near zero at any number of features.

    Raises ValueError if the number of features is neither given nor an attribute of the network.

    >>> small_head(nn.Flatten(-3), 4)
    Traceback (most recent call last):
        ...
    ValueError: Flatten has no attribute out_features; write features=N, the width of its output, next to the network
    """
    features = getattr(network, "out_features", None) if features is None else features
    if features is None:
        raise ValueError(
            f"{type(network).__name__} has no attribute out_features; "
            "write features=N, the width of its output, next to the network"
        )
    return start_near_zero(nn.Linear(features, outputs))
