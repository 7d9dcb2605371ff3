"""log p(x) by annealing: a tight lower bound, and on simulated data an upper bound too."""

from collections.abc import Callable, Mapping
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from typing_extensions import Unpack

from pyro_vae.arguments import checked_arguments
from pyro_vae.errors import warn
from pyro_vae.evidence.annealing import (
    AnnealedChains,
    AnnealingOptions,
    AnnealingPlan,
    AnnealingSettings,
    SequentialOptions,
    anneal,
    annealing_settings,
)
from pyro_vae.evidence.measuring import Engine, chunk_size, measuring, progress_bar, takes_program, whether_compiled
from pyro_vae.evidence.path import AnnealingPath
from pyro_vae.evidence.pilots import pilot_temperatures, piloted
from pyro_vae.evidence.plan import MeasurementPlan
from pyro_vae.evidence.results import (
    AnnealedEvidence,
    UntrustedEvidence,
    as_array,
    joined,
    warn_untrusted,
    weight_statistics,
)
from pyro_vae.evidence.sandwich import AnnealedSandwich
from pyro_vae.evidence.simulation import simulated, values_of
from pyro_vae.printing import listed
from pyro_vae.program import Program

LEAST_ACCEPTANCE = 1e-6  # below which a chain has not moved


class StuckChains(UserWarning):
    """Hamiltonian Monte Carlo accepted no proposal for some images, so that their chains did not move."""


@overload
def annealed_evidence(
    program: Program,
    x: Tensor | tuple,
    *,
    chunk: int | None = None,
    kwargs: Mapping[str, Any] | None = None,
    engine: Engine = "auto",
    seed: int | None = 0,
    progress: bool = True,
    **options: Unpack[SequentialOptions],
) -> AnnealedEvidence: ...
@overload
def annealed_evidence(
    model: Callable,
    guide: Callable | None,
    x: Tensor | tuple,
    *,
    chunk: int | None = None,
    kwargs: Mapping[str, Any] | None = None,
    engine: Engine = "auto",
    seed: int | None = 0,
    progress: bool = True,
    **options: Unpack[SequentialOptions],
) -> AnnealedEvidence: ...
@takes_program(SequentialOptions)
def annealed_evidence(
    model: Callable,
    guide: Callable | None,
    x: Tensor | tuple,
    *,
    chunk: int | None = None,
    kwargs: Mapping[str, Any] | None = None,
    engine: Engine = "auto",
    seed: int | None = 0,
    progress: bool = True,
    **options: Unpack[SequentialOptions],
) -> AnnealedEvidence:
    """Estimate log p(x) of each image by annealed importance sampling (Neal 2001; Wu et al. 2017).

    Chains start at z_0 ~ f_0, the guide or the prior, and pass the densities f_β(z) = f_0(z)^(1−β) p(x, z)^β,
    0 = β_0 < … < β_T = 1. At each β they make a transition of Hamiltonian Monte Carlo (Neal 2011) that leaves f_β
    invariant:

        log w = Σ_t (β_t − β_{t−1}) (log p(x, z_{t−1}) − log f_0(z_{t−1})),   E w = p(x)

    Their momentum lasts from one temperature to the next (Sohl-Dickstein & Culpepper 2012), so that one leapfrog step
    at each of many temperatures does better than many steps at each of a few.

    Pilots, as many chains at an eighth of the temperatures (at least 8), go first. They have no weight, and find the
    step sizes of each image, for an acceptance of 0.9, and temperatures between which the weights of a batch lose
    equally much. So the transitions of the weighted chains do not depend on their past, and w stays unbiased.

    A latent variable with a support other than all real numbers (a positive one, a simplex) is transformed by Pyro's
    ``biject_to`` to an unconstrained one. If images share a latent variable, the chains are those of all images
    together, and the result is one estimate (``joint``), as in ``log_evidence``. Where the guide makes values of
    auxiliary draws, as Pyro's ``AutoNormal`` does, chains move over these draws.

    Args:
        program: a module with ``model`` and ``guide``, from which the chains start; or
        model, guide: any Pyro program. With a guide of None the chains start from the prior.
        num_temperatures: T, by default 500: T − 1 transitions of ``leapfrog`` steps each.
        chains: weighted chains per image, by default 16.
        leapfrog: steps of each transition, by default 1, of random length (± 20 %).
        schedule: T -> β of shape (T + 1,), such as ``annealing.sigmoid`` or ``annealing.linear``; None: as pilots find.
        step_size: the first one, in standard deviations of f_0, which are estimated for each image and dimension of z;
            by default D^−¼.
        resample: whether the chains of an image are resampled where their effective sample size falls below half:
            sequential Monte Carlo (Del Moral et al. 2006). p̂ stays unbiased; the standard error is that of families of
            chains (Chan & Lai 2013). It helps where weights differ much, as from the prior.
        chunk: number of z decoded at once. It sets how many images run together, and thus which random numbers.
        x, kwargs, engine, seed, progress: as in ``log_evidence``.

    Raises ValueError as ``log_evidence`` does, for discrete latent variables and those whose bounds depend on others,
    and if no proposal was accepted for any image. Warns by ``StuckChains`` if none was for some, and by
    ``UntrustedEvidence`` of images with k̂ > 0.7, and of those that are ``lone``.

    >>> from pyro_vae.linear_gaussian import LinearGaussian
    >>> program, x = LinearGaussian(torch.ones(3, 1).double()), torch.zeros(2, 3).double()
    >>> evidence = annealed_evidence(program.model, None, x, num_temperatures=100, leapfrog=3)
    >>> bool((evidence.log_px - program.log_px(x)).abs().max() < 0.1)
    True
    """
    settings, compiled = annealing_settings(**options), whether_compiled(engine)
    given, columns = checked_arguments(x, kwargs), []
    chunk = chunk_size(chunk, given.device)
    with measuring(model, guide, given, seed):
        plan = MeasurementPlan.of(model, guide, given, None, _images_at_once(chunk, settings.chains))
        graphs = plan.graphs(compiled, _expected_calls(plan, settings))
        with progress_bar(plan.weights * _temperatures(settings), "step", progress) as bar:
            for batch in plan.batches():
                moves, chains = _forward(AnnealingPath(model, guide, *batch, graphs, plan=plan), settings, bar)
                first = sum(len(column[0]) for column in columns)
                diagnostics = map(as_array, (chains.acceptance.mean(0), moves.steps[-1]))
                columns.append((*weight_statistics(chains.log_w, first), *diagnostics))
    log_px, error, ess, k_hat, acceptance, step = joined(columns)
    _check_acceptance(acceptance, step)
    evidence = AnnealedEvidence(
        log_px, error, ess, k_hat, settings.chains, seed, plan.joint,
        acceptance=acceptance, step_size=step, num_temperatures=settings.num_temperatures,
    )  # fmt: skip
    warn_untrusted(evidence)
    if evidence.doubt:
        warn(evidence.doubt, UntrustedEvidence)  # at the caller of a function under takes_program
    return evidence


