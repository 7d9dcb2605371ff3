"""Bounds of several weights whose guide's gradient goes through the draws alone: twice reparameterised."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor

from pyro_vae.estimation.base import Estimator
from pyro_vae.estimation.description import Description, importance_weighted_bound, renyi_bound
from pyro_vae.tracing.messages import Site, masks
from pyro_vae.tracing.paths import GatedPaths, inner, leave_score_out, partial_derivatives
from pyro_vae.tracing.traces import Traces, common_scale, log_weights, sample_sites, spread


class DoublyReparameterized(Estimator):
    """L_K with a guide's gradient whose signal-to-noise ratio does not fall with K (Tucker et al. 2019).

        w̃_k = w_k / Σ_j w_j,    ∇_φ = Σ_k w̃_k² ∂log w_k/∂z_k ∂z_k/∂φ,    ∇_θ = Σ_k w̃_k ∇_θ log p(x, z_k)

    Parameters that model and guide share receive both. K = 1 is sticking-the-landing. Errors are those of
    ``ImportanceWeighted``.

    >>> from pyro_vae.linear_gaussian import LinearGaussian
    >>> import torch
    >>> program = LinearGaussian(torch.ones(3, 1))
    >>> DoublyReparameterized(K=5)(program.model, program.guide)(program.simulate(2)).backward()
    >>> bool(program.posterior.loc_bias.grad.abs() < 1e-5)  # the guide is exact
    True
    """

    def __init__(self, K: int, *, vectorize: bool | None = None):
        super().__init__(K, vectorize=vectorize)

    @property
    def description(self) -> Description:
        """L_K in value and gradient."""
        return Description.unbiased(importance_weighted_bound(self.num_particles), plain=True)

    def objective(self, model: Callable, guide: Callable, args: Sequence, kwargs: Mapping) -> tuple[Tensor, Tensor]:
        """Return L_K, and a surrogate in which the guide's paths have the weights w̃²."""
        return _objective(self, 0.0, model, guide, args, kwargs)


class RenyiBound(Estimator):
    """The Rényi bound of order α and K particles, by a doubly reparameterised gradient (Daudel et al. 2023).

        L = 1 / (1 − α) E log 1/K Σ_k w_k^(1 − α),    w̃_k = w_k^(1 − α) / Σ_j w_j^(1 − α),

        ∇_φ = Σ_k (α w̃_k + (1 − α) w̃_k²) ∂log w_k/∂z_k ∂z_k/∂φ,    ∇_θ = Σ_k w̃_k ∇_θ log p(x, z_k)

    The VR-IWAE bound. It grows with K and falls with α (Li & Turner 2016): α = 0 is L_K by
    ``DoublyReparameterized``, and α → 1 the ELBO by ``StickingTheLanding``. Raises ValueError unless 0 ≤ α < 1; other
    errors are those of ``ImportanceWeighted``.

    >>> from pyro_vae.linear_gaussian import LinearGaussian
    >>> import torch
    >>> program = LinearGaussian(torch.ones(3, 1))
    >>> RenyiBound(alpha=0.5, K=5)(program.model, program.guide)(program.simulate(2)).backward()
    >>> bool(program.posterior.loc_bias.grad.abs() < 1e-5)  # the guide is exact
    True
    """

    def __init__(self, alpha: float, K: int, *, vectorize: bool | None = None):
        super().__init__(K, vectorize=vectorize)
        if not 0 <= alpha < 1:
            raise ValueError(f"alpha: wanted a number from 0 to below 1, got {alpha}; for 1 take StickingTheLanding(K)")
        self.alpha = float(alpha)

    @property
    def description(self) -> Description:
        """The Rényi bound in value and gradient."""
        return Description.unbiased(renyi_bound(self.alpha, self.num_particles), plain=True)

    def objective(self, model: Callable, guide: Callable, args: Sequence, kwargs: Mapping) -> tuple[Tensor, Tensor]:
        """Return the bound, and a surrogate in which the guide's paths have the weights α w̃ + (1 − α) w̃²."""
        return _objective(self, self.alpha, model, guide, args, kwargs)


class Gated(NamedTuple):
    """A run without the score of q, whose paths are shut until the bound has its value.

    Attributes:
        paths: of the guide's draws.
        traces: those of model and guide.
        plate: over the images.
        scale: of the images.
        log_w: log weights (K, images).
    """

    paths: GatedPaths
    traces: Traces
    plate: CondIndepStackFrame
    scale: Any
    log_w: Tensor


def gated(estimator: Estimator, model: Callable, guide: Callable, args: Sequence, kwargs: Mapping) -> Gated:
    """Run model and guide for an estimator whose guide's gradient goes through the draws alone."""
    paths = GatedPaths()
    traces = estimator._get_trace(model, guide, args, kwargs, paths)
    plate = estimator._plate(model, guide, args, kwargs, traces)
    scale = common_scale(*traces, plate=plate)
    leave_score_out(traces[1])
    return Gated(paths, traces, plate, scale, log_weights(*traces, plate=plate))


def without_score(share: Tensor, scale: Any, site: Site, plate: CondIndepStackFrame) -> Tensor:
    """Return w̃² − w̃, what a path has instead of the score of q: nothing where the site is masked, and has no score."""
    difference = spread((share.square() - share) * scale, site, plate)
    for mask in masks(site):
        difference = torch.where(mask, difference, 0.0)
    return difference


def _objective(
    estimator: Estimator, alpha: float, model: Callable, guide: Callable, args: Sequence, kwargs: Mapping
) -> tuple[Tensor, Tensor]:
    paths, (_, guide_trace), plate, scale, log_w = gated(estimator, model, guide, args, kwargs)
    tempered = (1 - alpha) * log_w.detach()
    share = tempered.softmax(0)
    surrogate = (share * scale * log_w).sum()
    if estimator.num_particles > 1:
        # The paths have the model's weights so far; the difference is added: w̃ + (1 − α)(w̃² − w̃) = α w̃ + (1 − α) w̃².
        sites = sample_sites(guide_trace)
        for name, slope in partial_derivatives(log_w.sum(), guide_trace).items():
            difference = without_score(share, (1 - alpha) * scale, sites[name], plate)
            surrogate = surrogate + inner(difference * slope, sites[name]).sum()
    paths.open()
    bounds = (tempered.logsumexp(0) - math.log(estimator.num_particles)) / (1 - alpha)
    return (bounds * scale).sum(), surrogate
