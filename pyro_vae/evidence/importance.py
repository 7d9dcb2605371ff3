"""log p(x) by importance sampling from the guide: ``log_evidence``.

The particles of an image are decoded in slices, so that memory is that of a few decoded images.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial, reduce
from pathlib import Path
from typing import Any, TypedDict, overload

import pyro
import torch
from pyro import poutine
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor
from tqdm import tqdm
from typing_extensions import Unpack

from pyro_vae.arguments import ProgramArguments, checked_arguments
from pyro_vae.checks import whole_number
from pyro_vae.compiling import Graphs, Untraceable
from pyro_vae.evidence.batches import BatchedMeasurement
from pyro_vae.evidence.budgeted import EvidencePlan
from pyro_vae.evidence.measuring import Engine, chunk_size, measuring, takes_program, whether_compiled
from pyro_vae.evidence.methods import UNIT, ImportanceDraws, further_methods
from pyro_vae.evidence.plan import MeasurementPlan
from pyro_vae.evidence.proposals import LocalProposal
from pyro_vae.evidence.results import Evidence, warn_untrusted
from pyro_vae.evidence.saving import SavedMeasurement, check_resumable, identity, own_seed
from pyro_vae.evidence.spending import Budget, rows_of_budget, spend
from pyro_vae.program import Program
from pyro_vae.tracing.enumeration import Enumeration, row_terms
from pyro_vae.tracing.traces import (
    check_sites,
    common_scale,
    particle_trace,
    per_image,
    proposal_sites,
    sample_sites,
    sliced,
)
from pyro_vae.tracing.unscored import check_unused

DRAWN_AT_ONCE, MOST_IMAGES = 250_000, 250  # particles, and images, of one batch
FEW = 10  # slices of a batch, up to which they are eager: a last, small batch is not worth a graph


class ImportanceOptions(TypedDict, total=False):
    """Further keywords of ``log_evidence``."""

    batch_size: int | None
    precision: torch.dtype | None
    target: float | None
    seconds: float | None
    plan: EvidencePlan | None
    checkpoint: Path | str | None
    proposal: LocalProposal | None


@overload
def log_evidence(
    program: Program,
    x: Tensor | tuple,
    particles: int | None = None,
    *,
    chunk: int | None = None,
    kwargs: Mapping[str, Any] | None = None,
    engine: Engine = "auto",
    seed: int | None = 0,
    progress: bool = True,
    **options: Unpack[ImportanceOptions],
) -> Evidence: ...
@overload
def log_evidence(
    model: Callable,
    guide: Callable,
    x: Tensor | tuple,
    particles: int | None = None,
    *,
    chunk: int | None = None,
    kwargs: Mapping[str, Any] | None = None,
    engine: Engine = "auto",
    seed: int | None = 0,
    progress: bool = True,
    **options: Unpack[ImportanceOptions],
) -> Evidence: ...
@takes_program(ImportanceOptions)
def log_evidence(
    model: Callable,
    guide: Callable,
    x: Tensor | tuple,
    particles: int | None = None,
    *,
    chunk: int | None = None,
    kwargs: Mapping[str, Any] | None = None,
    engine: Engine = "auto",
    seed: int | None = 0,
    progress: bool = True,
    **options: Unpack[ImportanceOptions],
) -> Evidence:
    """Estimate log p(x) of each image by importance sampling from the guide (Burda et al. 2016).

        log p̂(x) = log 1/K Σ_k w_k,   w_k = p(x, z_k) / q(z_k | x),   z_k ~ q(z | x)

    In expectation it is a lower bound on log p(x). For a batch of images the guide runs once and draws all particles;
    then the model runs on slices of them, so that memory is that of ``chunk`` decoded images.

    If a latent variable lies outside the plate over images, for example one that they share, a single image has no
    weight. The result is then one estimate, of log p of all images together (``joint`` is True).

    Sites that are marked for enumeration, in the guide or in the model alone, are summed out exactly: one weight is
    Σ_y p(x, y, z_y) / q(z_y | x, y), z_y ~ q(z | x, y).

    Write ``log_evidence(vae, x, target=0.05)`` for a standard error instead of a number of draws. Pilot draws decide
    how many draws each image gets, and whether by importance sampling or by annealing. They are then thrown away, so
    that the choice biases nothing. The result is a ``BudgetedEvidence``, which says which images can be trusted.

    Write ``log_evidence(vae, x, 100)`` or ``log_evidence(model, guide, x, 100)``. Images are the rows of the data: the
    plate that all sites share. Modules run in evaluation mode, without gradients. Warns by ``UntrustedEvidence`` of
    images with k̂ > 0.7.

    Args:
        program: a module with ``model`` and ``guide``; or
        model, guide: any Pyro program.
        x: (images, ...), on the program's device; or a tuple of all positional arguments of the program, of any types.
        particles: K, the exact number for each image; or give ``target`` or ``seconds``.
        target: the wanted standard error of log p(x) of each image, in nats; that of the mean of n images is then about
            target / √n. Trusted images mostly reach it; the result says which.
        seconds: about so many are spent, on the smallest standard error for which they suffice, and on none below
            ``target`` if that is given too. Their number depends on the clock, and with it the draws. The result has
            them in ``plan``. The pilots of importance sampling, 1,000 draws of each image, are always drawn.
        plan: of another result: the same images are measured by the same draws, to the last bit.
        checkpoint: a file in which what is measured is saved every half minute and at Ctrl-C, which acts after a batch
            and raises ``EvidenceInterrupted``; the same call continues, with the same bits.
        chunk: number of z decoded at once; 500 by default on a CPU, whose cache holds them, and 20,000 on a GPU. It
            changes only speed, memory and rounding. Rows that share a latent variable count by their numbers, 784 as
            an image.
        batch_size: images whose K particles are drawn at once; by default 250,000 / K, at most 250. Another batch size
            draws other random numbers. Arguments with one entry for each image (tensors, arrays, lists) are cut into
            batches, the others are the same for every batch. If an argument has as many entries as there are images
            only by chance, give ``batch_size=len(x)``, which cuts nothing. Pyro's automatic guides keep parameters for
            each row, and always see all rows at once.
        precision: with ``torch.bfloat16`` the networks of ``pyro_vae.networks`` compute in bfloat16, which changes the
            estimate a little. Distributions and sums keep the dtype of x, also within ``torch.autocast``.
        proposal: ``LocalProposal()`` draws from a distribution that is fitted to the posterior of each image, which
            makes the bound tight where the guide is poor; by default the guide alone is drawn from. Another chunk or
            batch size then draws other random numbers. It takes no sites that are summed out.
        kwargs: the program's keyword arguments.
        engine: "compiled" compiles the model, which changes only speed and rounding, and raises ``Untraceable`` if that
            is impossible; "eager" does not; "auto" compiles on a CPU if there is a compiler and it saves time.
        seed: of a random number generator of its own, so that the caller's is left alone; None uses the caller's.
        progress: whether to show a progress bar on a terminal.

    Raises ValueError if x is NaN or outside the support, if two plates could be the one over the images, and if that
    plate subsamples the data. Raises ValueError that names the images if all their log weights are −inf or one is NaN.

    >>> from pyro_vae.linear_gaussian import LinearGaussian
    >>> program, x = LinearGaussian(torch.ones(3, 1).double()), torch.zeros(2, 3).double()
    >>> evidence = log_evidence(program, x, 50)  # its guide is the exact posterior
    >>> torch.allclose(evidence.log_px, program.log_px(x))
    True
    >>> log_evidence(program, x, target=0.05, engine="eager").method
    ('importance', 'importance')
    """
    proposal = options.get("proposal")
    if guide is None and proposal is None:
        raise ValueError("guide: wanted a function, got None; annealed_evidence(model, None, x) starts from the prior")
    given, compiled = checked_arguments(x, kwargs), whether_compiled(engine)
    chunk, batch_size = chunk_size(chunk, given.device), options.get("batch_size")
    budget = Budget.of(particles, **{name: options.get(name) for name in Budget._fields})
    checkpoint = options.get("checkpoint")
    check_resumable(checkpoint, seed)
    for name, number in (("particles", particles), ("batch_size", batch_size)):
        if number is not None:
            whole_number(name, number)
    with measuring(model, guide, given, seed, options.get("precision")):
        K = particles or UNIT
        enumeration = None if proposal else Enumeration.of(model, guide, given.args, given.kwargs, K)
        held = model if enumeration is None else enumeration.held
        most = rows_at_once(K, chunk, proposal) if budget is None else rows_of_budget(given, chunk)
        plan = MeasurementPlan.of(held, guide, given, batch_size, most)
        if proposal is not None:
            sampler = proposal.sampler(model, guide, plan, chunk, compiled)
        elif enumeration is None:
            sampler = ImportanceSampler(model, guide, plan, chunk, plan.graphs(compiled, plan.weights * K // chunk))
        else:
            sampler = EnumeratedSampler(enumeration, plan, chunk, compiled)
        if budget is not None:
            methods = [] if proposal else [ImportanceDraws(sampler, plan.size)]
            if enumeration is None:
                methods += further_methods(model, guide, plan, compiled, chunk, proposal)
            return spend(budget, methods, plan, seed, progress, model, guide)
        measurement = BatchedMeasurement(sampler, plan, K, own_seed(seed), seed)
        key = ""
        if checkpoint is not None:
            setting = K, plan.size, chunk, compiled, options.get("precision"), proposal
            key = identity(setting, given, measurement.seed, model, guide)
        evidence = measurement.run(SavedMeasurement(checkpoint, key), progress)
    warn_untrusted(evidence)
    return evidence


def rows_at_once(K: int, chunk: int, proposal: LocalProposal | None) -> int:
    """Return the number of rows whose K weights are drawn at once.

    >>> rows_at_once(1000, 500, None), rows_at_once(1, 500, None)
    (250, 250)
    """
    return proposal.rows_at_once(chunk) if proposal else min(max(DRAWN_AT_ONCE // K, 1), MOST_IMAGES)


class ImportanceSampler:
    """Log weights log w = log p(x, z) − log q(z | x) of K particles for each row, drawn from the guide at once.

    Args:
        model, guide: a program.
        plan: how it is measured.
        chunk: number of z decoded at once.
        graphs: the compiled functions of the model.

    >>> from pyro_vae.linear_gaussian import LinearGaussian
    >>> program, given = LinearGaussian(torch.ones(3, 1).double()), ProgramArguments.of((torch.zeros(2, 3).double(),))
    >>> plan = MeasurementPlan.of(program.model, program.guide, given, asked=None, most=10)
    >>> sampler = ImportanceSampler(program.model, program.guide, plan, chunk=10, graphs=Graphs(False, 0, "cpu"))
    >>> sampler(given, K=50, bar=tqdm(disable=True)).shape
    torch.Size([50, 2])
    """

    def __init__(self, model: Callable, guide: Callable, plan: MeasurementPlan, chunk: int, graphs: Graphs):
        self.model, self.guide, self.plan, self.chunk, self.graphs = model, guide, plan, chunk, graphs

    def __call__(self, batch: ProgramArguments, K: int, bar: tqdm) -> Tensor:
        """Return log weights (K, B). Pyro validates the first runs of guide and model, which are eager."""
        with pyro.validation_enabled(True):
            guide_trace = self.plan.trace(self.guide, batch, K)
        step = min(self.plan.draws_at_once(batch, self.chunk), K)
        parts = [sliced(guide_trace, start, min(start + step, K)) for start in range(0, K, step)]
        model_trace = self._model_trace(batch, parts[0], step, validated=True)
        plate = self.plan.plate(self.model, self.guide, batch, (model_trace, parts[0]))
        scale = common_scale(model_trace, parts[0], plate=plate)
        compiled = iter(self._compiled(model_trace, parts[: K // step], batch, plate) or ())
        log_w = []
        for number, part in enumerate(parts):
            values = next(compiled, None)
            if values is None:
                size = min(step, K - number * step)
                trace = self._model_trace(batch, part, size, validated=False) if number else model_trace
                values = (log_joint(trace, plate),)
            log_q = sum(per_image(site, plate) for site in proposal_sites(part).values())
            log_w.append((values[0] - log_q) / scale)
            bar.update(log_w[-1].numel())
        return torch.cat(log_w)

    def _model_trace(self, batch: ProgramArguments, part: poutine.Trace, size: int, validated: bool) -> poutine.Trace:
        """Return the model's trace at a slice of the guide's draws, from an eager run."""
        with pyro.validation_enabled(validated):
            model_trace = self.plan.trace(self.model, batch, size, replayed=part)
        check_sites(model_trace, part)
        if validated:
            check_unused(partial(self.plan.trace, self.model, batch, size), model_trace)
        return model_trace

    def _compiled(
        self,
        model_trace: poutine.Trace,
        parts: Sequence[poutine.Trace],
        batch: ProgramArguments,
        plate: CondIndepStackFrame | None,
    ) -> Iterator[Sequence[Tensor]] | None:
        """Return log p(x, z) of slices of the guide's trace, by all cores at once; None: run them eagerly."""
        if len(parts) < FEW and not self.graphs.strict:
            return None
        names = list(sample_sites(model_trace, observed=False))
        sites = [sample_sites(part) for part in parts]
        calls = [(*(of_part[name]["value"] for name in names), *batch.tensors) for of_part in sites]
        return self.graphs.of_each(joint_density(self.model, names, plate, self.plan.layout.nesting, batch), calls)


