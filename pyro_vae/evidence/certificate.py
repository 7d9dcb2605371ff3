"""A certificate for importance sampling: log p(x) from both sides, at the setting that measures real images."""

from collections.abc import Callable, Mapping
from typing import Any, overload

import numpy as np
import pyro
import torch
from pyro import poutine
from torch import Tensor
from tqdm import tqdm

from pyro_vae.arguments import ProgramArguments, checked_arguments
from pyro_vae.checks import whole_number
from pyro_vae.evidence.importance import ImportanceSampler, log_joint, rows_at_once
from pyro_vae.evidence.measuring import Engine, chunk_size, measuring, progress_bar, takes_program, whether_compiled
from pyro_vae.evidence.path import AnnealingPath
from pyro_vae.evidence.plan import MeasurementPlan
from pyro_vae.evidence.proposals import LocalProposal, LocalSampler
from pyro_vae.evidence.results import as_array, joined, weight_statistics
from pyro_vae.evidence.sandwich import Sandwich
from pyro_vae.evidence.simulation import simulated, values_of
from pyro_vae.program import Program
from pyro_vae.tracing.enumeration import Enumeration
from pyro_vae.tracing.messages import is_point
from pyro_vae.tracing.traces import common_scale, per_image, proposal_sites, sample_sites

INSTEAD = "write certify(model, None, x, K, proposal=LocalProposal(rounds=16)), which starts from the prior"


