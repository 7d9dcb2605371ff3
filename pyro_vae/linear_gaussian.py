"""The program whose every answer is known: probabilistic principal component analysis (Tipping & Bishop 1999).

    p(z) = N(z; 0, I),   p(x | z) = N(x; W z + b, s² I),   z of D dimensions, x of P,

so that, with the residual r = x − b and the precision Λ = I + WᵀW / s² of the posterior,

    p(x) = N(x; b, W Wᵀ + s² I),   p(z | x) = N(z; Λ⁻¹ Wᵀ r / s², Λ⁻¹).

What estimates a bound, its gradient or the evidence is tested against this module, in float64.
"""

import math
from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae.distributions.families import LowRankMultivariateNormal, MultivariateNormal
from pyro_vae.random import without_autocast
from pyro_vae.sites import parameter_sites


class LinearGaussian(nn.Module):
    """Probabilistic PCA as a Pyro program: sites "z" and "x" in the plate "images" at dim −1.

    Args:
        weight: W, shape (P, D). Its dtype is the program's.
        bias: b, shape (P,); zero if not given.
        scale: s > 0, the standard deviation of every pixel.
        posterior: the guide, a module from x to q(z | x), as ``LinearPosterior``; the exact posterior at the values
            of W, b and s given here if there is none.
        shape: event shape of x, whose product is P; ``(P,)`` if not given.

    ``weight``, ``bias`` and ``log_scale`` are parameters, and so are those of the guide.

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
            raise ValueError(f"weight has shape {tuple(weight.shape)}, wanted (pixels, latent): torch.randn(5, 2)")
        self.shape = torch.Size(shape or weight.shape[:1])
        if self.shape.numel() != len(weight):
            raise ValueError(
                f"shape {tuple(self.shape)} of x does not match weight, which has {len(weight)} rows (pixels)"
            )
        if not scale > 0:
            raise ValueError(f"scale is {scale}, wanted a positive number, as in scale=0.5")
        bias = weight.new_zeros(len(weight)) if bias is None else bias
        self.weight = nn.Parameter(weight.detach().clone())
        self.bias = nn.Parameter(bias.detach().clone())
        self.log_scale = nn.Parameter(weight.new_tensor(math.log(scale)))
        self.posterior = exact_guide(self) if posterior is None else posterior

    @property
    def latent(self) -> int:
        """D, the number of dimensions of z."""
        return self.weight.shape[1]

    def prior(self) -> dist.Distribution:
        """p(z) = N(0, I): batch (), event (D,)."""
        zeros = self.weight.new_zeros(self.latent)
        return dist.Normal(zeros, torch.ones_like(zeros)).to_event(1)

    @without_autocast()
    def likelihood(self, z: Tensor) -> dist.Distribution:
        """p(x | z) = N(W z + b, s² I): batch z.shape[:-1], event ``shape``."""
        loc = z @ self.weight.T + self.bias
        return dist.Normal(loc.reshape(z.shape[:-1] + self.shape), self.log_scale.exp()).to_event(len(self.shape))

    def model(self, x: Tensor | None = None, n: int = 1) -> Tensor:
        """p(x, z), for x of shape (B, *shape); without x, n images are drawn."""
        parameter_sites(self, recurse=False)
        with pyro.plate("images", n if x is None else len(x)):
            z = pyro.sample("z", self.prior())
            return pyro.sample("x", self.likelihood(z), obs=x)

    def guide(self, x: Tensor) -> Tensor:
        """q(z | x)."""
        parameter_sites(self.posterior)
        with pyro.plate("images", len(x)):
            return pyro.sample("z", self.posterior(x))

    def observe(self, pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """x = g / 255 from grey levels g of shape (B, *shape)."""
        return pixels.to(self.weight.dtype) / 255

    @torch.no_grad()
    def simulate(self, n: int) -> Tensor:
        """n images x ~ p(x), shape (n, *shape)."""
        return self.likelihood(self.prior().sample((n,))).sample()

    @without_autocast()
    def log_px(self, x: Tensor) -> Tensor:
        """log p(x) = log N(x; b, W Wᵀ + s² I), shape (B,), in nats; O(P D²) for each call."""
        variance = (2 * self.log_scale).exp().expand(len(self.weight))
        return LowRankMultivariateNormal(self.bias, self.weight, variance).log_prob(self._flat(x))

    @without_autocast()
    def exact_posterior(self, x: Tensor) -> dist.MultivariateNormal:
        """p(z | x): batch (B,), event (D,)."""
        loc = torch.linalg.solve(self.precision(), self.weight.T @ (self._flat(x) - self.bias).T).T
        return MultivariateNormal(loc / self._variance(), precision_matrix=self.precision())

    @without_autocast()
    def precision(self) -> Tensor:
        """Λ = I + WᵀW / s², the inverse covariance of p(z | x), shape (D, D)."""
        return torch.eye(self.latent).to(self.weight) + self.weight.T @ self.weight / self._variance()

    @without_autocast()
    def elbo(self, x: Tensor, q: dist.Distribution | None = None) -> Tensor:
        """The exact ELBO of a Gaussian q(z | x), the guide's if not given: shape (B,), nats per image.

            E_q log p(x | z) = −P/2 log 2πs² − (|x − b − W m|² + tr W S Wᵀ) / 2s²
            KL(q ‖ p)        = (tr S + |m|² − D − log det S) / 2                       for q = N(m, S).

        It is differentiable in the parameters of the program and of q, so that autograd gives its exact gradient.
        """
        loc, covariance = _moments(self.posterior(x) if q is None else q)
        residual = self._flat(x) - self.bias - loc @ self.weight.T
        spread = _diagonal(self.weight @ covariance @ self.weight.T).sum(-1)
        log_likelihood = -0.5 * (residual.square().sum(-1) + spread) / self._variance()
        log_likelihood = log_likelihood - len(self.weight) * (self.log_scale + 0.5 * math.log(2 * math.pi))
        kl = _diagonal(covariance).sum(-1) + loc.square().sum(-1) - self.latent - torch.logdet(covariance)
        return log_likelihood - 0.5 * kl

    def _variance(self) -> Tensor:
        return (2 * self.log_scale).exp()

    def _flat(self, x: Tensor) -> Tensor:
        if x.shape[x.dim() - len(self.shape) :] != self.shape:
            raise ValueError(f"x has shape {tuple(x.shape)}, wanted (images, {', '.join(map(str, self.shape))})")
        return x.reshape(*x.shape[: x.dim() - len(self.shape)], -1)


class LinearPosterior(nn.Module):
    """q(z | x) = N(z; A x + c, S), with S = diag(exp(2 log_scale)) or S = L Lᵀ.

    Args:
        loc_weight: A, shape (D, P).
        loc_bias: c, shape (D,).
        log_scale: shape (D,), for a diagonal S.
        scale_tril: L, shape (D, D), lower triangular, for a full S. Just one of the two is given.

    >>> q = LinearPosterior(torch.zeros(1, 3), torch.zeros(1), log_scale=torch.zeros(1))
    >>> q(torch.zeros(5, 3)).batch_shape
    torch.Size([5])
    """

    def __init__(
        self, loc_weight: Tensor, loc_bias: Tensor, log_scale: Tensor | None = None, scale_tril: Tensor | None = None
    ):
        super().__init__()
        if (log_scale is None) == (scale_tril is None):
            raise ValueError("give either log_scale (a diagonal covariance) or scale_tril (a full one)")
        self.loc_weight = nn.Parameter(loc_weight.detach().clone())
        self.loc_bias = nn.Parameter(loc_bias.detach().clone())
        self.diagonal = scale_tril is None
        if self.diagonal:
            self.log_scale = nn.Parameter(log_scale.detach().clone())
        else:
            self.scale_tril = nn.Parameter(scale_tril.detach().clone())

    @without_autocast()
    def forward(self, x: Tensor) -> dist.Distribution:
        """x of shape (B, *shape) -> q(z | x): batch (B,), event (D,)."""
        loc = x.reshape(len(x), -1) @ self.loc_weight.T + self.loc_bias
        if self.diagonal:
            return dist.Normal(loc, self.log_scale.exp()).to_event(1)
        return MultivariateNormal(loc, scale_tril=self.scale_tril.tril())


@torch.no_grad()
@without_autocast()
def exact_guide(program: LinearGaussian) -> LinearPosterior:
    """The exact posterior p(z | x) at the present parameters, as a guide with parameters of its own.

    >>> program = LinearGaussian(torch.randn(3, 2))
    >>> program.posterior = exact_guide(program)
    """
    loc_weight, loc_bias = _posterior_mean(program)
    covariance = torch.linalg.inv(program.precision())
    return LinearPosterior(loc_weight, loc_bias, scale_tril=torch.linalg.cholesky(covariance))


@torch.no_grad()
@without_autocast()
def mean_field_guide(program: LinearGaussian) -> LinearPosterior:
    """The best factorised guide: the exact mean and variances 1 / Λ_dd (Bishop 2006, 10.1.2).

    It is the exact posterior where WᵀW is diagonal, as in a program by ``maximum_likelihood``.

    >>> program = LinearGaussian(torch.eye(2))
    >>> program.posterior = mean_field_guide(program)
    """
    loc_weight, loc_bias = _posterior_mean(program)
    return LinearPosterior(loc_weight, loc_bias, log_scale=-0.5 * _diagonal(program.precision()).log())


@torch.no_grad()
@without_autocast()
def maximum_likelihood(x: Tensor, latent: int) -> LinearGaussian:
    """The program that maximises Σ log p(x) (Tipping & Bishop 1999, section 3.2), with its exact guide.

        b = mean x,   s² = mean of the P − D smallest eigenvalues of the sample covariance,   W = U_D (Λ_D − s² I)^½

    W is determined up to a rotation of z; WᵀW is diagonal here. x has shape (B, *shape).
    Raises ValueError unless 0 < latent < P and the images leave some variance to s².

    >>> program = maximum_likelihood(torch.randn(50, 4), latent=2)
    >>> program.weight.shape
    torch.Size([4, 2])
    """
    flat = x.reshape(len(x), -1)
    if not 0 < latent < flat.shape[1]:
        raise ValueError(f"latent is {latent}, wanted 1 to {flat.shape[1] - 1}, less than the number of pixels")
    bias = flat.mean(0)
    eigenvalues, vectors = torch.linalg.eigh((flat - bias).T @ (flat - bias) / len(flat))
    variance = eigenvalues[:-latent].mean()
    if not variance > 0:
        raise ValueError(f"the images vary in no more than {latent} directions, so s² = 0; give more or other images")
    weight = vectors[:, -latent:] * (eigenvalues[-latent:] - variance).clamp(min=0).sqrt()
    return LinearGaussian(weight.flip(1), bias, float(variance.sqrt()), shape=x.shape[1:])


@torch.no_grad()
@without_autocast()
def trace_elbo_variance(program: LinearGaussian, x: Tensor, particles: int = 1) -> dict[str, Tensor]:
    """Variance of each entry of the gradient of L^A (``Trace_ELBO``), summed over images, where q is exact.

    With z = m + L ε and S = L Lᵀ, log w = log p(x) whatever z is, so that of the total derivative only the score of q
    remains, at every image:

        ∂/∂m = −L⁻ᵀ ε                      variance of entry i:    Λ_ii              (2 where p(z) = N(0, 1) = p(x | z))
        ∂/∂L = −L⁻ᵀ (ε εᵀ − I)             variance of entry ij:   Λ_ii + (L⁻ᵀ)_ij²
        ∂/∂log σ_d = −(ε_d² − 1)           variance: 2

    Images are independent and share parameters: m = A x + c adds Σ_n x_np² Λ_dd for A_dp. The model's part is that
    of ``model_variance``. Names are those of ``program.named_parameters()``; ``particles`` divide every variance.

    Raises ValueError where the guide is not a ``LinearPosterior`` equal to the exact posterior.

    >>> program = LinearGaussian(torch.ones(1, 1))
    >>> trace_elbo_variance(program, torch.zeros(1, 1))["posterior.loc_bias"]
    tensor([2.0000])
    """
    scale = _exact_scale_tril(program, x)
    inverse = torch.linalg.inv(scale).T
    loc = inverse.square().sum(-1).expand(len(x), -1)
    tril = (loc.unsqueeze(-1) + inverse.square()).sum(0)
    return _variances(program, x, loc, tril, particles)


@torch.no_grad()
@without_autocast()
def mean_field_elbo_variance(program: LinearGaussian, x: Tensor, particles: int = 1) -> dict[str, Tensor]:
    """Variance of each entry of the gradient of L^B (``TraceMeanField_ELBO``), summed over images, where q is exact.

    The KL and its gradient are constants; ∂ log p(x | z)/∂z = Wᵀ(r − W z) / s² = m − M L ε, with M = Λ − I, so that

        ∂/∂m = −M L ε + constant           variance of entry i:    (M S M)_ii       (½ where p(z) = N(0, 1) = p(x | z))
        ∂/∂L = (m − M L ε) εᵀ + constant   variance of entry ij:   m_i² + (M S M)_ii + (M L)_ij²
        ∂/∂log σ_d                         variance: σ_d² (m_d² + 2 M_dd² σ_d²)

    Arguments, result and errors are those of ``trace_elbo_variance``.

    >>> program = LinearGaussian(torch.ones(1, 1))
    >>> mean_field_elbo_variance(program, torch.zeros(1, 1))["posterior.loc_bias"]
    tensor([0.5000])
    """
    scale = _exact_scale_tril(program, x)
    pull = (program.precision() - torch.eye(program.latent).to(x)) @ scale
    loc = pull.square().sum(-1).expand(len(x), -1)
    mean = program.exact_posterior(x).mean
    tril = (mean.square().unsqueeze(-1) + loc.unsqueeze(-1) + pull.square()).sum(0)
    return _variances(program, x, loc, tril, particles)


@torch.no_grad()
@without_autocast()
def path_variance(program: LinearGaussian, x: Tensor, particles: int = 1) -> dict[str, Tensor]:
    """Variance of each entry of the gradient of sticking-the-landing, summed over images, where q is exact.

    Zero for the guide: log w is constant in z, and the score is left out (Roeder et al. 2017). The model's part is
    that of the other estimators. Arguments, result and errors are those of ``trace_elbo_variance``.

    >>> program = LinearGaussian(torch.ones(1, 1))
    >>> path_variance(program, torch.zeros(1, 1))["posterior.loc_bias"]
    tensor([0.])
    """
    scale = _exact_scale_tril(program, x)
    return _variances(program, x, x.new_zeros(len(x), program.latent), torch.zeros_like(scale), particles)


@torch.no_grad()
@without_autocast()
def model_variance(program: LinearGaussian, x: Tensor, particles: int = 1) -> dict[str, Tensor]:
    """Variance of each entry of the gradient of log p(x, z), z ~ p(z | x), in W, b and log s, summed over images.

    With r = x − b − W z, which given x is Gaussian of mean r̄ and covariance V = W S Wᵀ, and C = Cov(r, z) = −W S:

        ∂/∂W = r zᵀ / s²           variance:  (r̄_p² S_dd + m_d² V_pp + 2 r̄_p m_d C_pd + V_pp S_dd + C_pd²) / s⁴
        ∂/∂b = r / s²              variance:  V_pp / s⁴
        ∂/∂log s = |r|² / s² − P   variance:  (2 tr V² + 4 r̄ᵀ V r̄) / s⁴

    >>> model_variance(LinearGaussian(torch.ones(1, 1)), torch.zeros(1, 1))["bias"]
    tensor([0.5000])
    """
    posterior = program.exact_posterior(x)
    mean, covariance = posterior.mean, torch.linalg.inv(program.precision())
    residual = program._flat(x) - program.bias - mean @ program.weight.T
    spread = program.weight @ covariance @ program.weight.T
    cross = -program.weight @ covariance
    z_variance, r_variance = _diagonal(covariance), _diagonal(spread)
    weight = (
        residual.square().sum(0).unsqueeze(-1) * z_variance
        + r_variance.unsqueeze(-1) * mean.square().sum(0)
        + 2 * (residual.T @ mean) * cross
        + len(x) * (r_variance.unsqueeze(-1) * z_variance + cross.square())
    )
    log_scale = 2 * len(x) * spread.square().sum() + 4 * ((residual @ spread) * residual).sum()
    variances = {"weight": weight, "bias": len(x) * r_variance, "log_scale": log_scale}
    return {name: variance / program._variance() ** 2 / particles for name, variance in variances.items()}


def _variances(program: LinearGaussian, x: Tensor, loc: Tensor, tril: Tensor, particles: int) -> dict[str, Tensor]:
    """From the variances for m, (B, D), and for L summed over images, (D, D), to those of the program's parameters."""
    variances = {"loc_weight": loc.T @ program._flat(x).square(), "loc_bias": loc.sum(0)}
    if program.posterior.diagonal:
        variances["log_scale"] = (2 * program.posterior.log_scale).exp() * _diagonal(tril)
    else:
        variances["scale_tril"] = tril.tril()
    guide = {f"posterior.{name}": variance / particles for name, variance in variances.items()}
    return model_variance(program, x, particles) | guide


