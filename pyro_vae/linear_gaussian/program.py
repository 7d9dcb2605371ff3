"""Probabilistic principal component analysis as a Pyro program (Tipping & Bishop 1999).

    p(z) = N(z; 0, I),   p(x | z) = N(x; W z + b, s² I),   z of D dimensions, x of P,

so that, with the residual r = x − b and the precision Λ = I + WᵀW / s² of the posterior,

    p(x) = N(x; b, W Wᵀ + s² I),   p(z | x) = N(z; Λ⁻¹ Wᵀ r / s², Λ⁻¹).

Everything that estimates a bound, its gradient or the evidence is tested against this program, in float64.
"""

import math
from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_vae.construction import Constructed
from pyro_vae.distributions.families import LowRankMultivariateNormal, MultivariateNormal
from pyro_vae.random import without_autocast
from pyro_vae.sites import parameter_sites


class LinearGaussian(Constructed):
    """Probabilistic PCA as a Pyro program: sites "z" and "x" in the plate "images" at dim −1.

    Args:
        weight: W, shape (P, D). Its dtype is the program's.
        bias: b, shape (P,); the default is zero.
        scale: s > 0, the standard deviation of every pixel.
        posterior: the guide, a module from x to q(z | x), such as ``LinearPosterior``. The default is the exact
            posterior at the given values of W, b and s.
        shape: event shape of x, whose product is P; the default is ``(P,)``.

    ``weight``, ``bias`` and ``log_scale`` are parameters, as are those of the guide.

    >>> program = LinearGaussian(torch.tensor([[1.0], [2.0]]), scale=0.5)
    >>> x = program.simulate(3)
    >>> torch.allclose(program.elbo(x), program.log_px(x), atol=1e-5)  # the guide is exact
    True
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        scale: float = 1.0,
        posterior: nn.Module | None = None,
        shape: Sequence[int] | None = None,
    ):
        super().__init__()
        if weight.dim() != 2:
            raise ValueError(
                f"weight: wanted (pixels, latent), got shape {tuple(weight.shape)}; write e.g. torch.randn(5, 2)"
            )
        self.shape = torch.Size(shape or weight.shape[:1])
        if self.shape.numel() != len(weight):
            raise ValueError(f"shape: wanted {len(weight)} pixels, the rows of weight, got {tuple(self.shape)}")
        if not scale > 0:
            raise ValueError(f"scale: wanted a positive number, got {scale}; write e.g. scale=0.5")
        bias = weight.new_zeros(len(weight)) if bias is None else bias
        self.weight = nn.Parameter(weight.detach().clone())
        self.bias = nn.Parameter(bias.detach().clone())
        self.log_scale = nn.Parameter(weight.new_tensor(math.log(scale)))
        self.posterior = exact_guide(self) if posterior is None else posterior

    @property
    def latent(self) -> int:
        """D, the number of dimensions of z."""
        return self.weight.shape[1]

    def prior(self) -> dist.Independent:
        """Return p(z) = N(0, I): batch (), event (D,)."""
        zeros = self.weight.new_zeros(self.latent)
        return dist.Normal(zeros, torch.ones_like(zeros)).to_event(1)

    @without_autocast()
    def likelihood(self, z: Tensor) -> dist.Independent:
        """Return p(x | z) = N(W z + b, s² I): batch z.shape[:-1], event ``shape``."""
        loc = z @ self.weight.T + self.bias
        return dist.Normal(loc.reshape(z.shape[:-1] + self.shape), self.log_scale.exp()).to_event(len(self.shape))

    def model(self, x: Tensor | None = None, n: int = 1) -> Tensor:
        """Sample p(x, z) for x of shape (B, *shape); without x draw n images. Return x."""
        parameter_sites(self, recurse=False)
        with pyro.plate("images", n if x is None else len(x)):
            z = pyro.sample("z", self.prior())
            return pyro.sample("x", self.likelihood(z), obs=x)

    def guide(self, x: Tensor) -> Tensor:
        """Sample q(z | x) and return z, shape (B, D)."""
        parameter_sites(self.posterior)
        with pyro.plate("images", len(x)):
            return pyro.sample("z", self.posterior(x))

    def observe(self, pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return x = g / 255 from grey levels g of shape (B, *shape)."""
        return pixels.to(self.weight.dtype) / 255

    @torch.no_grad()
    def simulate(self, n: int) -> Tensor:
        """Draw n images x ~ p(x), shape (n, *shape)."""
        return self.likelihood(self.prior().sample((n,))).sample()

    @without_autocast()
    def log_px(self, x: Tensor) -> Tensor:
        """Return log p(x) = log N(x; b, W Wᵀ + s² I), shape (B,), in nats; O(P D²) in each call."""
        variance = (2 * self.log_scale).exp().expand(len(self.weight))
        return LowRankMultivariateNormal(self.bias, self.weight, variance).log_prob(self.flat(x))

    @without_autocast()
    def exact_posterior(self, x: Tensor) -> dist.MultivariateNormal:
        """Return p(z | x): batch (B,), event (D,)."""
        loc = torch.linalg.solve(self.precision(), self.weight.T @ (self.flat(x) - self.bias).T).T
        return MultivariateNormal(loc / self.variance(), precision_matrix=self.precision())

    @without_autocast()
    def precision(self) -> Tensor:
        """Return Λ = I + WᵀW / s², the inverse covariance of p(z | x), shape (D, D)."""
        return torch.eye(self.latent).to(self.weight) + self.weight.T @ self.weight / self.variance()

    @without_autocast()
    def elbo(self, x: Tensor, q: Distribution | None = None) -> Tensor:
        """Return the exact ELBO of a Gaussian q(z | x), by default the guide's: shape (B,), nats per image.

            E_q log p(x | z) = −P/2 log 2πs² − (|x − b − W m|² + tr W S Wᵀ) / 2s²
            KL(q ‖ p)        = (tr S + |m|² − D − log det S) / 2                       for q = N(m, S).

        It is differentiable in the parameters of the program and of q, so that autograd gives its exact gradient.
        """
        loc, covariance = moments(self.posterior(x) if q is None else q)
        residual = self.flat(x) - self.bias - loc @ self.weight.T
        spread = diagonal(self.weight @ covariance @ self.weight.T).sum(-1)
        log_likelihood = -0.5 * (residual.square().sum(-1) + spread) / self.variance()
        log_likelihood = log_likelihood - len(self.weight) * (self.log_scale + 0.5 * math.log(2 * math.pi))
        kl = diagonal(covariance).sum(-1) + loc.square().sum(-1) - self.latent - torch.logdet(covariance)
        return log_likelihood - 0.5 * kl

    def variance(self) -> Tensor:
        """Return s²."""
        return (2 * self.log_scale).exp()

    def flat(self, x: Tensor) -> Tensor:
        """Return x of shape (B, *shape) as (B, P)."""
        if x.shape[x.dim() - len(self.shape) :] != self.shape:
            raise ValueError(f"x: wanted shape (images, {', '.join(map(str, self.shape))}), got {tuple(x.shape)}")
        return x.reshape(*x.shape[: x.dim() - len(self.shape)], -1)