@overload
def certify(
    program: Program,
    x: Tensor | tuple,
    particles: int,
    *,
    proposal: LocalProposal | None = None,
    chunk: int | None = None,
    kwargs: Mapping[str, Any] | None = None,
    engine: Engine = "auto",
    seed: int | None = 0,
    progress: bool = True,
) -> Sandwich: ...
@overload
def certify(
    model: Callable,
    guide: Callable | None,
    x: Tensor | tuple,
    particles: int,
    *,
    proposal: LocalProposal | None = None,
    chunk: int | None = None,
    kwargs: Mapping[str, Any] | None = None,
    engine: Engine = "auto",
    seed: int | None = 0,
    progress: bool = True,
) -> Sandwich: ...
@takes_program(dict)
def certify(
    model: Callable,
    guide: Callable,
    x: Tensor | tuple,
    particles: int,
    *,
    proposal: LocalProposal | None = None,
    chunk: int | None = None,
    kwargs: Mapping[str, Any] | None = None,
    engine: Engine = "auto",
    seed: int | None = 0,
    progress: bool = True,
) -> Sandwich:
    """Bound log p(x) from both sides by importance sampling, for images drawn from the model (Grosse et al. 2015).

    If (z*, x) ~ p(z, x), then z* is an exact draw of p(z | x), independent of further draws z_k given x. Where it takes
    the place of one of them, the mean weight is too large rather than too small (Sobolev & Vetrov 2019):

        E log 1/K Σ_k w_k  ≤  log p(x)  ≤  E log 1/K (w* + Σ_{k ≠ j} w_k),      w = p(x, z) / q(z | x)

    The draws have the density Q = Π_k q_k(z_k), and with z* in place of the j-th one R = Q p̂ / p(x), where p̂ is the
    mean weight: so the upper bound is log p(x) + KL(R ‖ Q), and the lower one log p(x) − KL(Q ‖ R). j is uniform if all
    draws are the guide's. Of a ``LocalProposal`` α K draws are the guide's and the others those of t, but all weights
    divide by the mixture m = α q + (1 − α) t. Then R has j among the guide's draws with probability α q(z*) / m(z*),
    and uniform among these or those. The upper bound returned is the mean over j, for the draws of the lower one.

    The mean gap bounds the error of importance sampling with this guide, proposal and K on the model's own images; for
    other images it is an indication.

    Args:
        program: a module with ``model`` and ``guide``; or
        model, guide: a program whose model observes its first argument, unchanged, at its only observed site. The guide
            may be None if a proposal is given.
        x: only the number and the shape of the images matter: they are replaced by the model's. If it is a tuple, the
            further arguments (labels, for example) are kept.
        particles, proposal, chunk, kwargs, engine, seed, progress: as in ``log_evidence``; take those that measured.

    Raises ValueError as ``log_evidence`` does, if the model has another observed site, if sites are summed out, and if
    the guide has sites that are auxiliary or points.

    >>> from pyro_vae.linear_gaussian import LinearGaussian
    >>> program = LinearGaussian(torch.ones(3, 1).double())
    >>> bounds = certify(program.model, None, torch.zeros(20, 3).double(), 500, proposal=LocalProposal())
    >>> bool(bounds.gap.mean() < 0.05)
    True
    """
    if guide is None and proposal is None:
        raise ValueError(f"guide: wanted a function, got None; {INSTEAD}")
    K = whole_number("particles", particles)
    given, compiled, columns, images = checked_arguments(x, kwargs), whether_compiled(engine), [], []
    chunk = chunk_size(chunk, given.device)
    with measuring(model, guide, given, seed):
        if proposal is None and Enumeration.of(model, guide, given.args, given.kwargs):
            raise ValueError(
                "certify: wanted sites that are drawn, got some that are summed out, of which no exact draw has a "
                "weight; draw them, without infer={'enumerate': ...}"
            )
        plan = MeasurementPlan.of(model, guide, given, None, rows_at_once(K, chunk, proposal))
        if proposal is not None:
            weigh = MixtureWeights(proposal.sampler(model, guide, plan, chunk, compiled))
        else:
            graphs = plan.graphs(compiled, plan.weights * K // chunk)
            weigh = GuideWeights(UncheckedSampler(model, guide, plan, chunk, graphs))
        with progress_bar(plan.weights * K, "particle", progress) as bar:
            for batch, latent, drawn in simulated(model, plan):
                images.append(drawn.cpu())
                log_w, exact, places = map(as_array, weigh(batch, latent, K, bar))
                lower = weight_statistics(log_w, first=sum(len(column[0]) for column in columns))[0]
                columns.append((lower, mean_upper(log_w, exact, places)))
    lower, upper = joined(columns)
    return Sandwich(lower, upper, torch.cat(images), K, seed, plan.joint)


class UncheckedSampler(ImportanceSampler):
    """``ImportanceSampler`` that checks no supports: images drawn from the model may lie outside [0, 1]."""

    def _model_trace(self, batch: ProgramArguments, part: poutine.Trace, size: int, validated: bool) -> poutine.Trace:
        return super()._model_trace(batch, part, size, validated=False)


class GuideWeights:
    """Log weights of draws from the guide, and of given values of the latent sites."""

    def __init__(self, sampler: ImportanceSampler):
        self.sampler = sampler

    def __call__(
        self, batch: ProgramArguments, latent: poutine.Trace, K: int, bar: tqdm
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return log weights (K, B) of new draws, those (B,) of values of the latent sites, and their ``slots``."""
        with pyro.validation_enabled(False):
            exact = self.exact(batch, latent)
        return self.sampler(batch, K, bar), exact, slots(torch.ones_like(exact), K, K)

    def exact(self, batch: ProgramArguments, latent: poutine.Trace) -> Tensor:
        """Return the log weights (B,) of values of the latent sites."""
        sampler, plan = self.sampler, self.sampler.plan
        guided = plan.trace(sampler.guide, batch, 1, replayed=latent)
        drawn = proposal_sites(guided)
        odd = drawn.keys() - sample_sites(latent).keys()
        odd |= {name for name, site in drawn.items() if is_point(site["fn"])}
        if odd:
            raise ValueError(
                f"the guide has the sites {sorted(odd)}, which are auxiliary or points, so that an exact draw of the "
                f"posterior has no weight; {INSTEAD}"
            )
        model_trace = plan.trace(sampler.model, batch, 1, replayed=guided)
        plate = plan.plate(sampler.model, sampler.guide, batch, (model_trace, guided))
        log_q = sum(per_image(site, plate) for site in drawn.values())
        return ((log_joint(model_trace, plate) - log_q) / common_scale(model_trace, guided, plate=plate))[0]


class MixtureWeights:
    """Log weights of draws from a mixture of guide and fitted proposals, and of given values of the latent sites."""

    def __init__(self, sampler: LocalSampler):
        self.sampler = sampler

    def __call__(
        self, batch: ProgramArguments, latent: poutine.Trace, K: int, bar: tqdm
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return log weights (K, B) of new draws, those (B,) of values of the latent sites, and their ``slots``."""
        sampler = self.sampler
        path = AnnealingPath(sampler.model, sampler.guide, *batch, validated=False, plan=sampler.plan)
        with pyro.validation_enabled(False):
            fit, z = sampler.fit(path), path.flatten(values_of(latent))
            log_w, (log_q, log_ratio) = sampler.log_weights(path, fit, K, bar), path.log_densities(z)
        log_q, log_p = log_q.double().cpu(), (log_q.double() + log_ratio.double()).cpu()
        from_guide = sampler.settings.from_guide(K)
        guided, log_m = fit.log_mixture(z, log_q, from_guide / K)
        return log_w, (log_p - log_m)[0], slots((guided - log_m)[0].exp(), from_guide, K)


def slots(of_guide: Tensor, from_guide: int, K: int) -> Tensor:
    """Return the probability with which an exact draw takes the place of each of the K draws, (K, B).

    ``of_guide``: the share of the guide, from which the first draws are, in the density of the mixture there, (B,).

    >>> slots(torch.tensor([0.5, 1.0]), from_guide=1, K=3)
    tensor([[0.5000, 1.0000],
            [0.2500, 0.0000],
            [0.2500, 0.0000]])
    """
    guided = (of_guide / max(from_guide, 1)).expand(from_guide, -1)
    return torch.cat([guided, ((1 - of_guide) / max(K - from_guide, 1)).expand(K - from_guide, -1)])


def mean_upper(log_w: np.ndarray, exact: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return Σ_j places_j log 1/K (w* + Σ_{k ≠ j} w_k) of log weights (K, B), exact draws' (B,), and places (K, B).

    >>> mean_upper(np.log([[1.0], [3.0]]), np.log([2.0]), np.array([[0.5], [0.5]])).round(3)  # ½ log 5/2 + ½ log 3/2
    array([0.661])
    """
    log_w, none = log_w.astype(np.float64), np.full((1, log_w.shape[1]), -np.inf)
    before = np.concatenate([none, np.logaddexp.accumulate(log_w[:-1])])
    after = np.concatenate([np.logaddexp.accumulate(log_w[:0:-1])[::-1], none])
    return (places * np.logaddexp(np.logaddexp(before, after), exact)).sum(0) - np.log(len(log_w))
