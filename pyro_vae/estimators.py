"""Gradient estimators of variational bounds, as Pyro ELBOs.

Each takes any program: several latent and several observed sites, parameters in modules or in Pyro's store. Each works
in ``SVI(model, guide, optim, loss=elbo)``, in ``elbo(model, guide)`` with a torch optimiser, and in ``fit``. With K
particles the guide runs once: an encoder sees each image once, and the decoder K codes of it. A program that takes no
plate of particles runs K times (``vectorize``, see ``ProgramRuns``).

Every loss is minus a bound, summed over the batch, in nats; its gradient is the estimator's. Pyro's ``Trace_ELBO`` and
``TraceMeanField_ELBO`` are the estimators L^A and L^B of Kingma & Welling (2014) and stand beside these.

The ``description`` of an estimator says what it estimates, and which bound has its gradient on average. ``describe``
knows this for Pyro's own classes, too.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from pyro import poutine
from pyro.infer.util import MultiFrameTensor
from torch import Tensor

from pyro_vae.checks import whole_number
from pyro_vae.estimation import Description, Estimator, check_analytic_kl, describe, importance_weighted_bound
from pyro_vae.estimation.combined import CIWAE, PIWAE
from pyro_vae.estimation.coupled import Antithetic, QuasiMonteCarlo
from pyro_vae.estimation.doubly_reparameterized import DoublyReparameterized, RenyiBound
from pyro_vae.estimation.generalized import GeneralizedDReG
from pyro_vae.estimation.joint import JointControlVariate
from pyro_vae.estimation.score_function import OVIS, DisARM, ScoreFunction
from pyro_vae.estimation.straight_through import ReinMax, StraightThrough
from pyro_vae.estimation.thermodynamic import TVO
from pyro_vae.tracing.messages import is_point
from pyro_vae.tracing.paths import (
    GatedPaths,
    check_observed,
    leave_score_out,
)
from pyro_vae.tracing.traces import (
    Replay,
    check_sites,
    log_prob,
    sample_sites,
    score,
    trace_of,
)

__all__ = [
    "CIWAE",
    "OVIS",
    "PIWAE",
    "TVO",
    "Antithetic",
    "Description",
    "DisARM",
    "DoublyReparameterized",
    "Estimator",
    "GeneralizedDReG",
    "ImportanceWeighted",
    "JointControlVariate",
    "QuasiMonteCarlo",
    "ReinMax",
    "RenyiBound",
    "ScoreFunction",
    "StickingTheLanding",
    "StraightThrough",
    "WakeSleep",
    "check_analytic_kl",
    "describe",
    "importance_weighted_bound",
]


class StickingTheLanding(Estimator):
    """The ELBO by K particles; its gradient is the path derivative, the score of q left out (Roeder et al. 2017).

        ∇_φ = 1/K Σ_k ∂/∂z [log p(x, z_k) − log q(z_k; sg[φ])] ∂z_k/∂φ,      the model's gradient as usual.

    The score has mean zero; without it the variance is zero where q is the exact posterior. Flows that keep their last
    pass, as Pyro's do, are scored from it and need no inverse. Factors and sites that the guide observes count as in
    ``Trace_ELBO``. Raises ValueError where a site of the guide is not reparameterised.

    >>> from pyro_vae.linear_gaussian import LinearGaussian
    >>> program = LinearGaussian(torch.ones(3, 1))
    >>> StickingTheLanding()(program.model, program.guide)(program.simulate(2)).backward()
    >>> bool(program.posterior.loc_bias.grad.abs() < 1e-5)  # the guide is exact
    True
    """

    couples = True

    @property
    def description(self) -> Description:
        """The ELBO in value and gradient."""
        return Description.unbiased("ELBO", plain=True)

    def objective(self, model: Callable, guide: Callable, args: Sequence, kwargs: Mapping) -> tuple[Tensor, Tensor]:
        """Return the ELBO, and a surrogate without the score of q."""
        paths = GatedPaths()
        model_trace, guide_trace = self._get_trace(model, guide, args, kwargs, paths)
        of_factors = _of_factors(model_trace, guide_trace)
        leave_score_out(guide_trace)
        paths.open()
        bound = log_prob(model_trace) - log_prob(guide_trace)
        return bound / self.num_particles, (bound + of_factors) / self.num_particles


class ImportanceWeighted(Estimator):
    """L_K = E log 1/K Σ_k w_k, w = p(x, z) / q(z | x), averaged over M groups of K particles.

    Burda et al. (2016); Rainforth et al. (2018) for M. The bound grows with K and reaches log p(x); the guide's
    signal-to-noise ratio falls with K and grows with M. M K particles are drawn at once.

    Raises ValueError if the sites share no plate over images or, for K > 1, two that could be it; if their scales
    differ (a KL weight); and if the guide has a factor or is a point mass. A gradient also needs reparameterised sites
    in the guide. Sites that the guide observes are no part of q(z | x).

    >>> from pyro_vae.linear_gaussian import LinearGaussian
    >>> program = LinearGaussian(torch.ones(3, 1))
    >>> x = program.simulate(2)
    >>> abs(ImportanceWeighted(K=5).loss(program.model, program.guide, x) + program.log_px(x).sum().item()) < 1e-4
    True
    """

    couples = True

    def __init__(self, K: int, M: int = 1, *, vectorize: bool | None = None):
        self.K, self.M = whole_number("K", K), whole_number("M", M)
        super().__init__(self.K * self.M, vectorize=vectorize)

    @property
    def description(self) -> Description:
        """L_K in value and gradient."""
        return Description.unbiased(importance_weighted_bound(self.K), plain=True)

    def objective(self, model: Callable, guide: Callable, args: Sequence, kwargs: Mapping) -> tuple[Tensor, Tensor]:
        """Return L_K twice: its own gradient is the estimator's."""
        log_w, scale = self._reparameterised_weights(model, guide, args, kwargs)
        bounds = (log_w.unflatten(0, (self.M, self.K)).logsumexp(1) - math.log(self.K)).mean(0)
        bound = (bounds * scale).sum()
        return bound, bound


