"""log p(x) of single images, and how sure of it one can be.

``log_evidence``        importance sampling from the guide: a lower bound in expectation, with diagnostics.
``annealed_evidence``   annealed importance sampling with Hamiltonian transitions: a tighter lower bound.
``bidirectional``       on images that the model itself drew, where an upper bound is to be had too.

They take any Pyro program. "Images" are the rows of its data: the plate that all its sites share.
"""

import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pyro import poutine
from torch import Tensor
from tqdm.auto import tqdm

from pyro_vae.checks import positive_number, whole_number
from pyro_vae.compiling.export import owners
from pyro_vae.errors import short_errors
from pyro_vae.evidence.annealing import PILOTS, AnnealingPath, Setting, anneal, forward_run, sigmoid
from pyro_vae.evidence.arguments import Arguments, arguments
from pyro_vae.evidence.importance import Weights
from pyro_vae.evidence.pareto import pareto_k
from pyro_vae.evidence.plan import Plan, is_automatic
from pyro_vae.networks import lowered_precision
from pyro_vae.printing import listed, printable
from pyro_vae.random import measurement, mode, seeded, set_random_state, torch_random_state
from pyro_vae.tracing.probing import left_as_it_was
from pyro_vae.tracing.traces import sample_sites
from pyro_vae.training.engines import fast_matmul, warn_if_emulated

TRUSTED = 0.7  # the largest Pareto k̂ at which importance sampling is to be trusted (Vehtari et al. 2024)


class UntrustedEvidence(UserWarning):
    """Pareto k̂ is above 0.7 for some images: neither their log p(x) nor its standard error can then be trusted."""


@dataclass(frozen=True)
class Evidence:
    """Estimates of log p(x), one an image; tensors of shape (images,), float64, on the CPU.

    Where images share a latent variable (``joint``) there is one estimate, of log p of all of them, of shape (1,).

    Attributes:
        log_px: log p̂(x) = log 1/K Σ w, in nats. p̂ is unbiased, so its logarithm is a lower bound on log p(x) in
            expectation, too low by about ``standard_error²`` / 2.
        standard_error: of log p̂, by the delta method: sd(w) / (mean(w) √K). NaN for K = 1.
        ess: effective sample size (Σ w)² / Σ w², from 1 to K (Kong 1992).
        pareto_k: k̂, the shape of the tail of w (Vehtari et al. 2024); the variance of w is infinite for k > ½, and for
            k̂ > 0.7 neither estimate nor error can be trusted. −inf where the largest weights are equal, +inf where
            a few carry all; NaN where there are too few different ones to say, which is so for K ≤ 20.
        num_particles: K, the number of weights of an image.
        seed: of the random numbers; None if they were the caller's.
        joint: whether the one estimate is of all images together.

    >>> evidence = from_log_weights(torch.tensor([[0.0, -1.0], [0.0, -3.0]]))
    >>> evidence.log_px[1].exp() * 2 - torch.tensor([-1.0, -3.0]).double().exp().sum()
    tensor(0., dtype=torch.float64)
    """

    log_px: Tensor
    standard_error: Tensor
    ess: Tensor
    pareto_k: Tensor
    num_particles: int
    seed: int | None = None
    joint: bool = False

    @property
    def mean(self) -> float:
        """Mean of log p̂ over the images, in nats per image."""
        return self.log_px.mean().item()

    @property
    def mean_standard_error(self) -> float:
        """Standard error of the mean as one over all images that might have been drawn.

        It is sd(log p̂) / √n. The Monte Carlo errors of different images are independent and already part of the spread
        of log p̂, so nothing is to be added. NaN for a single image.
        """
        return _standard_error(self.log_px)

    @property
    def monte_carlo_error(self) -> float:
        """Standard error of the mean over just these images, √(Σ standard_error²) / n; more particles lessen it."""
        return self.standard_error.square().sum().sqrt().item() / len(self.standard_error)

    @property
    def untrusted(self) -> float:
        """Share of the images whose k̂ is above 0.7; NaN where there are too few particles to say."""
        return math.nan if self.pareto_k.isnan().all() else float((self.pareto_k > TRUSTED).numpy().mean())

    def to_dict(self) -> dict[str, Any]:
        """The summary as plain numbers, in nats per image (or of all, where ``joint``); None for what is not defined.

        >>> from_log_weights(torch.zeros(5, 2)).to_dict()["monte_carlo_error"]
        0.0
        """
        values = {
            "log_px": self.mean,
            "standard_error": self.mean_standard_error,
            "monte_carlo_error": self.monte_carlo_error,
            "images": len(self.log_px),
            "num_particles": self.num_particles,
            "seed": self.seed,
            "ess_median": self.ess.median().item(),
            "ess_min": self.ess.min().item(),
            "pareto_k_median": self.pareto_k.median().item(),
            "pareto_k_max": self.pareto_k.max().item(),
            "share_pareto_k_above_0.7": self.untrusted,
            "joint": self.joint,
        }
        return {name: _finite(value) for name, value in values.items()}

    def __str__(self) -> str:
        value = (
            f"log p ≥ {self.mean:.3f} nats of all images together ("
            if self.joint
            else f"log p(x) ≥ {self.mean:.3f} ± {self.mean_standard_error:.3f} nats per image (n = {len(self.log_px)}, "
        )
        k_hat = f"k̂ > {TRUSTED} for {self.untrusted:.1%} of the images"
        return printable(
            f"{value}K = {self.num_particles}, seed {self.seed}), Monte Carlo error {self.monte_carlo_error:.4f}; "
            f"effective sample size {self.ess.median():.0f} (median), {self.ess.min():.1f} (least); "
            + ("too few particles for k̂" if math.isnan(self.untrusted) else k_hat)
        )


