"""Training of any program by any Pyro ELBO, and the evaluation of its bound, rate and distortion per image."""

import math
import platform
import signal
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Literal

import pyro
import torch
from pyro.infer import ELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import Generator, Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from tqdm.auto import tqdm

from pyro_vae.checks import whole_number
from pyro_vae.data.mapped import parts, take
from pyro_vae.data.sets import Data, batches
from pyro_vae.errors import short_errors
from pyro_vae.estimators import Estimator, check_analytic_kl
from pyro_vae.files import CheckpointError
from pyro_vae.handlers import KLWeighted
from pyro_vae.hardware import widest_float
from pyro_vae.networks import lowered_precision
from pyro_vae.program import Program, dtype_of, observed
from pyro_vae.random import (
    deferred_interrupt,
    measurement,
    mode,
    random_state,
    seeded,
    set_random_state,
    torch_random_state,
    without_autocast,
)
from pyro_vae.tracing.probing import left_as_it_was
from pyro_vae.tracing.traces import (
    Runs,
    check_messenger,
    check_rows,
    common_scale,
    paired_traces,
    per_image,
    proposal_sites,
    sample_sites,
)
from pyro_vae.training import engines, ranks, settings
from pyro_vae.training.checkpoint import Checkpoints, check_same, encode
from pyro_vae.training.nonfinite import NonFiniteLoss, culprit
from pyro_vae.training.rehearsal import X_ALONE, given_x_alone, last_batch
from pyro_vae.training.selection import Objective, Weights, alike
from pyro_vae.training.settings import Settings

# Of a row of the history, in their order.
ROW = (
    "epoch",
    *(f"{split}_{term}" for split in ("train", "valid") for term in ("bound", "rate", "distortion")),
    "seconds",
    "images_per_second",
    "valid_objective",
)
GOOD_ONES = "the last good parameters are restored."
SCHEDULED = ("lr", "momentum", "betas")  # settings of an optimiser that torch's schedulers move
CURES = "Try a smaller lr, a larger lower bound on the likelihood's scale, or skip_non_finite"


@dataclass(frozen=True)
class Evaluation:
    """Monte Carlo values of single images, in nats, each of shape (images,), float64 (float32 where a device has none).

    ``rate`` = log q(z | x) − log p(z), ``distortion`` = −log p(x | z), ``bound`` = −(rate + distortion), means over the
    particles.
    """

    rate: Tensor
    distortion: Tensor

    @property
    def bound(self) -> Tensor:
        return -(self.rate + self.distortion)

    def summary(self) -> dict[str, float]:
        """Means over the images in nats per image, and the standard error of the bound's.

        >>> evaluation = Evaluation(rate=torch.tensor([1.0, 3.0]), distortion=torch.tensor([9.0, 9.0]))
        >>> evaluation.summary()
        {'bound': -11.0, 'standard_error': 1.0, 'rate': 2.0, 'distortion': 9.0, 'images': 2}
        """
        n = len(self.rate)
        error = self.bound.to(widest_float(self.bound.device)).std().item() / math.sqrt(n) if n > 1 else math.nan
        values = {name: getattr(self, name).mean().item() for name in ("bound", "rate", "distortion")}
        return {"bound": values.pop("bound"), "standard_error": error, **values, "images": n}