@overload
def bidirectional(
    program: Program,
    x: Tensor | tuple,
    *,
    chunk: int | None = None,
    kwargs: Mapping[str, Any] | None = None,
    engine: Engine = "auto",
    seed: int | None = 0,
    progress: bool = True,
    **options: Unpack[AnnealingOptions],
) -> AnnealedSandwich: ...
@overload
def bidirectional(
    model: Callable,
    guide: Callable | None,
    x: Tensor | tuple,
    *,
    chunk: int | None = None,
    kwargs: Mapping[str, Any] | None = None,
    engine: Engine = "auto",
    seed: int | None = 0,
    progress: bool = True,
    **options: Unpack[AnnealingOptions],
) -> AnnealedSandwich: ...
@takes_program(AnnealingOptions)
def bidirectional(
    model: Callable,
    guide: Callable | None,
    x: Tensor | tuple,
    *,
    chunk: int | None = None,
    kwargs: Mapping[str, Any] | None = None,
    engine: Engine = "auto",
    seed: int | None = 0,
    progress: bool = True,
    **options: Unpack[AnnealingOptions],
) -> AnnealedSandwich:
    """Bound log p(x) from both sides, for images drawn from the model (Grosse et al. 2015).

    If (z, x) ~ p(z, x), then z is an exact draw of p(z | x). Annealed chains towards p(x, z) bound log p(x) from below.
    Chains from that z, with the same transitions in reverse, have E 1/w = 1/p(x) and bound it from above:

        E log mean w  ≤  log p(x)  ≤  −E log mean 1/w

    The gap bounds the error of annealing on the model's own images; for other images it is an indication.

    Args:
        program: a module with ``model`` and ``guide``; or
        model, guide: a program whose model observes its first argument, unchanged, at its only observed site.
        x: only the number and the shape of the images matter: they are replaced by the model's. If it is a tuple, the
            further arguments (labels, for example) are kept.
        num_temperatures, chains, leapfrog, schedule, step_size, chunk, kwargs, engine, seed, progress: as in
            ``annealed_evidence``.

    Raises ValueError as ``annealed_evidence`` does, if the model has another observed site, and for a guide that makes
    values of auxiliary draws, as ``AutoNormal`` does: those of a simulated image are unknown.

    >>> from pyro_vae.linear_gaussian import LinearGaussian
    >>> program = LinearGaussian(torch.ones(3, 1).double())
    >>> bounds = bidirectional(program.model, None, torch.zeros(2, 3).double(), num_temperatures=50, leapfrog=3)
    >>> bounds.gap.shape
    torch.Size([2])
    """
    settings, compiled = annealing_settings(**options), whether_compiled(engine)
    given, columns = checked_arguments(x, kwargs), []
    chunk = chunk_size(chunk, given.device)
    with measuring(model, guide, given, seed):
        plan = MeasurementPlan.of(model, guide, given, None, _images_at_once(chunk, settings.chains))
        graphs = plan.graphs(compiled, _expected_calls(plan, settings))
        images, steps = [], _temperatures(settings) + settings.num_temperatures
        with progress_bar(plan.weights * steps, "step", progress) as bar:
            for batch, latent, x in simulated(model, plan):
                images.append(x.cpu())
                path = AnnealingPath(model, guide, *batch, graphs, validated=False, plan=plan)
                start = path.flatten(values_of(latent)).expand(settings.chains, -1, -1)
                moves, forward = _forward(path, settings, bar)
                reverse = anneal(path, start, moves.reversed(), bar)
                first = sum(len(column[0]) for column in columns)
                lower, upper = (weight_statistics(chains.log_w, first)[0] for chains in (forward, reverse))
                diagnostics = map(as_array, (forward.acceptance.mean(0), moves.steps[-1]))
                columns.append((lower, -upper, *diagnostics))
    lower, upper, acceptance, step = joined(columns)
    _check_acceptance(acceptance, step)
    return AnnealedSandwich(
        lower, upper, torch.cat(images), settings.chains, seed, plan.joint,
        acceptance=acceptance, num_temperatures=settings.num_temperatures,
    )  # fmt: skip


