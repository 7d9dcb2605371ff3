"""Variances of gradient estimators in closed form, for the linear Gaussian program."""

from typing import Any

import torch
from torch import Tensor

from pyro_vae.linear_gaussian.program import LinearGaussian, LinearPosterior, diagonal, moments
from pyro_vae.random import without_autocast


@torch.no_grad()
@without_autocast()
def trace_elbo_variance(program: LinearGaussian, x: Tensor, particles: int = 1) -> dict[str, Tensor]:
    """Return the variance of each entry of the gradient of L^A (``Trace_ELBO``), summed over images, for an exact q.

    With z = m + L ε and S = L Lᵀ, log w = log p(x) for every z. Of the total derivative only the score of q remains, at
    every image:

        ∂/∂m = −L⁻ᵀ ε                      variance of entry i:    Λ_ii              (2 where p(z) = N(0, 1) = p(x | z))
        ∂/∂L = −L⁻ᵀ (ε εᵀ − I)             variance of entry ij:   Λ_ii + (L⁻ᵀ)_ij²
        ∂/∂log σ_d = −(ε_d² − 1)           variance: 2

    Images are independent and share parameters: m = A x + c adds Σ_n x_np² Λ_dd for A_dp. The model's part is
    ``model_variance``. Names are those of ``program.named_parameters()``; ``particles`` divides every variance.

    Raises ValueError if the guide is not a ``LinearPosterior`` equal to the exact posterior.

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
    """Return the variance of each entry of the gradient of L^B (``TraceMeanField_ELBO``), for an exact q.

    The variances are summed over images.

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
    """Return the variance of each entry of the gradient of sticking-the-landing, summed over images, for an exact q.

    It is zero for the guide: log w is constant in z, and the score is left out (Roeder et al. 2017). The model's part
    is the same as for the other estimators. Arguments, result and errors are those of ``trace_elbo_variance``.

    >>> program = LinearGaussian(torch.ones(1, 1))
    >>> path_variance(program, torch.zeros(1, 1))["posterior.loc_bias"]
    tensor([0.])
    """
    scale = _exact_scale_tril(program, x)
    return _variances(program, x, x.new_zeros(len(x), program.latent), torch.zeros_like(scale), particles)


@torch.no_grad()
@without_autocast()
def model_variance(program: LinearGaussian, x: Tensor, particles: int = 1) -> dict[str, Tensor]:
    """Return the variance of each entry of the gradient of log p(x, z), z ~ p(z | x), in W, b and log s.

    The variances are summed over images.

    With r = x − b − W z, which given x is Gaussian of mean r̄ and covariance V = W S Wᵀ, and C = Cov(r, z) = −W S:

        ∂/∂W = r zᵀ / s²           variance:  (r̄_p² S_dd + m_d² V_pp + 2 r̄_p m_d C_pd + V_pp S_dd + C_pd²) / s⁴
        ∂/∂b = r / s²              variance:  V_pp / s⁴
        ∂/∂log s = |r|² / s² − P   variance:  (2 tr V² + 4 r̄ᵀ V r̄) / s⁴

    >>> model_variance(LinearGaussian(torch.ones(1, 1)), torch.zeros(1, 1))["bias"]
    tensor([0.5000])
    """
    posterior = program.exact_posterior(x)
    mean, covariance = posterior.mean, torch.linalg.inv(program.precision())
    residual = program.flat(x) - program.bias - mean @ program.weight.T
    spread = program.weight @ covariance @ program.weight.T
    cross = -program.weight @ covariance
    z_variance, r_variance = diagonal(covariance), diagonal(spread)
    weight = (
        residual.square().sum(0).unsqueeze(-1) * z_variance
        + r_variance.unsqueeze(-1) * mean.square().sum(0)
        + 2 * (residual.T @ mean) * cross
        + len(x) * (r_variance.unsqueeze(-1) * z_variance + cross.square())
    )
    log_scale = 2 * len(x) * spread.square().sum() + 4 * ((residual @ spread) * residual).sum()
    variances = {"weight": weight, "bias": len(x) * r_variance, "log_scale": log_scale}
    return {name: variance / program.variance() ** 2 / particles for name, variance in variances.items()}


def _variances(program: LinearGaussian, x: Tensor, loc: Tensor, tril: Tensor, particles: int) -> dict[str, Tensor]:
    """Return the variances of the parameters from those of m, (B, D), and of L summed over images, (D, D)."""
    variances = {"loc_weight": loc.T @ program.flat(x).square(), "loc_bias": loc.sum(0)}
    posterior: Any = program.posterior
    if posterior.diagonal:
        variances["log_scale"] = (2 * posterior.log_scale).exp() * diagonal(tril)
    else:
        variances["scale_tril"] = tril.tril()
    guide = {f"posterior.{name}": variance / particles for name, variance in variances.items()}
    return model_variance(program, x, particles) | guide


def _exact_scale_tril(program: LinearGaussian, x: Tensor) -> Tensor:
    """Return L with L Lᵀ = Λ⁻¹; raise ValueError if the guide is not the exact posterior of x."""
    if not isinstance(program.posterior, LinearPosterior):
        raise ValueError(f"posterior: wanted exact_guide(program), got a {type(program.posterior).__name__}")
    (loc, covariance), exact = moments(program.posterior(x)), program.exact_posterior(x)
    error = max((loc - exact.mean).abs().max(), (covariance - exact.covariance_matrix).abs().max())
    if error > 1e3 * torch.finfo(x.dtype).eps:
        raise ValueError(
            f"posterior: it is not the exact one (its moments differ by {error:.1e}), so that the variance has no "
            "closed form here; set program.posterior = exact_guide(program)"
        )
    return torch.linalg.cholesky(torch.linalg.inv(program.precision()))
