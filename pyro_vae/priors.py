"""Priors p(z): modules whose call returns a distribution over z, batch (), event (D,).

Any module with such a call is a prior; no base class is needed.
"""

import math
from collections.abc import Callable

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.distributions.transforms import SplineAutoregressive
from torch import Tensor, nn

from pyro_vae.checks import whole_number
from pyro_vae.construction import Constructed
from pyro_vae.distributions.transforms import (
    AffineAutoregressive,
    Backward,
    Pushforward,
    default_width,
    made,
)


class StandardNormal(Constructed):
    """p(z) = N(0, I).

    >>> prior = StandardNormal(latent=2)
    >>> prior().batch_shape, prior().event_shape
    (torch.Size([]), torch.Size([2]))
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, latent: int):
        super().__init__()
        whole_number("latent", latent)
        self.register_buffer("loc", torch.zeros(latent))
        self.register_buffer("scale", torch.ones(latent))

    def forward(self) -> dist.Independent:
        """Return p(z)."""
        return dist.Normal(self.loc, self.scale).to_event(1)


class DiagonalNormal(Constructed):
    """p(z) = N(loc, diag(scale²)), both learned; it starts as the standard normal.

    >>> DiagonalNormal(latent=2)().mean.detach()
    tensor([0., 0.])
    """

    def __init__(self, latent: int):
        super().__init__()
        whole_number("latent", latent)
        self.loc = nn.Parameter(torch.zeros(latent))
        self.log_scale = nn.Parameter(torch.zeros(latent))

    def forward(self) -> dist.Independent:
        """Return p(z)."""
        return dist.Normal(self.loc, self.log_scale.exp()).to_event(1)


class SharedMixture(dist.MixtureSameFamily):
    """Σ_k π_k p_k(z), with components that are stored once for all images of a plate.

    torch's class copies them for each image, which is four times slower to score at 500 components.

    >>> components = dist.Normal(torch.zeros(3, 2), 1.0).to_event(1)
    >>> SharedMixture(dist.Categorical(torch.ones(3)), components).expand([5]).log_prob(torch.zeros(5, 2)).shape
    torch.Size([5])
    """

    expand = TorchDistributionMixin.expand


class Mixture(Constructed):
    """p(z) = Σ_k π_k N(loc_k, diag(scale_k²)); all parameters are learned.

    The components start apart, at loc_k ~ N(0, ¼ I) with variance ¾, so that together they have about unit variance.

    >>> prior = Mixture(latent=2, components=5)
    >>> prior().log_prob(torch.zeros(7, 2)).shape
    torch.Size([7])
    """

    def __init__(self, latent: int, components: int):
        super().__init__()
        whole_number("latent", latent)
        whole_number("components", components)
        self.logits = nn.Parameter(torch.zeros(components))
        self.loc = nn.Parameter(0.5 * torch.randn(components, latent))
        self.log_scale = nn.Parameter(torch.full((components, latent), 0.5 * math.log(0.75)))

    def forward(self) -> SharedMixture:
        """Return p(z)."""
        components = dist.Normal(self.loc, self.log_scale.exp()).to_event(1)
        return SharedMixture(dist.Categorical(logits=self.logits), components)


class Vamp(Constructed):
    """p(z) = 1/K Σ_k q(z | u_k), the aggregate posterior of K learned pseudo-inputs u (Tomczak & Welling 2018).

    ``posterior`` is the guide of the same program and not a copy. Training either trains both, ``copy.deepcopy`` keeps
    them one module, and the program's ``parameters()`` yields each parameter once; a state dict holds them under both
    names. The guide is called in its current mode (train or eval).

    ``pseudo_inputs`` (K, C, H, W) in [0, 1] are the initial u_k: some images as the guide sees them, for example
    ``likelihood.observe(pixels[:500])``. They stay in (0, 1), as the sigmoid of the parameter ``logits``; values below
    0.01 or above 0.99 start at these bounds.

    Each call runs the guide on K images. With a ``guides.Flow`` the prior inverts K flows for each z, each in D passes:
    use it for small K and D only.

    >>> posterior = lambda x: dist.Normal(x.flatten(-3), 1.0).to_event(1)
    >>> prior = Vamp(posterior, torch.rand(10, 1, 1, 2))
    >>> prior().batch_shape, prior().event_shape
    (torch.Size([]), torch.Size([2]))
    """

    def __init__(self, posterior: Callable[[Tensor], dist.TorchDistribution], pseudo_inputs: Tensor):
        super().__init__()
        _check_pseudo_inputs(posterior, pseudo_inputs)
        self.posterior = posterior
        self.logits = nn.Parameter(pseudo_inputs.detach().logit(eps=0.01))

    @classmethod
    def random(
        cls,
        posterior: Callable[[Tensor], dist.TorchDistribution],
        components: int,
        shape: tuple[int, int, int],
        generator: torch.Generator | None = None,
    ) -> "Vamp":
        """Return a prior whose pseudo-inputs start as uniform noise; ``shape`` is (C, H, W) of an image.

        >>> posterior = lambda x: dist.Normal(x.flatten(-3), 1.0).to_event(1)
        >>> Vamp.random(posterior, components=10, shape=(1, 1, 2)).pseudo_inputs.shape
        torch.Size([10, 1, 1, 2])
        """
        whole_number("components", components)
        return cls(posterior, torch.rand(components, *shape, generator=generator))

    @property
    def pseudo_inputs(self) -> Tensor:
        """The pseudo-inputs u, (K, C, H, W) in (0, 1)."""
        return self.logits.sigmoid()

    def forward(self) -> SharedMixture:
        """Return p(z)."""
        weights = dist.Categorical(logits=self.logits.new_zeros(len(self.logits)))
        return SharedMixture(weights, self.posterior(self.pseudo_inputs))


class AutoregressiveStep(Constructed):
    """y_d = σ_d(z_{<d}) z_d + μ_d(z_{<d}) (Papamakarios et al. 2017).

    >>> AutoregressiveStep(latent=2, width=8)()(torch.zeros(5, 2)).shape
    torch.Size([5, 2])
    """

    def __init__(self, latent: int, width: int, reverse: bool = False):
        super().__init__()
        self.network = made(latent, width, [1, 1], reverse=reverse)

    def forward(self) -> AffineAutoregressive:
        """Return the transform."""
        return AffineAutoregressive(self.network)


class SplineStep(Constructed):
    """y_d = g(z_d; θ_d(z_{<d})), a monotone rational linear spline of ``bins`` pieces in [−bound, bound].

    It is the identity beyond (Durkan et al. 2019; Dolatabadi et al. 2020).

    >>> SplineStep(latent=2, width=8)()(torch.full((5, 2), 7.0))[0].detach()
    tensor([7., 7.])
    """

    def __init__(self, latent: int, width: int, reverse: bool = False, bins: int = 8, bound: float = 5.0):
        super().__init__()
        self.latent, self.bins, self.bound = latent, bins, bound
        self.network = made(latent, width, [bins, bins, bins - 1, bins], reverse=reverse)
        with torch.no_grad():
            # softplus⁻¹(1): slope one at the inner knots, so that the spline starts near the identity.
            self.network.layers[-1].get_parameter("bias").view(-1, latent)[2 * bins : 3 * bins - 1] = math.log(
                math.e - 1
            )

    def forward(self) -> SplineAutoregressive:
        """Return the transform."""
        return SplineAutoregressive(self.latent, self.network, count_bins=self.bins, bound=self.bound)


def autoregressive(latent: int, depth: int, width: int) -> list[nn.Module]:
    """Return steps for ``Flow``: affine in z_d given the dimensions before it, in alternating order.

    >>> len(autoregressive(latent=4, depth=3, width=16))
    3
    """
    return [AutoregressiveStep(latent, width, reverse=bool(t % 2)) for t in range(depth)]


def spline(latent: int, depth: int, width: int, bins: int = 8, bound: float = 5.0) -> list[nn.Module]:
    """Return steps for ``Flow``: a spline in z_d given the dimensions before it, in alternating order.

    For other settings write ``functools.partial(spline, bins=16)``.

    >>> len(spline(latent=4, depth=3, width=16))
    3
    """
    return [SplineStep(latent, width, bool(t % 2), bins, bound) for t in range(depth)]


class Flow(Constructed):
    """p(z): a flow f maps z to a standard normal, log p(z) = log N(f(z); 0, I) + log |det ∂f|.

    Scoring takes one pass, as training needs; a sample takes D passes. ``steps(latent, depth, width)`` returns the
    modules whose calls are the transforms z ↦ f_t(z): ``autoregressive`` (the default), ``spline``, or your own
    function. ``width`` is the size of a step's hidden layers; the default is 2 D, and at least 64. The flow starts near
    N(0, I).

    >>> prior = Flow(latent=2, steps=spline, depth=1)
    >>> prior().log_prob(prior().sample((5,))).shape
    torch.Size([5])
    """

    loc: Tensor
    scale: Tensor

    def __init__(
        self,
        latent: int,
        steps: Callable[[int, int, int], list[nn.Module]] = autoregressive,
        depth: int = 2,
        width: int | None = None,
    ):
        super().__init__()
        whole_number("latent", latent)
        whole_number("depth", depth)
        self.register_buffer("loc", torch.zeros(latent))
        self.register_buffer("scale", torch.ones(latent))
        self.steps = nn.ModuleList(steps(latent, depth, default_width(latent, width)))

    def forward(self) -> Pushforward:
        """Return p(z)."""
        base = dist.Normal(self.loc, self.scale).to_event(1)
        return Pushforward(base, [Backward(step()) for step in reversed(self.steps)])


def _check_pseudo_inputs(posterior: Callable[[Tensor], dist.TorchDistribution], pseudo_inputs: Tensor) -> None:
    shape = tuple(pseudo_inputs.shape)
    if len(shape) != 4 or not len(pseudo_inputs):
        raise ValueError(f"pseudo_inputs: wanted images of shape (K, C, H, W) with K of at least 1, got {shape}")
    low, high = pseudo_inputs.min().item(), pseudo_inputs.max().item()
    if not (pseudo_inputs.is_floating_point() and low >= 0 and high <= 1):
        raise ValueError(
            f"pseudo_inputs: wanted floats in [0, 1], got {pseudo_inputs.dtype} from {low:g} to {high:g}; "
            "write pixels / 255, or likelihood.observe(pixels)"
        )
    try:
        with torch.no_grad():
            q = posterior(pseudo_inputs[:2])
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"posterior: it does not take pseudo_inputs of shape {shape}: {error}") from error
    if not isinstance(q, TorchDistributionMixin):
        raise ValueError(f"posterior: wanted a distribution of pyro.distributions, got {type(q).__name__}")
    batch = (min(2, shape[0]),)
    if tuple(q.batch_shape) != batch or len(q.event_shape) != 1:
        raise ValueError(
            f"posterior(pseudo_inputs[:2]): wanted batch shape {batch} and event shape (D,), "
            f"got {tuple(q.batch_shape)} and {tuple(q.event_shape)}"
        )