def _exact_scale_tril(program: LinearGaussian, x: Tensor) -> Tensor:
    """L with L Lᵀ = Λ⁻¹; ValueError where the guide is not the exact posterior of x."""
    if not isinstance(program.posterior, LinearPosterior):
        raise ValueError(f"the guide is a {type(program.posterior).__name__}, wanted exact_guide(program)")
    (loc, covariance), exact = _moments(program.posterior(x)), program.exact_posterior(x)
    error = max((loc - exact.mean).abs().max(), (covariance - exact.covariance_matrix).abs().max())
    if error > 1e3 * torch.finfo(x.dtype).eps:
        raise ValueError(
            f"the guide is not the exact posterior (its moments differ by {error:.1e}), so that the variance has no "
            "closed form here; set program.posterior = exact_guide(program)"
        )
    return torch.linalg.cholesky(torch.linalg.inv(program.precision()))


def _posterior_mean(program: LinearGaussian) -> tuple[Tensor, Tensor]:
    """A and c of the posterior mean A x + c."""
    loc_weight = torch.linalg.solve(program.precision(), program.weight.T) / program._variance()
    return loc_weight, -loc_weight @ program.bias


def _moments(q: dist.Distribution) -> tuple[Tensor, Tensor]:
    """Mean (B, D) and covariance (B, D, D) of a Gaussian: ``Normal(...).to_event(1)`` or ``MultivariateNormal``."""
    if isinstance(q, torch.distributions.MultivariateNormal | torch.distributions.LowRankMultivariateNormal):
        return q.mean, q.covariance_matrix
    base = q.base_dist if isinstance(q, torch.distributions.Independent) else q
    if not isinstance(base, torch.distributions.Normal):
        raise ValueError(f"q is {q}, wanted a Gaussian: Normal(loc, scale).to_event(1) or a MultivariateNormal")
    return q.mean, torch.diag_embed(q.variance)


def _diagonal(matrix: Tensor) -> Tensor:
    return matrix.diagonal(dim1=-2, dim2=-1)
