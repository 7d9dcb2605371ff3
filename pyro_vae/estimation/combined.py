"""Bounds of several weights mixed with others: one for the guide and one for the model, or one with the ELBO."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from pyro_vae.checks import whole_number
from pyro_vae.estimation.base import Estimator
from pyro_vae.estimation.description import Description, importance_weighted_bound
from pyro_vae.tracing.paths import GatedPaths, inner, partial_derivatives
from pyro_vae.tracing.traces import common_scale, log_weights, per_image, sample_sites


class PIWAE(Estimator):
    """L_MK for the model and L_K over M groups for the guide, by the same M K particles (Rainforth et al. 2018).

        ∇_θ log 1/MK Σ_k w_k,    ∇_φ 1/M Σ_m log 1/K Σ_{k in group m} w_k

    The partially importance weighted autoencoder: the model has the tightest bound, and the guide one whose
    signal-to-noise ratio grows with M. The value is L_MK. M = 1 is ``ImportanceWeighted(K)``. Parameters that model and
    guide share receive both gradients. Raises ValueError as ``ImportanceWeighted`` does.

    >>> from pyro_vae.linear_gaussian import LinearGaussian
    >>> import torch
    >>> program = LinearGaussian(torch.ones(3, 1))
    >>> x = program.simulate(2)
    >>> abs(PIWAE(K=2, M=4).loss(program.model, program.guide, x) + program.log_px(x).sum().item()) < 1e-4
    True
    """

    def __init__(self, K: int, M: int, *, vectorize: bool | None = None):
        self.K, self.M = whole_number("K", K), whole_number("M", M)
        super().__init__(self.K * self.M, vectorize=vectorize)

    @property
    def description(self) -> Description:
        """L_MK in value and in the gradient of the model; L_K in that of the guide."""
        of_all, of_groups = (importance_weighted_bound(K) for K in (self.K * self.M, self.K))
        return Description(of_all, of_groups, of_all, plain=True)

    def objective(self, model: Callable, guide: Callable, args: Sequence, kwargs: Mapping) -> tuple[Tensor, Tensor]:
        """Return L_MK, and a surrogate: the guide's bound, and what the model lacks by it, along no path."""
        paths = GatedPaths()
        traces = self._get_trace(model, guide, args, kwargs, paths)
        plate = self._plate(model, guide, args, kwargs, traces)
        scale = common_scale(*traces, plate=plate)
        log_w = log_weights(*traces, plate=plate)
        of_all, groups = log_w.detach(), log_w.unflatten(0, (self.M, self.K))
        lacking = of_all.softmax(0) - groups.detach().softmax(1).flatten(0, 1) / self.M
        log_p: Any = sum(per_image(site, plate) for site in sample_sites(traces[0]).values())
        missing = (lacking * log_p).sum()  # log p has the scale already
        surrogate = (groups.logsumexp(1).mean(0) * scale).sum() + missing
        sites = sample_sites(traces[1])
        for name, slope in partial_derivatives(missing, traces[1]).items():
            surrogate = surrogate - inner(slope, sites[name]).sum()
        paths.open()
        return ((of_all.logsumexp(0) - math.log(self.num_particles)) * scale).sum(), surrogate


class CIWAE(Estimator):
    """β ELBO + (1 − β) L_K by the same K particles (Rainforth et al. 2018).

    The combination importance weighted autoencoder: a bound between the two, whose guide keeps a signal for every K,
    from the ELBO's part. Raises ValueError unless 0 ≤ β ≤ 1; other errors are those of ``ImportanceWeighted``.

    >>> from pyro_vae.linear_gaussian import LinearGaussian
    >>> import torch
    >>> program = LinearGaussian(torch.ones(3, 1))
    >>> x = program.simulate(2)
    >>> abs(CIWAE(K=5).loss(program.model, program.guide, x) + program.log_px(x).sum().item()) < 1e-4
    True
    """

    def __init__(self, K: int, beta: float = 0.5, *, vectorize: bool | None = None):
        super().__init__(K, vectorize=vectorize)
        if not 0 <= beta <= 1:
            raise ValueError(f"beta: wanted a number from 0 (L_K) to 1 (the ELBO), got {beta}; write e.g. beta=0.5")
        self.beta = float(beta)

    @property
    def description(self) -> Description:
        """The combination in value and gradient."""
        K = 1 if self.beta == 1 else self.num_particles
        mixed = K > 1 and self.beta > 0
        bound = f"CIWAE, β = {self.beta:g}, K = {K}" if mixed else importance_weighted_bound(K)
        return Description.unbiased(bound, plain=True)

    def objective(self, model: Callable, guide: Callable, args: Sequence, kwargs: Mapping) -> tuple[Tensor, Tensor]:
        """Return the combination twice: its own gradient is the estimator's."""
        log_w, scale = self._reparameterised_weights(model, guide, args, kwargs)
        l_k = log_w.logsumexp(0) - math.log(self.num_particles)
        bound = ((self.beta * log_w.mean(0) + (1 - self.beta) * l_k) * scale).sum()
        return bound, bound
