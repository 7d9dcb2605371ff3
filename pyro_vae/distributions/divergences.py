"""KL divergences in closed form that torch and Pyro lack, and a check whether a pair has one.

With these, every pair among the diagonal, full-rank and low-rank normals has a closed form.
"""

import math

import torch
from torch.distributions import (
    Distribution,
    Independent,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    kl_divergence,
    register_kl,
)


def has_closed_form_kl(q: Distribution, p: Distribution) -> bool:
    """Return whether KL(q ‖ p) is computed exactly. If not, an estimator has to sample log q(z) − log p(z).

    >>> import pyro.distributions as dist
    >>> p = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    >>> q = dist.MultivariateNormal(torch.zeros(2), torch.eye(2))
    >>> mixture = dist.MixtureSameFamily(dist.Categorical(torch.ones(3)), q.expand([3]))
    >>> has_closed_form_kl(q, p), has_closed_form_kl(q, mixture)
    (True, False)
    """
    try:
        with torch.no_grad():
            kl_divergence(q, p)
    except NotImplementedError:
        return False
    return True


@register_kl(MultivariateNormal, Independent)
@register_kl(LowRankMultivariateNormal, Independent)
def _kl_normal_diagonal(q: MultivariateNormal | LowRankMultivariateNormal, p: Independent) -> torch.Tensor:
    """Return KL = −H(q) + Σ_d ½ [(σ²_q + (μ_q − μ_p)²) / σ²_p + ln 2π] + ln σ_p, for a diagonal p."""
    loc, scale = _diagonal(p, q)
    cross = 0.5 * ((q.variance + (q.mean - loc).pow(2)) / scale.pow(2) + math.log(2 * math.pi)) + scale.log()
    return cross.sum(-1) - q.entropy()


@register_kl(Independent, LowRankMultivariateNormal)
def _kl_diagonal_lowrank(q: Independent, p: LowRankMultivariateNormal) -> torch.Tensor:
    """Return KL = −H(q) − ln p(μ_q) + ½ Σ_d (Σ_p⁻¹)_dd σ²_q, for a diagonal q."""
    loc, scale = _diagonal(q, p)
    precision = p.precision_matrix.diagonal(dim1=-2, dim2=-1)
    return 0.5 * (precision * scale.pow(2)).sum(-1) - p.log_prob(loc) - q.entropy()


def _diagonal(diagonal: Independent, other: Distribution) -> tuple[torch.Tensor, torch.Tensor]:
    if not isinstance(diagonal.base_dist, Normal) or diagonal.reinterpreted_batch_ndims != 1:
        raise NotImplementedError
    if diagonal.event_shape != other.event_shape:
        raise ValueError(
            f"KL between codes of different size: event shapes {tuple(diagonal.event_shape)} and "
            f"{tuple(other.event_shape)}; give prior and guide the same latent"
        )
    return diagonal.base_dist.loc, diagonal.base_dist.scale