@dataclass(frozen=True, kw_only=True)
class AnnealedEvidence(Evidence):
    """``Evidence`` whose weights are those of ``num_particles`` annealed chains.

    Attributes:
        acceptance: mean acceptance probability of the chains' proposals, (images,).
        step_size: at the last transition, (images,), in standard deviations of the starting density.
        num_temperatures: T.
    """

    acceptance: Tensor
    step_size: Tensor
    num_temperatures: int

    def to_dict(self) -> dict[str, Any]:
        """That of ``Evidence``, and acceptance, step size and number of temperatures."""
        return super().to_dict() | {
            "num_temperatures": self.num_temperatures,
            "acceptance": self.acceptance.mean().item(),
            "step_size": self.step_size.mean().item(),
        }

    def __str__(self) -> str:
        return f"{super().__str__()}; {self.num_temperatures} temperatures, acceptance {self.acceptance.mean():.2f}"


@dataclass(frozen=True)
class Sandwich:
    """Lower and upper bounds on log p(x) of images that the model drew, (images,), float64, in nats.

    In expectation lower ≤ log p(x) ≤ upper, so that the mean gap bounds the error of either.

    Attributes:
        lower, upper: the bounds, from the forward and the reverse chains.
        acceptance: of the forward chains' proposals, (images,).
        x: the images, as simulated.
        chains, num_temperatures, seed: the setting.
        joint: whether the one value of each is of all images together, which share a latent variable.
    """

    lower: Tensor
    upper: Tensor
    acceptance: Tensor
    x: Tensor
    chains: int
    num_temperatures: int
    seed: int | None = None
    joint: bool = False

    @property
    def gap(self) -> Tensor:
        """upper − lower, (images,). That of a single image may be below 0; its expectation is not."""
        return self.upper - self.lower

    def to_dict(self) -> dict[str, Any]:
        """Means over images with their standard errors, in nats per image."""
        means = {
            key: value
            for name in ("lower", "upper", "gap")
            for key, value in (
                (name, getattr(self, name).mean().item()),
                (f"{name}_standard_error", _standard_error(getattr(self, name))),
            )
        }
        setting = {"images": len(self.lower), "chains": self.chains, "num_temperatures": self.num_temperatures}
        values = {**means, **setting, "seed": self.seed, "acceptance": self.acceptance.mean().item()}
        return {name: _finite(value) for name, value in values.items()}

    def __str__(self) -> str:
        values = self.to_dict()
        images = "of all images together" if self.joint else f"per image on {len(self.lower)} simulated images"
        return printable(
            f"{values['lower']:.3f} ≤ log p(x) ≤ {values['upper']:.3f} nats {images}, gap {values['gap']:.3f} ± "
            f"{_standard_error(self.gap):.3f} ({self.chains} chains, {self.num_temperatures} temperatures, acceptance "
            f"{values['acceptance']:.2f}, seed {self.seed})"
        )