@dataclass
class History:
    """What ``fit`` saw: a row an epoch, and which epoch's parameters it kept.

    Args:
        rows: bounds, rates and distortions in nats per image on training and validation images, seconds of training so
            far, images a second, and ``valid_objective``, by which epochs are compared, in nats per image.
        skipped: steps left out because their loss or gradient was not finite.
        signal: the signal that ended it, if one did.
        engine: the one that trained.
        keep: "best" or "last", as ``fit`` was asked.
        objective: what ``valid_objective`` is, in words.
        comparable_from: the first epoch from which on the weights of the program's sites, such as a KL weight, are what
            they are now. Epochs before it were trained by another objective, and are not compared.
    """

    rows: list[dict[str, float]] = field(default_factory=list)
    skipped: int = 0
    signal: int | None = None
    engine: str = ""
    keep: Literal["best", "last"] = "best"
    objective: str = "the bound with one particle"
    comparable_from: int = 1

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C, or another signal, ended the training early."""
        return self.signal is not None

    @property
    def best_epoch(self) -> int | None:
        """The epoch of the highest objective on the validation images, of those that compare; None before the first."""
        rows = self.rows[self.comparable_from - 1 :]
        return max(rows, key=lambda row: row["valid_objective"])["epoch"] if rows else None

    @property
    def kept_epoch(self) -> int | None:
        """The epoch whose parameters the program has after ``fit``; None where none has ended."""
        return len(self.rows) or None if self.keep == "last" else self.best_epoch

    @property
    def reason(self) -> str:
        """Why it is that epoch, in words.

        >>> History([{"epoch": 1, "valid_objective": -9.0}, {"epoch": 2, "valid_objective": -8.0}]).reason
        'the best of epochs 1 to 2 on the validation images by the bound with one particle'
        """
        first, last = self.comparable_from, len(self.rows)
        if not last:
            return "no epoch has ended: the parameters are those of the last step"
        if self.keep == "last":
            return 'the last epoch, as keep="last" asks'
        if first == last > 1:
            return "the last epoch: the weights of the sites, such as a KL weight, changed in it, so that none compares"
        since = f", since the weights of the sites changed in epoch {first}" if first > 1 else ""
        return f"the best of epochs {first} to {last} on the validation images by {self.objective}{since}"


def fit(
    program: Program,
    data: Data,
    estimator: ELBO | None = None,
    *,
    epochs: int = 10,
    batch_size: int = 256,
    lr: float | None = None,
    seed: int = 0,
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None = None,
    schedule: Callable[[torch.optim.Optimizer, int], LRScheduler] | None = None,
    precision: torch.dtype | None = None,
    engine: str = "auto",
    clip: float | None = None,
    skip_non_finite: int = 0,
    checkpoints: Checkpoints | None = None,
    keep: Literal["best", "last"] = "best",
    progress: bool = True,
) -> History:
    """Gradient steps on minus the bound over shuffled minibatches; keeps the parameters best on the validation images.

    After every epoch the bound, rate and distortion are measured, with one particle, on all validation images and on
    as many training images. x of the training images is made anew each time, x of the validation images once.

    Epochs are compared by what is trained: the estimator's objective on the validation images, with its particles and
    with the weights of the sites, such as a KL weight, that training has (``selection.Objective``). Where a weight
    changes by more than a thousandth, the comparison begins anew with that epoch, so that none with a smaller KL weight
    comes back. ``History.kept_epoch`` and ``reason`` say which epoch it is and why.

    Args:
        program: an ``nn.Module`` such as ``VAE``; it is trained in place, on the device of its parameters.
        data: images of ``data.train`` train, those of ``data.valid`` choose.
        estimator: any ``pyro.infer.ELBO``; ``Trace_ELBO()`` if not given.
        lr: step of Adam, 1e-3 if not given; an ``optimizer`` has its own.
        optimizer: from a list of parameters to a torch optimiser of just these; Adam if not given.
        schedule: from the optimiser and the number of steps of all epochs to a scheduler that is stepped after each,
            such as ``warm_cosine``; a constant step if not given. ``ReduceLROnPlateau(..., threshold_mode="abs")`` is
            stepped after each epoch in which no weight changed, by the objective or, in its mode "min", by minus it.
        precision: ``torch.bfloat16`` has the networks of ``pyro_vae.networks`` compute in it, in training steps only;
            distributions, sums, parameters and every evaluation keep the dtype of the parameters.
        engine: "eager"; "compiled", loss and gradient as one graph; "svi", ``pyro.infer.SVI.step``, the reference;
            "auto" compiles where that is earned back, see ``pyro_vae.engines``, and is "svi" for estimators that no
            other engine trains by, such as ``RenyiELBO``. All train alike, up to rounding.
        clip: largest norm of all gradients together, to which longer ones are cut; None: they are left as they are.
        skip_non_finite: how many steps may be left out because their loss or gradient is not finite; one more is an
            error. ``History.skipped`` counts them.
        checkpoints: where the run is saved, and whether it goes on from there: to the same bits, on a CPU with the same
            number of threads and one process, as a run that was never stopped. More epochs than before are taken, too;
            a schedule is then that of the new length, with a warning where its step is another one there.
        keep: "best", the epoch with the highest objective, or "last".
        seed: of minibatches and noise. The same seed on the same machine gives the same result.
        progress: whether to show a progress bar.

    Raises:
        ValueError: for settings that cannot be, before anything is trained; among them ``TraceMeanField_ELBO`` for a KL
            that has no closed form, a last batch too small for BatchNorm, a program whose bound cannot be measured, and
            settings other than those of the run that is to be resumed.
        NonFiniteLoss: naming epoch, step, estimator and the site whose log-probability went first; the program then has
            the last good parameters.
        CheckpointError: where the run cannot be saved or resumed, or would take the place of another one.

    Ctrl-C ends the training early, after a whole step, and the run is saved: the parameters of the epoch to be kept are
    restored and ``History.interrupted`` is set. SIGTERM does the same where its handler is ``state.interrupt``.

    On a CPU the process keeps freed memory from then on, up to 1 GiB (``engines.keep_freed_memory``).

    Under ``torchrun``, in a block of ``ranks.processes``, every rank calls ``fit`` with the same arguments, only
    rank 0 with checkpoints: ``batch_size`` images are shared out in each step, those of the evaluation too.

    >>> from pyro_vae import VAE, guides, likelihoods, load, networks, priors
    >>> digits = load("digits")
    >>> vae = VAE(
    ...     priors.StandardNormal(2),
    ...     likelihoods.Bernoulli(networks.MLPDecoder(2, digits.shape, maps=1, hidden=(16,))),
    ...     guides.MeanField(networks.MLPEncoder(digits.shape, hidden=(16,)), 2),
    ... )
    >>> history = fit(vae, digits, epochs=2, lr=1e-2, progress=False)
    >>> history.rows[1]["valid_bound"] > history.rows[0]["valid_bound"]
    True
    """
    estimator = Trace_ELBO() if estimator is None else estimator
    settings.check_program_and_data(program, data)
    settings.check_estimator(estimator)
    settings.check_checkpoints(checkpoints)
    given = Settings(epochs, batch_size, lr, seed, precision, engine, clip, skip_non_finite, keep)
    given = given.checked(program, data, estimator)
    ranks.check_batches(len(data.train), given.batch_size)
    ranks.check_held_out(len(data.valid))
    optimizer = settings.made_optimizer(optimizer, program, given.lr)
    steps = math.ceil(len(data.train) / given.batch_size)
    scheduler = settings.made_scheduler(schedule, optimizer, given.epochs * steps)
    KLWeighted.check_annealing(optimizer, given.epochs * steps)
    run = Run(program, optimizer, scheduler, steps)
    data = data.to(run.device)
    images, seen = data.train.images, data.train.images[: len(data.valid)].to(run.device)
    held_out = {"train": fixed_x(program, seen), "valid": fixed_x(program, data.valid.images)}
    with _surroundings(program, given.seed, run.device):
        objective = _tried(run, images, held_out["valid"], estimator, given)
        saver = _Saver(run, checkpoints)
        saver.resume(given.to_be_the_same(estimator), images)
        _follow_first(run, given.seed)
        try:
            _train(run, images, held_out, objective, saver, given, progress)
        except KeyboardInterrupt as interrupt:
            run.history.signal = int(interrupt.args[0]) if interrupt.args else signal.SIGINT
            run.best = run.best if run.history.rows else deepcopy(program.state_dict())
        finally:
            program.load_state_dict(run.best)
    return run.history


def warm_cosine(optimizer: torch.optim.Optimizer, steps: int, warm_up: float = 0.1) -> LRScheduler:
    """The step grows linearly over a share of the steps, then falls to zero as a cosine (Loshchilov & Hutter 2017).

    >>> optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    >>> schedule = warm_cosine(optimizer, steps=4, warm_up=0.5)
    >>> [round(schedule.lr_lambdas[0](step), 2) for step in range(5)]
    [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    warm = max(1, round(warm_up * steps))

    def factor(step: int) -> float:
        fallen = min(1.0, (step - warm) / max(1, steps - warm))
        return (step + 1) / warm if step < warm else 0.5 + 0.5 * math.cos(math.pi * fallen)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


@measurement
def evaluate(program: Program, x: Tensor, *, particles: int = 1, batch_size: int = 1000, seed: int = 0) -> Evaluation:
    """Bound, rate and distortion of each image by Monte Carlo, without a step of any optimiser.

    x: (images, C, H, W), see ``fixed_x``. Every image is seen, in batches of at most ``batch_size``. A weight of single
    images, by ``poutine.scale``, is divided out. Raises ValueError for a program whose sites share no plate over images
    or are weighed differently, FloatingPointError where a value is not finite.

    >>> import pyro_vae as pv
    >>> vae = pv.VAE(
    ...     pv.priors.StandardNormal(2),
    ...     pv.likelihoods.Normal(pv.networks.MLPDecoder(2, (1, 8, 8), maps=2)),
    ...     pv.guides.MeanField(pv.networks.MLPEncoder((1, 8, 8)), 2),
    ... )
    >>> evaluate(vae, torch.rand(5, 1, 8, 8)).bound.shape
    torch.Size([5])
    """
    particles, batch_size = whole_number("particles", particles), whole_number("batch_size", batch_size)
    if not torch.is_tensor(x) or not x.dim() or not len(x):
        got = f"a tensor of shape {tuple(x.shape)}" if torch.is_tensor(x) else type(x).__name__
        cure = X_ALONE if isinstance(x, tuple) else "make it by training.fixed_x(program, pixels)"
        raise ValueError(f"x: wanted a tensor (images, ...) with at least one image, got {got}; {cure}")
    dtype_of(program)
    parts, runs = [], Runs(particles)
    with seeded(seed, x.device), mode(program, training=False), short_errors([x]), given_x_alone():
        for batch in x.split(batch_size):
            parts.append(_rate_and_distortion(runs, program, batch))
    rate, distortion = (torch.cat(part) for part in zip(*parts))
    bad = (~(rate + distortion).isfinite()).nonzero().flatten()
    if len(bad):
        raise FloatingPointError(
            f"the bound of {len(bad)} of {len(x)} images is not finite, the first being image {bad[0]}: rate "
            f"{rate[bad[0]]}, distortion {distortion[bad[0]]}; the parameters or these images are damaged"
        )
    return Evaluation(rate, distortion)


def fixed_x(program: Program, pixels: Tensor, seed: int = 0) -> Tensor:
    """x of validation and test images: drawn from the pixels once, by a seed of its own, in the program's dtype.

    >>> from pyro_vae.likelihoods import Bernoulli
    >>> likelihood, pixels = Bernoulli(nn.Identity()), torch.full((1, 1, 8, 8), 100, dtype=torch.uint8)
    >>> torch.equal(fixed_x(likelihood, pixels), fixed_x(likelihood, pixels))
    True
    """
    return observed(program, pixels, Generator(pixels.device).manual_seed(whole_number("seed", seed, least=None)))


def check_program(program: Program, x: Tensor | tuple, estimator: ELBO | None = None) -> None:
    """Tries model and guide on x, the first of their arguments or a tuple of all, with Pyro's validation on.

    Found out are site names, shapes, supports, masks and plates that differ, values that are not finite, guides that
    the estimator (Pyro's own, if not given) would misread, and rows that do not have a log-probability of their own in
    evaluation mode (``check_rows``). Nothing tells afterwards that the program ran: parameters, buffers, modes, random
    numbers and Pyro's settings are as they were. Raises ValueError.
    """
    args = x if isinstance(x, tuple) else (x,)
    with short_errors(args), left_as_it_was(program.model, program.guide), torch.no_grad():
        with pyro.validation_enabled(True), given_x_alone():
            traces = paired_traces(program.model, program.guide, args)
        proposal_sites(traces[1], points_too=True)
        if not isinstance(estimator, Estimator):
            check_messenger(program.guide, traces[1])
        for trace in traces:
            for name, site in sample_sites(trace).items():
                if not site["log_prob"].isfinite().all():
                    raise ValueError(
                        f"site {name!r}: its log-probability is not finite on the first batch; check the initial "
                        "parameters, and that x was made by observe(pixels)"
                    )
        with mode(program, training=False):
            _check_vectorized(program, args, estimator)
            check_rows(program.model, program.guide, args)


def _check_vectorized(program: Program, args: tuple, estimator: ELBO | None) -> None:
    """Raises ValueError where one of Pyro's ELBOs draws particles together in a program that takes no such plate."""
    if isinstance(estimator, Estimator) or not getattr(estimator, "vectorize_particles", False):
        return
    K = estimator.num_particles
    if K > 1 and not Runs(K).layout(program.model, program.guide, args).vectorized:
        name = type(estimator).__name__
        raise ValueError(
            f"estimator: {name} draws its particles in one plate, in which this program has other "
            "log-probabilities than for one particle, or none, as its networks or sums take dimensions by "
            f"their position; write {name}(num_particles={K}, vectorize_particles=False)"
        )


@contextmanager
def _surroundings(program: Program, seed: int, device: torch.device) -> Iterator[None]:
    """A block in training mode with random numbers of its own, which the caller's modes of torch do not reach."""
    if device.type == "cpu":
        engines.keep_freed_memory()
    with (
        seeded(ranks.own_seed(seed), device),
        mode(program, training=True),
        torch.inference_mode(False),
        torch.enable_grad(),
        without_autocast(),
    ):
        yield


def _tried(run: "Run", images: Tensor, valid: Tensor, estimator: ELBO, given: Settings) -> Objective:
    """What the epochs are compared by; ValueError for what would fail later, and for what would not be trained."""
    program = run.program
    first = observed(program, images[: given.batch_size].to(run.device))
    if not torch.is_tensor(first):
        raise ValueError(f"observe: wanted a tensor x, got a {type(first).__name__}; {X_ALONE}")
    check_program(program, first, estimator)
    if isinstance(estimator, TraceMeanField_ELBO):
        check_analytic_kl(program.model, program.guide, first)
    with left_as_it_was(program.model, program.guide):
        settings.check_all_trained(program, run.optimizer, first)
        numbers = random_state(run.device)
    set_random_state(numbers, run.device)  # a seed gives the training that it gave when a check drew numbers, too
    objective = Objective(program, estimator, valid, first, given.batch_size)
    _rehearse(objective, len(images))
    run.history.keep, run.history.objective = given.keep, objective.name
    return objective


def _train(
    run: "Run",
    images: Tensor,
    held_out: Mapping[str, Tensor],
    objective: Objective,
    saver: "_Saver",
    given: Settings,
    progress: bool,
) -> None:
    """The epochs that are left, each measured and, when it is time, saved. Raises KeyboardInterrupt between steps."""
    before = run.history.engine
    if run.weights is None:
        run.weights = ranks.broadcast(objective.weights())
    step = _engine(run, objective.estimator, given, images)
    bar = tqdm(total=given.epochs * len(images), unit="image", unit_scale=True, disable=not progress)
    bar.update(len(run.history.rows) * len(images) + min(run.taken * given.batch_size, len(images)))
    with bar, deferred_interrupt() as raise_if_asked:
        while len(run.history.rows) < given.epochs:
            with (
                lowered_precision(run.program, given.precision),
                engines.fast_matmul(run.device),
                pyro.validation_enabled(False),
            ):
                for losses in _train_epoch(run, step, images, given.batch_size, bar):
                    _check_finite(run, losses, objective.estimator, images, given.skip_non_finite)
                    saver.between_steps(raise_if_asked)
                step.end_epoch()
            if before not in ("", step.name):
                warnings.warn(
                    f"the run was trained by {before!r} and went on by {step.name!r}: the same bits are not promised",
                    stacklevel=3,
                )
            before, run.history.engine = "", step.name
            weights = ranks.broadcast(objective.weights())
            run.end_epoch(_summaries(run, held_out, objective, weights), weights, len(images))
            saver.between_steps(raise_if_asked)
    saver.save()
    if run.changed and not hasattr(run.optimizer, "annealing"):
        warnings.warn(
            "the weights of the sites, such as a KL weight, still changed in the last epoch: what is "
            "trained may not be the objective that they lead to; train for more epochs, or have them "
            "reach their end in fewer steps",
            stacklevel=3,
        )


def _engine(run: "Run", estimator: ELBO, given: Settings, images: Tensor) -> Any:
    """What takes the steps; batches of a run that goes on have the shape that its first one had."""
    engines.warn_if_emulated(given.precision, run.device)
    shape = ranks.share(images[: given.batch_size]).shape if run.step else None
    steps = given.epochs * run.epoch_steps
    return engines.engine(
        given.engine, run.program, estimator, run.optimizer, run.scheduler_of_steps, given.clip, steps, shape
    )


def _shared(program: Program, x: Tensor) -> Evaluation:
    """``evaluate`` with the images shared out over the ranks; its values are on every rank."""
    part = evaluate(program, x.tensor_split(ranks.world_size())[ranks.rank()], seed=ranks.own_seed(0))
    return Evaluation(ranks.all_gather(part.rate), ranks.all_gather(part.distortion))


def _rehearse(objective: Objective, images: int) -> None:
    """Raises ValueError for what would fail later: the last batch of an epoch, and what is measured after it."""
    program, estimator, first = objective.program, objective.estimator, objective.batch
    loss = estimator.differentiable_loss if hasattr(estimator, "differentiable_loss") else estimator.loss
    with left_as_it_was(program.model, program.guide), pyro.validation_enabled(False):
        last_batch(lambda x: loss(program.model, program.guide, x), first, images, objective.batch_size)
        try:
            with suppress(FloatingPointError):  # which the parameters as they are now may cause
                evaluate(program, objective.x[:1000])
        except ValueError as error:
            cure = ""
            if "scaled" in str(error) or "its scale" in str(error):
                cure = ". A KL weight is for training mode alone; handlers.KLWeighted(program) sees to that"
            raise ValueError(
                "after each epoch the bound of each image is measured, in evaluation mode, which this "
                f"program does not allow: {error}{cure}"
            ) from error
        weights = objective.weights()
        if not objective.is_the_bound(weights):
            objective.loss(objective.x[: objective.batch_size], weights)


def _summaries(
    run: "Run", held_out: Mapping[str, Tensor], objective: Objective, weights: Weights
) -> dict[str, dict[str, float]]:
    """Bound, rate and distortion of each of the held-out sets, and the objective; NonFiniteLoss where one is not
    finite.
    """
    try:
        with pyro.validation_enabled(False):  # what is not finite is found by its values
            summaries = {name: _shared(run.program, x).summary() for name, x in held_out.items()}
            summaries["valid"]["objective"] = objective.value(summaries["valid"]["bound"], weights)
            return summaries
    except FloatingPointError as error:
        raise NonFiniteLoss(
            f"after epoch {len(run.history.rows) + 1} under {type(objective.estimator).__name__}: "
            f"{error}; {GOOD_ONES} {CURES}"
        ) from error


def _follow_first(run: "Run", seed: int) -> None:
    """Gives every rank the state of rank 0, which may have resumed it; the noise of the others is made anew."""
    if ranks.world_size() > 1:
        state = ranks.broadcast(run.state_dict() if ranks.rank() == 0 else None)
        if ranks.rank() > 0:
            run.load_state_dict(state)
            torch.manual_seed(ranks.own_seed(seed) + 17 * run.step)


def _rate_and_distortion(runs: Runs, program: Program, x: Tensor) -> tuple[Tensor, Tensor]:
    model_trace, guide_trace = traces = runs(program.model, program.guide, (x,))
    plate = runs.plate(program.model, program.guide, (x,), {}, traces)
    scale = common_scale(model_trace, guide_trace, plate=plate)
    dtype = widest_float(x.device)

    def total(sites: dict[str, dict]) -> Tensor:
        return sum(per_image(site, plate).to(dtype).mean(0) for site in sites.values()) / scale

    rate = total(proposal_sites(guide_trace, points_too=True)) - total(sample_sites(model_trace, observed=False))
    return rate, -total(sample_sites(model_trace, observed=True))


@dataclass
class Run:
    """All that changes while ``fit`` trains: what a checkpoint holds.

    ``epoch_steps``: steps of an epoch; ``taken``: those of the present one that are behind; ``order``: its images, None
    before it begins; ``best``: the parameters of the epoch to be kept; ``weights``: those of the sites, by which the
    epochs to be compared were trained; ``changed``: whether they changed in the last epoch; ``unread``: batch and
    random numbers of steps whose losses were not looked at yet.
    """

    program: Program
    optimizer: torch.optim.Optimizer
    scheduler: LRScheduler | None
    epoch_steps: int
    taken: int = 0
    order: Tensor | None = None
    seconds: float = 0.0
    history: History = field(default_factory=History)
    best: dict[str, Tensor] = field(default_factory=dict)
    weights: Weights | None = None
    changed: bool = False
    unread: list[tuple[Tensor, dict[str, Any]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.best = deepcopy(self.program.state_dict())
        self.device = next(self.program.parameters()).device

    @property
    def step(self) -> int:
        """Steps taken in all."""
        return len(self.history.rows) * self.epoch_steps + self.taken

    @property
    def scheduler_of_steps(self) -> LRScheduler | None:
        """The scheduler, if it is one that is stepped after each step."""
        return None if isinstance(self.scheduler, ReduceLROnPlateau) else self.scheduler

    def end_epoch(self, summaries: Mapping[str, Mapping[str, float]], weights: Weights, images: int) -> None:
        """A new row of the history; the parameters, if they are to be kept; a step of a scheduler of epochs."""
        epoch = len(self.history.rows) + 1
        self.history.rows.append(_row(epoch, summaries, self.seconds, images))
        self.taken, self.order, self.changed = 0, None, not alike(self.weights, weights)
        if self.changed:
            self.weights, self.history.comparable_from = weights, epoch
        if self.history.kept_epoch == epoch:
            self.best = deepcopy(self.program.state_dict())
        if isinstance(self.scheduler, ReduceLROnPlateau) and not self.changed:
            objective = summaries["valid"]["objective"]
            self.scheduler.step(objective if self.scheduler.mode == "max" else -objective)

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers and lists from which ``load_state_dict`` goes on as if nothing had been."""
        return {
            "step": self.step,
            "taken": self.taken,
            "order": self.order,
            "program": dict(self.program.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict() if self.scheduler else None,
            "best": dict(self.best),
            "weights": self.weights,
            "history": {
                "rows": torch.tensor(
                    [[row[name] for name in ROW] for row in self.history.rows], dtype=torch.float64, device="cpu"
                ).reshape(-1, len(ROW)),
                "skipped": self.history.skipped,
                "engine": self.history.engine,
                "comparable_from": self.history.comparable_from,
            },
            "seconds": self.seconds,
            "random": random_state(self.device),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.program.load_state_dict(state["best"])
        self.best = deepcopy(self.program.state_dict())
        self.program.load_state_dict(state["program"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler:
            self.scheduler.load_state_dict(state["scheduler"])
        self.taken, self.seconds = int(state["taken"]), float(state["seconds"])
        rows = [dict(zip(ROW, row)) for row in state["history"]["rows"].tolist()]
        # Before format 4 there were neither weights nor an objective other than the bound.
        rows = [{"valid_objective": row["valid_bound"], **row, "epoch": int(row["epoch"])} for row in rows]
        self.weights = state.get("weights")
        same = {"keep": self.history.keep, "objective": self.history.objective}
        self.history = History(**{**state["history"], **same, "rows": rows})
        self.order = None if state["order"] is None else state["order"].to(self.device)
        if not 0 <= self.taken <= self.epoch_steps or (self.taken and self.order is None):
            raise ValueError(f"{self.taken} steps taken of an epoch's {self.epoch_steps}")
        set_random_state(state["random"], self.device)

    def extend(self, state: Mapping[str, Any]) -> None:
        """As ``load_state_dict`` of a run of another length: a schedule is as far as it would be in one of this length.

        Warns where the optimiser's step is then another one.
        """
        scheduler, self.scheduler = self.scheduler_of_steps, None if self.scheduler_of_steps else self.scheduler
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
            for _ in range(int(state["step"]) if scheduler else 0):
                scheduler.step()
        moved = [{name: group[name] for name in SCHEDULED if name in group} for group in self.optimizer.param_groups]
        self.load_state_dict(state)
        if scheduler is None:
            return
        self.scheduler, before = scheduler, [group["lr"] for group in self.optimizer.param_groups]
        for group, new in zip(self.optimizer.param_groups, moved):
            group.update(new)
        if before != [new["lr"] for new in moved]:
            warnings.warn(
                f"the schedule is now that of the new number of epochs: the optimiser's step goes on at "
                f"{moved[0]['lr']:g}, where the run of {state['settings']['epochs']} epochs was at "
                f"{before[0]:g}, so that the result is not that of one training of this length",
                stacklevel=4,
            )


def _check_same_run(saved: Mapping[str, Any], settings: Mapping[str, Any], steps: int) -> None:
    """Raises ValueError where a checkpoint is of another run, or is of one that has more steps behind it than these."""
    before = saved.get("settings")
    if isinstance(before, dict) and "epochs" in before:
        before = {"keep": "best", **before, "epochs": settings["epochs"]}  # format 3 knew no other way to keep
    check_same(before, settings)
    done = saved.get("step")
    if isinstance(done, int) and done > steps:
        raise ValueError(
            f"epochs: wanted at least as many as the checkpoint has behind it, got {settings['epochs']}, "
            f"which are {steps} steps, and it is at step {done}; give more epochs, or begin anew in "
            "another folder"
        )


@dataclass
class _Saver:
    """Saves a run when it is time, and when it is asked to end; does nothing without checkpoints."""

    run: Run
    checkpoints: Checkpoints | None
    settings: dict[str, Any] = field(default_factory=dict)

    def resume(self, settings: Mapping[str, Any], images: Tensor) -> None:
        """Goes on with what was saved, where that is wanted and there is any; settings and images must not differ, but
        there may be more epochs.
        """
        if self.checkpoints is None:
            return
        self.checkpoints.check_free()
        self.checkpoints.folder.mkdir(parents=True, exist_ok=True)
        self.settings = {**settings, **_kinds(self.run), "images": _fingerprint(images), **self.checkpoints.settings}
        encode({**self.run.state_dict(), "settings": self.settings})  # or it is said now that it cannot be saved
        saved = self.checkpoints.load()
        if saved is None:
            return
        _check_same_run(saved, self.settings, settings["epochs"] * self.run.epoch_steps)
        if saved.get("versions") != _versions():
            warnings.warn(
                f"the checkpoint was written under {saved.get('versions')} and is resumed under "
                f"{_versions()}: the same bits are not promised",
                stacklevel=3,
            )
        try:
            if saved["settings"]["epochs"] == settings["epochs"]:
                self.run.load_state_dict(saved)
            else:
                self.run.extend(saved)
            if self.run.order is not None and not _is_permutation(self.run.order, len(images)):
                raise ValueError("its order of the images is none")
        except Exception as error:  # whatever a strange content leads to
            raise CheckpointError(
                f"{self.checkpoints.folder}: the checkpoint does not fit this run ({error}); begin anew"
            ) from error
        self.checkpoints.note(self.run.step)

    def between_steps(self, raise_if_asked: Callable[..., None]) -> None:
        try:
            raise_if_asked(ranks.all_reduce_max)  # else a rank that stops would leave the others waiting
        except KeyboardInterrupt:
            self.save()
            raise
        if self.checkpoints and self.checkpoints.due(self.run.step):
            self.save()

    def save(self) -> None:
        """Saves the run, unless what is on disk is its present state."""
        if self.checkpoints and not self.checkpoints.saved(self.run.step):
            self.checkpoints.save({"settings": self.settings, "versions": _versions(), **self.run.state_dict()})


def _train_epoch(
    run: Run, step: Callable[[Tensor], Tensor], images: Tensor, batch_size: int, bar: tqdm
) -> Iterator[Tensor]:
    """The rest of a pass over the images; the losses of a few steps at a time.

    On an accelerator they are few rarely: reading a loss waits for the device.
    """
    every, losses = 1 if run.device.type == "cpu" else 50, []
    if run.order is None:
        run.order = ranks.broadcast(torch.cat(list(batches(len(images), batch_size, images.device))))
    run.order = run.order.to(images.device)
    clock = time.perf_counter() - run.seconds
    for index in run.order.split(batch_size)[run.taken :]:
        run.unread.append((index, torch_random_state(run.device)))
        losses.append(step(take(images, ranks.share(index)).to(run.device)))
        run.taken += 1
        run.seconds = time.perf_counter() - clock
        bar.update(len(index))
        if len(losses) == every or run.taken == run.epoch_steps:
            yield torch.stack(losses)
            bar.set_postfix_str(
                f"epoch {len(run.history.rows) + 1}, bound {-losses[-1] / len(index):.1f} nats", refresh=False
            )
            losses.clear()


def _check_finite(run: Run, losses: Tensor, estimator: ELBO, images: Tensor, skip: int) -> None:
    """Counts the steps among the last whose loss or gradient is not finite; NonFiniteLoss beyond ``skip`` of them."""
    bad = (~losses.isfinite()).nonzero().flatten().tolist()
    unread, run.unread = run.unread, []
    run.history.skipped += len(bad)
    if run.history.skipped <= skip:
        return
    index, numbers = unread[bad[0]]
    set_random_state(numbers, run.device)
    where = culprit(run.program, estimator, take(images, index).to(run.device))
    many = f" ({run.history.skipped} such steps, {skip} may be left out)" if skip else ""
    raise NonFiniteLoss(
        f"the loss or its gradient became {losses[bad[0]].item()} in epoch {len(run.history.rows) + 1}, step "
        f"{run.taken - len(losses) + bad[0] + 1}, under {type(estimator).__name__}{many}: {where}; {GOOD_ONES} {CURES}"
    )


def _is_permutation(order: Tensor, count: int) -> bool:
    return torch.equal(order.sort().values, torch.arange(count, device=order.device))


def _kinds(run: Run) -> dict[str, Any]:
    """What of a run is not a number and yet must not differ where it is resumed."""
    return {
        "program": _names_and_shapes(run.program),
        "optimizer": type(run.optimizer).__name__,
        "schedule": type(run.scheduler).__name__,
        "device": run.device.type,
        "processes": ranks.world_size(),
    }


def _names_and_shapes(program: Program) -> str:
    shapes = {name: list(value.shape) for name, value in program.state_dict().items()}
    return f"{len(shapes)} tensors, checksum of names and shapes {zlib.crc32(repr(shapes).encode())}"


def _fingerprint(images: Tensor) -> str:
    checksum = 0
    for part in parts(images):
        checksum = zlib.crc32(part.cpu().numpy(), checksum)
    return f"{len(images)} images, checksum {checksum}"


def _versions() -> dict[str, Any]:
    """What the bits of a training on a CPU depend on beside its settings."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "pyro": pyro.__version__,
        "threads": torch.get_num_threads(),
    }


def _row(epoch: int, summaries: Mapping[str, Mapping[str, float]], seconds: float, images: int) -> dict[str, float]:
    values = {f"{name}_{term}": summary[term] for name, summary in summaries.items() for term in summary}
    row = {"epoch": epoch, **values, "seconds": seconds, "images_per_second": epoch * images / seconds}
    return {name: row[name] for name in ROW}