class LinearPosterior(Constructed):
    """q(z | x) = N(z; A x + c, S), with S = diag(exp(2 log_scale)) or S = L Lᵀ.

    Args:
        loc_weight: A, shape (D, P).
        loc_bias: c, shape (D,).
        log_scale: shape (D,), for a diagonal S.
        scale_tril: L, shape (D, D), lower triangular, for a full S. Exactly one of the two must be given.

    >>> q = LinearPosterior(torch.zeros(1, 3), torch.zeros(1), log_scale=torch.zeros(1))
    >>> q(torch.zeros(5, 3)).batch_shape
    torch.Size([5])
    """

    def __init__(
        self, loc_weight: Tensor, loc_bias: Tensor, log_scale: Tensor | None = None, scale_tril: Tensor | None = None
    ):
        super().__init__()
        if (log_scale is None) == (scale_tril is None):
            raise ValueError(
                "log_scale, scale_tril: wanted one of them, for a diagonal or a full covariance, got both or none"
            )
        self.loc_weight = nn.Parameter(loc_weight.detach().clone())
        self.loc_bias = nn.Parameter(loc_bias.detach().clone())
        self.diagonal = scale_tril is None
        if log_scale is not None:
            self.log_scale = nn.Parameter(log_scale.detach().clone())
        if scale_tril is not None:
            self.scale_tril = nn.Parameter(scale_tril.detach().clone())

    @without_autocast()
    def forward(self, x: Tensor) -> dist.TorchDistribution:
        """Return q(z | x) for x of shape (B, *shape): batch (B,), event (D,)."""
        loc = x.reshape(x.shape[0], -1) @ self.loc_weight.T + self.loc_bias
        if self.diagonal:
            return dist.Normal(loc, self.log_scale.exp()).to_event(1)
        return MultivariateNormal(loc, scale_tril=self.scale_tril.tril())