class WakeSleep(Estimator):
    """Two objectives, not a bound (``is_bound`` is False): the wake-sleep algorithm (Hinton et al. 1995).

        wake:   ∇_θ log p(x, z),   z ~ q(z | x)                    the model learns from the guide's draws
        sleep:  ∇_φ log q(z | x),  (x, z) ~ p(x, z)                the guide learns from the model's draws

    The loss is −log p(x, z) − log q(z' | x') summed over the batch, with one draw of each; a falling loss says little.
    Judge the program by ``evaluate`` or ``Trace_ELBO().loss``.

    The program must have one observed site, whose value is the first argument of model and guide: in the sleep phase
    the guide gets the model's draw of x in its place. Raises ValueError otherwise.

    >>> from pyro_vae.linear_gaussian import LinearGaussian
    >>> program = LinearGaussian(torch.ones(3, 1))
    >>> loss = WakeSleep()(program.model, program.guide)(program.simulate(2))
    """

    is_bound = False

    def __init__(self) -> None:
        super().__init__(K=1)

    @property
    def description(self) -> Description:
        """The ELBO in the gradient of the model only."""
        return Description(model_gradient="ELBO", is_bound=self.is_bound)

    def objective(self, model: Callable, guide: Callable, args: Sequence, kwargs: Mapping) -> tuple[Tensor, Tensor]:
        """Return the sum of the two objectives twice."""
        with torch.no_grad():
            seen = trace_of(guide, args, kwargs)
            dream = trace_of(poutine.uncondition(model), args, kwargs)
        wake = trace_of(Replay(seen)(model), args, kwargs)
        check_sites(wake, seen)
        x = sample_sites(dream)[_observed_argument(wake, seen, args)]["value"]
        sleep = trace_of(Replay(dream)(guide), (x, *args[1:]), kwargs)
        score(wake)
        score(sleep)
        total = log_prob(wake) + log_prob(sleep)
        return total, total


def _of_factors(model_trace: poutine.Trace, guide_trace: poutine.Trace) -> Tensor | float:
    """Return Σ sg[log r] f over the guide's factors f with ``has_rsample=False``, for the surrogate (``Trace_ELBO``).

    r = p(x, z) / q(z | x), over the model's sites. The derivative of f itself is removed from the guide's trace.
    """
    total, drawn = 0.0, sample_sites(guide_trace)
    for site in sample_sites(guide_trace, observed=True).values():
        check_observed(site)
        if not site["fn"].has_rsample:
            log_r = MultiFrameTensor()
            for name, part in sample_sites(model_trace).items():
                log_q = 0.0 if part["is_observed"] else drawn[name]["log_prob"].detach()
                log_r.add((part["cond_indep_stack"], part["log_prob"].detach() - log_q))
            total = total + (log_r.sum_to(site["cond_indep_stack"]) * site["unscaled_log_prob"]).sum()
            site["log_prob"] = site["log_prob"].detach()
    return total


def _observed_argument(wake: poutine.Trace, seen: poutine.Trace, args: Sequence) -> str:
    """Return the name of the one observed site, whose value is the first argument; ValueError otherwise."""
    observed = sample_sites(wake, observed=True)
    if len(observed) != 1:
        raise ValueError(f"WakeSleep: the observed sites are {list(observed)}, wanted one; use StickingTheLanding")
    (name, site), *_ = observed.items()
    if not (args and torch.is_tensor(args[0]) and args[0].shape == site["value"].shape):
        raise ValueError(
            f"WakeSleep: the value of the observed site {name!r}, of shape {tuple(site['value'].shape)}, is not the "
            "first argument of model and guide; write model(x, ...) and guide(x, ...)"
        )
    auxiliary = [key for key, site in sample_sites(seen).items() if site["infer"].get("is_auxiliary")]
    if auxiliary:
        raise ValueError(f"WakeSleep: the model does not draw the guide's sites {auxiliary}; use StickingTheLanding")
    points = [key for key, site in sample_sites(seen).items() if is_point(site["fn"])]
    if points:
        raise ValueError(f"WakeSleep: the guide has no density at the points {points}; use StickingTheLanding")
    return name