def _forward(path: AnnealingPath, settings: AnnealingSettings, bar: tqdm) -> tuple[AnnealingPlan, AnnealedChains]:
    """Run pilots, then chains from the starting density to p(x, z)."""
    moves = piloted(path, settings, bar)
    return moves, anneal(path, path.draw(settings.chains), moves, bar, settings.resample)


def _check_acceptance(acceptance: Tensor, step: Tensor) -> None:
    stuck = np.flatnonzero(acceptance.numpy() < LEAST_ACCEPTANCE).tolist()
    if not stuck:
        return
    message = (
        f"Hamiltonian Monte Carlo accepted nothing for {len(stuck)} of {len(acceptance)} images ({listed(stuck)}), "
        f"with step sizes down to {step.numpy()[stuck].min():.2g} standard deviations of the starting density; give a "
        "smaller step_size, fewer leapfrog steps or more temperatures"
    )
    if len(stuck) == len(acceptance):
        raise ValueError(message)
    warn(message, StuckChains)  # at the caller of a function under takes_program


def _temperatures(settings: AnnealingSettings) -> int:
    """Return the number of temperatures that pilots and chains pass."""
    return settings.num_temperatures + pilot_temperatures(settings.num_temperatures)


def _expected_calls(plan: MeasurementPlan, settings: AnnealingSettings) -> int:
    """Return how often the densities of a batch are computed."""
    return _temperatures(settings) * settings.leapfrog * max(1, plan.weights // plan.size)


def _images_at_once(chunk: int, chains: int) -> int:
    """Return the number of images whose chains run together."""
    return max(1, chunk // chains)