@torch.no_grad()
@without_autocast()
def exact_guide(program: LinearGaussian) -> LinearPosterior:
    """Return the exact posterior p(z | x) at the current parameters, as a guide with parameters of its own.

    >>> program = LinearGaussian(torch.randn(3, 2))
    >>> program.posterior = exact_guide(program)
    """
    loc_weight, loc_bias = _posterior_mean(program)
    covariance = torch.linalg.inv(program.precision())
    return LinearPosterior(loc_weight, loc_bias, scale_tril=torch.linalg.cholesky(covariance))


@torch.no_grad()
@without_autocast()
def mean_field_guide(program: LinearGaussian) -> LinearPosterior:
    """Return the best factorised guide: the exact mean and variances 1 / Λ_dd (Bishop 2006, 10.1.2).

    It is the exact posterior if WᵀW is diagonal, as in the programs that ``maximum_likelihood`` returns.

    >>> program = LinearGaussian(torch.eye(2))
    >>> program.posterior = mean_field_guide(program)
    """
    loc_weight, loc_bias = _posterior_mean(program)
    return LinearPosterior(loc_weight, loc_bias, log_scale=-0.5 * diagonal(program.precision()).log())


@torch.no_grad()
@without_autocast()
def maximum_likelihood(x: Tensor, latent: int) -> LinearGaussian:
    """Return the program that maximises Σ log p(x) (Tipping & Bishop 1999, section 3.2), with its exact guide.

        b = mean x,   s² = mean of the P − D smallest eigenvalues of the sample covariance,   W = U_D (Λ_D − s² I)^½

    W is determined up to a rotation of z; WᵀW is diagonal here. x has shape (B, *shape). Raises ValueError unless 0 <
    latent < P and the images leave some variance to s².

    >>> program = maximum_likelihood(torch.randn(50, 4), latent=2)
    >>> program.weight.shape
    torch.Size([4, 2])
    """
    flat = x.reshape(len(x), -1)
    if not 0 < latent < flat.shape[1]:
        raise ValueError(f"latent: wanted 1 to {flat.shape[1] - 1}, less than the number of pixels, got {latent}")
    bias = flat.mean(0)
    eigenvalues, vectors = torch.linalg.eigh((flat - bias).T @ (flat - bias) / len(flat))
    variance = eigenvalues[:-latent].mean()
    if not variance > 0:
        raise ValueError(f"x: the images vary in at most {latent} directions, so s² = 0; give more or other images")
    weight = vectors[:, -latent:] * (eigenvalues[-latent:] - variance).clamp(min=0).sqrt()
    return LinearGaussian(weight.flip(1), bias, float(variance.sqrt()), shape=x.shape[1:])


def _posterior_mean(program: LinearGaussian) -> tuple[Tensor, Tensor]:
    """Return A and c of the posterior mean A x + c."""
    loc_weight = torch.linalg.solve(program.precision(), program.weight.T) / program.variance()
    return loc_weight, -loc_weight @ program.bias


def moments(q: Distribution) -> tuple[Tensor, Tensor]:
    """Return mean (B, D) and covariance (B, D, D) of a Gaussian; raise ValueError for any other distribution."""
    if isinstance(q, torch.distributions.MultivariateNormal | torch.distributions.LowRankMultivariateNormal):
        return q.mean, q.covariance_matrix
    base = q.base_dist if isinstance(q, torch.distributions.Independent) else q
    if not isinstance(base, torch.distributions.Normal):
        raise ValueError(f"q: wanted a Gaussian, Normal(loc, scale).to_event(1) or a MultivariateNormal, got {q}")
    return q.mean, torch.diag_embed(q.variance)


def diagonal(matrix: Tensor) -> Tensor:
    """Return the diagonals of matrices (..., D, D), shape (..., D)."""
    return matrix.diagonal(dim1=-2, dim2=-1)