@measurement
def log_evidence(
    model: Callable,
    guide: Callable,
    x: Tensor | tuple,
    num_particles: int,
    *,
    kwargs: Mapping[str, Any] | None = None,
    chunk: int | None = None,
    batch_size: int | None = None,
    precision: torch.dtype | None = None,
    compiled: bool | None = None,
    seed: int | None = None,
    progress: bool = False,
) -> Evidence:
    """log p(x) of each image by importance sampling from the guide (Burda et al. 2016, S = ``num_particles``).

        log p̂(x) = log 1/K Σ_k w_k,   w_k = p(x, z_k) / q(z_k | x),   z_k ~ q(z | x)

    It bounds log p(x) from below in expectation. For a batch of images the guide runs once and draws all its
    particles; then the model runs against slices of them, so that memory is that of ``chunk`` decoded images.

    Where a latent variable lies outside the plate over images, as one that they share does, a single image has no
    weight. The result then is one estimate, of log p of all images together (``joint`` says so).

    Args:
        model, guide: any Pyro program.
        x: (images, ...), on the program's device; or a tuple of all positional arguments of the program, which may be
            anything.
        num_particles: K, exactly so many an image.
        kwargs: the program's keyword arguments.
        chunk: number of z decoded at once; 500 on a CPU (what stays in its cache), 20,000 on a GPU. It changes
            nothing but speed, memory and rounding.
        batch_size: images whose K particles are drawn at once; 250,000 / K if not given, at most 250. Another batch
            size draws other random numbers. Of all arguments, those with an entry for each image (tensors, arrays,
            lists) are cut into batches, and the others are the same for each. A number of images at least as large as
            there are cuts nothing: for an argument that has as many entries by chance. Pyro's automatic guides keep
            parameters for each row, and always see all of them at once.
        precision: ``torch.bfloat16`` has the networks of ``pyro_vae.networks`` compute in it, which moves log p̂ a
            little; distributions and sums keep the dtype of x, within the caller's ``torch.autocast``, too.
        compiled: whether the model is compiled, which changes nothing but speed and rounding; None: on a CPU, where
            there is a compiler and it is earned back. With True an untraceable model is an error, ``Untraceable``.
        seed: of random numbers of its own, that leave the caller's alone; None: the caller's are used.
        progress: whether to show a progress bar.

    Modules run in evaluation mode, no gradient is kept. Warns of images with k̂ > 0.7, by ``UntrustedEvidence``.

    Raises ValueError for x outside the support or NaN, where plates leave open what an image is or subsample the data,
    and for images whose log weights are all −inf or some NaN, by index.

    >>> from pyro_vae.linear_gaussian import LinearGaussian
    >>> program = LinearGaussian(torch.ones(3, 1).double())  # its guide is the exact posterior
    >>> evidence = log_evidence(program.model, program.guide, torch.zeros(2, 3).double(), 50, seed=0)
    >>> torch.allclose(evidence.log_px, program.log_px(torch.zeros(2, 3).double()))
    True
    """
    given = arguments(x, kwargs)
    whole_number("num_particles", num_particles)
    chunk = _chunk(chunk, given)
    if batch_size is not None:
        whole_number("batch_size", batch_size)
    with _measuring(model, guide, given, seed, precision):
        plan = Plan.of(model, guide, given, batch_size, min(max(250_000 // num_particles, 1), 250))
        total = plan.weights * num_particles
        weights = Weights(model, guide, plan, chunk, plan.graphs(compiled, total // chunk))
        columns = []
        with _bar(total, "particle", progress) as bar:
            for batch in plan.batches():
                log_w = weights(batch, num_particles, bar)
                columns.append(_statistics(_array(log_w), first=sum(len(column[0]) for column in columns)))
    evidence = Evidence(*_joined(columns), num_particles, seed, plan.joint)
    _warn_untrusted(evidence, "more particles, a better guide or annealed_evidence may help")
    return evidence


@measurement
def annealed_evidence(
    model: Callable,
    guide: Callable | None,
    x: Tensor | tuple,
    *,
    kwargs: Mapping[str, Any] | None = None,
    num_temperatures: int = 500,
    chains: int = 16,
    leapfrog: int = 10,
    schedule: Callable[[int], Tensor] | None = None,
    step_size: float | None = None,
    chunk: int | None = None,
    compiled: bool | None = None,
    seed: int | None = None,
    progress: bool = False,
) -> AnnealedEvidence:
    """log p(x) of each image by annealed importance sampling (Neal 2001; Wu et al. 2017).

    Chains go from z_0 ~ f_0 along f_β(z) = f_0(z)^(1−β) p(x, z)^β, 0 = β_0 < … < β_T = 1, each moved by Hamiltonian
    Monte Carlo (Neal 2011) that leaves f_β alone, and f_0 is the guide or the prior:

        log w = Σ_t (β_t − β_{t−1}) (log p(x, z_{t−1}) − log f_0(z_{t−1})),   E w = p(x)

    The step size of an image starts at ``step_size`` and follows the acceptance of two further chains to 0.65. They
    carry no weight: so the weighted chains' transitions do not depend on their past, and w stays unbiased.

    A latent variable of another support than all real numbers (a positive one, a simplex) is moved where Pyro's
    ``biject_to`` has it unconstrained. Where images share a latent variable, the chains are those of all of them, and
    the result is one estimate (``joint``), as in ``log_evidence``.

    Args:
        guide: the chains start from its draws; None: from the prior.
        num_temperatures: T; T − 1 transitions of ``leapfrog`` steps each, of random length (± 20 %).
        chains: weighted chains an image.
        schedule: T -> β of shape (T + 1,); ``annealing.sigmoid`` if not given, or ``annealing.linear``.
        step_size: the first one, in standard deviations of f_0, estimated for each image and dimension of z; ½ D^−¼ if
            not given.
        chunk: number of z decoded at once, which sets how many images run together (and so which random numbers).
        model, x, kwargs, compiled, seed, progress: as in ``log_evidence``.

    Raises ValueError as ``log_evidence`` does, for discrete latent variables and those whose bounds depend on others,
    and where no proposal was accepted at all; warns of single images in which none was.

    >>> from pyro_vae.linear_gaussian import LinearGaussian
    >>> program, x = LinearGaussian(torch.ones(3, 1).double()), torch.zeros(2, 3).double()
    >>> evidence = annealed_evidence(program.model, None, x, num_temperatures=100, leapfrog=3, seed=0)
    >>> bool((evidence.log_px - program.log_px(x)).abs().max() < 0.1)
    True
    """
    setting = _setting(num_temperatures, chains, leapfrog, schedule, step_size)
    given, columns = arguments(x, kwargs), []
    chunk = _chunk(chunk, given)
    with _measuring(model, guide, given, seed):
        plan = Plan.of(model, guide, given, None, _together(chunk, chains))
        graphs = plan.graphs(compiled, _calls(plan, setting))
        with _bar(plan.weights * num_temperatures, "step", progress) as bar:
            for batch in plan.batches():
                run = forward_run(AnnealingPath(model, guide, *batch, graphs, plan=plan), setting, bar)
                first = sum(len(column[0]) for column in columns)
                columns.append((*_statistics(run.log_w, first), *map(_array, (run.acceptance.mean(0), run.steps[-1]))))
    *statistics, acceptance, step = _joined(columns)
    _check_acceptance(acceptance, step)
    evidence = AnnealedEvidence(
        *statistics, chains, seed, plan.joint,
        acceptance=acceptance, step_size=step, num_temperatures=num_temperatures,
    )  # fmt: skip
    _warn_untrusted(evidence, "more temperatures or chains may help")
    return evidence


@measurement
def bidirectional(
    model: Callable,
    guide: Callable | None,
    x: Tensor | tuple,
    *,
    kwargs: Mapping[str, Any] | None = None,
    num_temperatures: int = 500,
    chains: int = 16,
    leapfrog: int = 10,
    schedule: Callable[[int], Tensor] | None = None,
    step_size: float | None = None,
    chunk: int | None = None,
    compiled: bool | None = None,
    seed: int | None = None,
    progress: bool = False,
) -> Sandwich:
    """Lower and upper bounds on log p(x) of images drawn from the model (Grosse et al. 2015).

    With (z, x) ~ p(z, x), z is an exact draw of p(z | x). Annealed chains towards p(x, z) bound log p(x) from below;
    chains from that z, with the same transitions in reverse, have E 1/w = 1/p(x) and bound it from above:

        E log mean w  ≤  log p(x)  ≤  −E log mean 1/w

    The gap certifies the evaluator on the model's own images; for others it is a guess.

    Args:
        model: a program that observes its first argument, as it is, at its one observed site.
        x: of images only their number and shape matter: they are replaced by the model's. Of a tuple, what follows x
            (labels, say) is kept.
        guide, kwargs, num_temperatures, chains, leapfrog, schedule, step_size, chunk, compiled, seed, progress: as in
            ``annealed_evidence``.

    Raises ValueError as ``annealed_evidence`` does, and where the model has another observed site.

    >>> from pyro_vae.linear_gaussian import LinearGaussian
    >>> program = LinearGaussian(torch.ones(3, 1).double())
    >>> bounds = bidirectional(program.model, None, torch.zeros(2, 3).double(), num_temperatures=50, leapfrog=3, seed=0)
    >>> bounds.gap.shape
    torch.Size([2])
    """
    setting = _setting(num_temperatures, chains, leapfrog, schedule, step_size)
    given, columns = arguments(x, kwargs), []
    chunk = _chunk(chunk, given)
    with _measuring(model, guide, given, seed):
        plan = Plan.of(model, guide, given, None, _together(chunk, chains))
        graphs = plan.graphs(compiled, _calls(plan, setting))
        # First, so that the images are the same for any temperatures.
        draws = [_simulate(model, batch, plan) for batch in plan.batches()]
        with _bar(2 * plan.weights * num_temperatures, "step", progress) as bar:
            for batch, (values, images) in zip(plan.batches(), draws):
                simulated = batch._replace(args=(images, *batch.args[1:]))
                path = AnnealingPath(model, guide, *simulated, graphs, validated=False, plan=plan)
                forward = forward_run(path, setting, bar)
                start = path.flatten(values).expand(chains, -1, -1)
                reverse = anneal(path, start, setting.reversed(), forward.steps.flip(0), forward.scale, 0, bar)
                first = sum(len(column[0]) for column in columns)
                lower, upper = _statistics(forward.log_w, first)[0], -_statistics(reverse.log_w, first)[0]
                columns.append((lower, upper, *map(_array, (forward.acceptance.mean(0), forward.steps[-1]))))
    lower, upper, acceptance, step = _joined(columns)
    _check_acceptance(acceptance, step)
    images = torch.cat([images.cpu() for _, images in draws])
    return Sandwich(lower, upper, acceptance, images, chains, num_temperatures, seed, plan.joint)


def from_log_weights(log_w: Tensor, seed: int | None = None) -> Evidence:
    """``Evidence`` of log weights (K, images), wherever they come from.

    Raises ValueError for other than a tensor of two dimensions in float32 or float64, and where the log weights of an
    image are all −inf, or any is NaN or +inf.

    >>> from_log_weights(torch.zeros(100, 2)).ess
    tensor([100., 100.], dtype=torch.float64)
    """
    precise = isinstance(log_w, Tensor) and log_w.dtype in (torch.float32, torch.float64)
    if not precise or log_w.dim() != 2 or not log_w.numel():
        got = f"{log_w.dtype} of shape {tuple(log_w.shape)}" if isinstance(log_w, Tensor) else type(log_w).__name__
        raise ValueError(f"log_w: wanted a tensor (K, images) of float32 or float64, got {got}")
    return Evidence(*_joined([_statistics(_array(log_w))]), len(log_w), seed)


def _statistics(log_w: np.ndarray, first: int = 0) -> tuple[np.ndarray, ...]:
    """log p̂, standard error, effective sample size and k̂ from log weights (K, B); ``first``: index of image 0.

    In NumPy, and so in float64 for weights of a device that has none.
    """
    rounding = 8 * np.finfo(log_w.dtype).eps
    log_w = log_w.astype(np.float64)
    peak = log_w.max(0)
    _check_weights(log_w, peak, first)
    w = np.exp(log_w - peak)
    mean, K = w.mean(0), len(w)
    error = w.std(0, ddof=1) / (mean * math.sqrt(K)) if K > 1 else np.full_like(mean, np.nan)
    ess = w.sum(0) ** 2 / (w**2).sum(0)
    return peak + np.log(mean), error, ess, pareto_k(log_w, rounding * np.abs(peak).clip(min=1))


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()


def _joined(batches: Iterable[Sequence[np.ndarray]]) -> Iterator[Tensor]:
    """Each of the values of images, from those of batches. (Unlike ``from_numpy``, no operation makes a float64.)"""
    return (torch.from_dlpack(np.concatenate(values)) for values in zip(*batches))


def _check_weights(log_w: np.ndarray, peak: np.ndarray, first: int) -> None:
    broken = np.flatnonzero(np.isnan(log_w).any(0) | (peak == math.inf)) + first
    if len(broken):
        raise ValueError(
            f"log weights are NaN or +inf for the images {listed(broken)}; look at their x and at the parameters with "
            "pyro.validation_enabled(True)"
        )
    lost = np.flatnonzero(peak == -math.inf) + first
    if len(lost):
        raise ValueError(
            f"every log weight is −inf for the images {listed(lost)}: no draw of z can have made them; give more "
            "particles, a broader guide, or a likelihood that is nowhere zero"
        )


def _warn_untrusted(evidence: Evidence, advice: str) -> None:
    count = int((evidence.pareto_k > TRUSTED).sum())
    if count:
        warnings.warn(
            f"Pareto k̂ > {TRUSTED} for {count} of {len(evidence.pareto_k)} images ({evidence.untrusted:.1%}): neither "
            f"their log p(x) nor its standard error can be trusted; {advice}",
            UntrustedEvidence,
            stacklevel=4,
        )


def _simulate(model: Callable, batch: Arguments, plan: Plan) -> tuple[dict[str, Tensor], Tensor]:
    """(z, x) ~ p(z, x): values of the latent sites, each (1, ...), and the images x."""
    observed = sample_sites(poutine.trace(model).get_trace(*batch.args, **batch.kwargs), observed=True)
    x = next(iter(batch.args), None)
    if len(observed) != 1 or x is None or not torch.equal(next(iter(observed.values()))["value"], x):
        raise ValueError(
            f"the model observes the sites {list(observed)}; wanted one that observes the first argument as it is, so "
            "that images can be drawn from the model, as in pyro.sample('x', ..., obs=x)"
        )
    drawn = plan.trace(poutine.uncondition(model), batch, 1)
    values = {name: site["value"] for name, site in sample_sites(drawn).items()}
    x = values.pop(next(iter(observed)))[0]
    return values, x


def _check_acceptance(acceptance: Tensor, step: Tensor) -> None:
    stuck = np.flatnonzero(acceptance.numpy() < 1e-6)
    if not len(stuck):
        return
    message = (
        f"Hamiltonian Monte Carlo accepted nothing for {len(stuck)} of {len(acceptance)} images ({listed(stuck)}), "
        f"with step sizes down to {step.numpy()[stuck].min():.2g} standard deviations of the starting density; give a "
        "smaller step_size, fewer leapfrog steps or more temperatures"
    )
    if len(stuck) == len(acceptance):
        raise ValueError(message)
    warnings.warn(message, stacklevel=4)


def _setting(
    num_temperatures: int, chains: int, leapfrog: int, schedule: Callable[[int], Tensor] | None, step_size: float | None
) -> Setting:
    for name, number in (("num_temperatures", num_temperatures), ("chains", chains), ("leapfrog", leapfrog)):
        whole_number(name, number)
    if num_temperatures < 2:
        raise ValueError("num_temperatures: wanted at least 2, got 1; log_evidence needs none")
    if step_size is not None:
        positive_number("step_size", step_size)
    betas = (schedule or sigmoid)(num_temperatures).tolist()
    rising = all(before < beta for before, beta in itertools.pairwise(betas))
    if len(betas) != num_temperatures + 1 or (betas[0], betas[-1]) != (0.0, 1.0) or not rising:
        wanted = f"{num_temperatures + 1} rising numbers from 0 to 1, as from annealing.linear"
        raise ValueError(f"schedule: wanted {wanted}; got {betas}")
    return Setting(betas, chains, leapfrog, step_size)


def _calls(plan: Plan, setting: Setting) -> int:
    """How often the densities of a batch are computed."""
    return len(setting.betas) * setting.leapfrog * max(1, plan.weights // plan.size)


def _together(chunk: int, chains: int) -> int:
    """Images whose chains run together."""
    return max(1, chunk // (chains + PILOTS))


@contextmanager
def _measuring(
    model: Callable, guide: Callable | None, given: Arguments, seed: int | None, precision: torch.dtype | None = None
) -> Iterator[None]:
    """A block with random numbers of its own, if seeded, and the program's modules in evaluation mode and precision."""
    warn_if_emulated(precision, given.device)
    with ExitStack() as stack:
        stack.enter_context(short_errors(given.args, given.kwargs))
        if is_automatic(guide):
            stack.enter_context(_not_set_up(guide, given.device))
        for owner in owners(model, guide):
            stack.enter_context(mode(owner, training=False))
            stack.enter_context(lowered_precision(owner, precision))
        stack.enter_context(fast_matmul(given.device))
        if seed is not None:
            stack.enter_context(seeded(seed, given.device))
        yield


@contextmanager
def _not_set_up(guide: Callable, device: torch.device) -> Iterator[None]:
    """A block after which an automatic guide that first ran in it is as new: it may be trained on other rows."""
    with left_as_it_was(guide):
        yield
        drawn = torch_random_state(device)
    set_random_state(drawn, device)


def _bar(total: int, unit: str, progress: bool) -> tqdm:
    return tqdm(total=total, unit=unit, unit_scale=True, disable=not progress)


def _chunk(chunk: int | None, given: Arguments) -> int:
    return whole_number("chunk", (500 if given.device.type == "cpu" else 20_000) if chunk is None else chunk)


def _standard_error(values: Tensor) -> float:
    return values.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.nan


def _finite(value: Any) -> Any:
    return value if not isinstance(value, float) or math.isfinite(value) else None
