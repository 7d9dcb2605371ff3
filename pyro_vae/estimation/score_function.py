"""Gradients of the guide by the log-derivative trick, which takes draws of any kind."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from pyro.infer.util import MultiFrameTensor
from torch import Tensor
from torch.distributions import Bernoulli

from pyro_vae.estimation.base import Estimator
from pyro_vae.estimation.description import Description, importance_weighted_bound
from pyro_vae.tracing.base_noise import of_fns
from pyro_vae.tracing.coupling import antithetic
from pyro_vae.tracing.messages import PARTICLES, Site, changed, core
from pyro_vae.tracing.numbers import is_tracing
from pyro_vae.tracing.paths import Detached, check_observed
from pyro_vae.tracing.traces import (
    Traces,
    common_scale,
    log_prob,
    log_weights,
    per_image,
    proposal_sites,
    sample_sites,
)


class ScoreFunction(Estimator):
    """The ELBO by K particles; the guide's gradient by the log-derivative trick (Paisley et al. 2012).

        ∇_φ = 1/K Σ_k (log w_k − c_k) ∇_φ log q(z_k; φ)

    It works for any site, discrete ones too. log w is taken for each image separately, as in ``Trace_ELBO``: the score
    of a site is multiplied only by terms of log w in its own plates, since all other terms contribute zero on average
    (Ranganath et al. 2014). c_k is zero, or for ``baseline="leave-one-out"`` the mean of the other particles' log w
    (Mnih & Rezende 2016), for which K must be at least 2 (ValueError). A point (``Delta``) has no score and keeps its
    path. Factors and sites that the guide observes count as in ``Trace_ELBO``; those with ``has_rsample=False`` raise
    ValueError.

    >>> from pyro_vae.linear_gaussian import LinearGaussian
    >>> program = LinearGaussian(torch.ones(3, 1))
    >>> loss = ScoreFunction(K=2, baseline="leave-one-out")(program.model, program.guide)(program.simulate(2))
    """

    def __init__(self, K: int = 1, baseline: Literal["leave-one-out"] | None = None, *, vectorize: bool | None = None):
        super().__init__(K, vectorize=vectorize)
        if baseline not in (None, "leave-one-out"):
            raise ValueError(f"baseline: got {baseline!r}, wanted None or 'leave-one-out'")
        if baseline and K < 2:
            raise ValueError("baseline: 'leave-one-out' is the mean of the other particles; write K=2 or more")
        self.baseline = baseline

    @property
    def couples(self) -> bool:
        """Without a baseline the particles may depend on each other."""
        return self.baseline is None

    @property
    def description(self) -> Description:
        """The ELBO in value and gradient."""
        return Description.unbiased("ELBO", plain=True)

    def objective(self, model: Callable, guide: Callable, args: Sequence, kwargs: Mapping) -> tuple[Tensor, Tensor]:
        """Return the ELBO, and a surrogate with the scores of q."""
        traces = self._get_trace(model, guide, args, kwargs, Detached())
        return _objective(traces, self._term, self.num_particles)

    def _term(self, cost: Tensor, site: Site) -> Tensor:
        return (_minus_baseline(cost, site) if self.baseline else cost) * site["score"]


class DisARM(Estimator):
    """The ELBO by K / 2 pairs of particles; the gradient of Bernoulli sites by antithetic draws (Dong et al. 2020).

    A draw b = 1[u < σ(α)] of logits α has the partner b' = 1[1 − u < σ(α)]. With f = log p(x, b) − log q(b), the
    gradient in α of a pair is an average over all u that give it, which has less variance than a leave-one-out
    baseline of two particles:

        ∇_α = ½ (f(b) − f(b')) (b − b') σ(|α|)

    All sites of the guide must be Bernoulli, none with logits that depend on other draws, and K even; raises ValueError
    otherwise. f is taken in the plates of a site, as in ``ScoreFunction``.

    >>> import pyro
    >>> import pyro.distributions as dist
    >>> logits = torch.zeros(4, requires_grad=True)
    >>> def model(x):
    ...     with pyro.plate("images", len(x)):
    ...         b = pyro.sample("b", dist.Bernoulli(torch.full((4,), 0.3)).to_event(1))
    ...         pyro.sample("x", dist.Normal(b.sum(-1), 1.0), obs=x)
    >>> def guide(x):
    ...     with pyro.plate("images", len(x)):
    ...         pyro.sample("b", dist.Bernoulli(logits=logits).to_event(1))
    >>> DisARM(K=2)(model, guide)(torch.ones(3)).backward()
    >>> logits.grad.shape
    torch.Size([4])
    """

    coupling = staticmethod(antithetic)

    def __init__(self, K: int = 2, *, vectorize: bool | None = None):
        super().__init__(K, vectorize=vectorize)
        if K % 2:
            raise ValueError(f"K: wanted an even number, since the particles are drawn in pairs, got {K}; write K=2")

    @property
    def description(self) -> Description:
        """The ELBO in value and gradient."""
        return Description.unbiased("ELBO")

    def objective(self, model: Callable, guide: Callable, args: Sequence, kwargs: Mapping) -> tuple[Tensor, Tensor]:
        """Return the ELBO, and a surrogate with the gradients of the pairs."""
        traces = self._get_trace(model, guide, args, kwargs, Detached())
        return _objective(traces, _of_pairs, self.num_particles)


class OVIS(Estimator):
    """L_K; the guide's gradient by the log-derivative trick with the best baseline (Liévin et al. 2020).

        w̃_k = w_k / Σ_j w_j,    ∇_φ = Σ_k (−log(1 − w̃_k) − w̃_k) ∇_φ log q(z_k; φ),    ∇_θ = Σ_k w̃_k ∇_θ log p(x, z_k)

    log L̂ − w̃_k is the weight of a score, L̂ = 1/K Σ_j w_j. Its baseline log 1/K Σ_{j≠k} w_j leaves what is of second
    order in w̃_k: the best one where many particles share the weight. Where the weights are bounded, the
    signal-to-noise ratio grows with K; a few dominant ones undo that.
    It works for any site, discrete ones too. K must be at least 2 (ValueError); other errors are those of
    ``ImportanceWeighted``.

    >>> from pyro_vae.linear_gaussian import LinearGaussian
    >>> program = LinearGaussian(torch.ones(3, 1))
    >>> loss = OVIS(K=5)(program.model, program.guide)(program.simulate(2))
    """

    def __init__(self, K: int, *, vectorize: bool | None = None):
        super().__init__(K, vectorize=vectorize)
        if K < 2:
            raise ValueError(f"K: wanted at least 2, since others make the baseline of a particle, got {K}; write K=2")

    @property
    def description(self) -> Description:
        """L_K in value and gradient."""
        return Description.unbiased(importance_weighted_bound(self.num_particles))

    def objective(self, model: Callable, guide: Callable, args: Sequence, kwargs: Mapping) -> tuple[Tensor, Tensor]:
        """Return L_K, and a surrogate with the scores of q."""
        traces = self._get_trace(model, guide, args, kwargs, Detached())
        plate = self._plate(model, guide, args, kwargs, traces)
        scale = common_scale(*traces, plate=plate)
        log_w = log_weights(*traces, plate=plate)
        weights, total = log_w.detach(), log_w.detach().logsumexp(0)
        share = weights.softmax(0)
        itself = torch.eye(self.num_particles, dtype=torch.bool, device=weights.device).unsqueeze(-1)
        others = weights.masked_fill(itself, -math.inf).logsumexp(1)  # (K, 1, images) of which each leaves out one
        cost = torch.where(share < 0.5, -torch.log1p(-share), total - others) - share  # precise for small shares
        surrogate = (share * scale * log_w).sum()
        for site in proposal_sites(traces[1]).values():
            if "score" in site:  # others are points, which keep their paths
                surrogate = surrogate + (share * per_image(site, plate)).sum()
                score = per_image(changed(site, log_prob=site["score"]), plate)
                surrogate = surrogate + (scale * cost * score).sum()
        return ((total - math.log(self.num_particles)) * scale).sum(), surrogate


def _objective(traces: Traces, term: Callable[[Tensor, Site], Tensor], particles: int) -> tuple[Tensor, Tensor]:
    """Return the ELBO, and a surrogate with ``term(cost, site)`` for each site that the guide draws.

    The cost of a site is log p(x, z) − log q(z | x) in its own plates, without a path to any parameter.
    """
    model_trace, guide_trace = traces
    log_w = MultiFrameTensor()
    for trace, sign in (model_trace, 1), (guide_trace, -1):
        for site in sample_sites(trace).values():
            log_w.add((site["cond_indep_stack"], sign * site["log_prob"].detach()))
    surrogate = log_prob(model_trace)
    for site in sample_sites(guide_trace).values():
        if site["is_observed"]:
            check_observed(site, rsample=True)
        if "score" in site:
            cost: Any = log_w.sum_to(site["cond_indep_stack"])
            surrogate = surrogate + term(cost, site).sum()
        else:  # a point or an observed site has a derivative of its own
            surrogate = surrogate - site["log_prob"].sum()
    bound = log_prob(model_trace) - log_prob(guide_trace)
    return bound / particles, surrogate / particles


def _of_pairs(cost: Tensor, site: Site) -> Tensor:
    """Return ½ (f(b) − f(b')) (b − b') σ(|α|) α for the particles, of which two that follow each other are a pair."""
    name, event = site["name"], site["fn"].event_dim
    if not isinstance(core(site["fn"]), Bernoulli):
        raise ValueError(
            f"site {name!r} of the guide is no Bernoulli ({type(core(site['fn'])).__name__}), and DisARM has no "
            "gradient for it; use ScoreFunction(K, 'leave-one-out')"
        )
    logits = of_fns(site, lambda fn: fn.logits)
    if not (is_tracing() or torch.equal(logits, _partners(logits, site, event))):
        raise ValueError(
            f"site {name!r} of the guide has logits that depend on other draws, so that its pairs are not antithetic; "
            "use ScoreFunction(K, 'leave-one-out')"
        )
    pull = (site["value"] - _partners(site["value"], site, event)) * logits.detach().abs().sigmoid() * logits
    pull = pull.sum(list(range(-event, 0))) if event else pull
    return 0.5 * (cost - _partners(cost, site)) * pull


def _partners(values: Tensor, site: Site, event: int = 0) -> Tensor:
    """Return the values of each particle's partner."""
    dim = _particle_dim(site) - event
    return values.index_select(dim, torch.arange(values.shape[dim], device=values.device) ^ 1)


def _minus_baseline(cost: Tensor, site: Site) -> Tensor:
    """Return each particle's cost minus the mean of the other particles' costs."""
    dim = _particle_dim(site)
    K = cost.shape[dim]
    return cost - (cost.sum(dim, keepdim=True) - cost) / (K - 1)


def _particle_dim(site: Site) -> int:
    (dim,) = (frame.dim for frame in site["cond_indep_stack"] if frame.name == PARTICLES)
    return dim