class EnumeratedSampler:
    """Log weights, (K, B), of a program whose enumerated sites are summed out: log Σ_y p(x, y, z_y) / q(z_y | x, y).

    Guide and model run on a few particles at a time, each with all values of the sites, eagerly.
    """

    def __init__(self, enumeration: Enumeration, plan: MeasurementPlan, chunk: int, compiled: bool | None):
        self.enumeration, self.plan, self.chunk = enumeration, plan, chunk
        if compiled:
            raise Untraceable('engine="compiled": sites of the program are summed out, eagerly; write engine="eager"')

    def __call__(self, batch: ProgramArguments, K: int, bar: tqdm) -> Tensor:
        """Return log weights (K, B). Pyro validates the first run."""
        at_once = self.plan.draws_at_once(batch, self.chunk // self.enumeration.values)
        log_w = []
        for start in range(0, K, at_once):
            with pyro.validation_enabled(start == 0):
                for traces in self.enumeration.traces(batch.args, batch.kwargs, min(at_once, K - start)):
                    proposal_sites(traces[1])  # raises if a draw has no density
                    plate = self.plan.plate(self.enumeration.held, self.enumeration.guide, batch, traces)
                    log_w.append(row_terms(*traces, plate=plate).log_w)
                    bar.update(log_w[-1].numel())
        return torch.cat(log_w)


def joint_density(
    model: Callable,
    names: Sequence[str],
    plate: CondIndepStackFrame | None,
    nesting: int,
    batch: ProgramArguments,
) -> Callable[..., tuple[Tensor]]:
    """Return log p(x, z), (K, B) in a tuple, as a function of tensors.

    These are the values of the latent sites ``names``, each (K, B, ...), and the tensors among the arguments.
    """

    def density(*tensors: Tensor) -> tuple[Tensor]:
        values, given = dict(zip(names, tensors)), batch.with_tensors(tensors[len(names) :])
        conditioned = poutine.condition(model, data=values)
        trace = particle_trace(conditioned, given.args, len(tensors[0]), nesting, kwargs=given.kwargs)
        return (log_joint(trace, plate),)

    return density


def log_joint(model_trace: poutine.Trace, plate: CondIndepStackFrame | None) -> Tensor:
    """Return log p(x, z) of each particle and row, (K, B); without a plate over rows, of all rows together, (K, 1)."""
    return reduce(torch.add, (per_image(site, plate) for site in sample_sites(model_trace).values()))
