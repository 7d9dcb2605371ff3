"""Training of any program by any Pyro ELBO, and the evaluation of its bound, rate and distortion per image."""

import math
import platform
import signal
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyro
import torch
from pyro.infer import ELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import Generator, Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from tqdm.auto import tqdm

from pyro_vae import distributed, engines
from pyro_vae.checkpoint import CheckpointError, Checkpoints, check_same
from pyro_vae.data import Data, batches
from pyro_vae.estimators import check_analytic_kl
from pyro_vae.mapped import parts, take
from pyro_vae.networks import lowered_precision
from pyro_vae.nonfinite import NonFiniteLoss, culprit
from pyro_vae.state import deferred_interrupt, mode, random_state, seeded, set_random_state, torch_random_state
from pyro_vae.traces import common_scale, image_plate, paired_traces, per_image, sample_sites

# Of a row of the history, in their order.
ROW = ("epoch", *(f"{split}_{term}" for split in ("train", "valid") for term in ("bound", "rate", "distortion")),
       "seconds", "images_per_second")
GOOD_ONES = "the last good parameters are restored."
CURES = "Try a smaller lr, a larger lower bound on the likelihood's scale, or skip_non_finite"


class Program(Protocol):
    """What can be trained: an ``nn.Module`` with a model and a guide of x, and a way from pixels to x."""

    def model(self, x: Tensor) -> Any: ...
    def guide(self, x: Tensor) -> Any: ...
    def observe(self, pixels: Tensor, generator: Generator | None = None) -> Tensor: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...


@dataclass(frozen=True)
class Evaluation:
    """Monte Carlo values of single images, in nats, each of shape (images,), float64.

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
        error = self.bound.double().std().item() / math.sqrt(n) if n > 1 else math.nan
        values = {name: getattr(self, name).mean().item() for name in ("bound", "rate", "distortion")}
        return {"bound": values.pop("bound"), "standard_error": error, **values, "images": n}


@dataclass
class History:
    """What ``fit`` saw: a row an epoch, bounds, rates and distortions in nats per image on training and validation
    images, seconds of training so far and images a second; steps left out because their loss or gradient was not
    finite; the signal that ended it, if one did; and the engine that trained.
    """

    rows: list[dict[str, float]] = field(default_factory=list)
    skipped: int = 0
    signal: int | None = None
    engine: str = ""

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C, or another signal, ended the training early."""
        return self.signal is not None

    @property
    def best_epoch(self) -> int | None:
        """The epoch with the highest bound on the validation images; None before the first."""
        return max(self.rows, key=lambda row: row["valid_bound"])["epoch"] if self.rows else None


def fit(
    program: Program,
    data: Data,
    estimator: ELBO | None = None,
    *,
    epochs: int = 10,
    batch_size: int = 256,
    lr: float = 1e-3,
    seed: int = 0,
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None = None,
    schedule: Callable[[torch.optim.Optimizer, int], LRScheduler] | None = None,
    precision: torch.dtype | None = None,
    engine: str = "auto",
    clip: float | None = None,
    skip_non_finite: int = 0,
    checkpoints: Checkpoints | None = None,
    progress: bool = True,
) -> History:
    """Gradient steps on minus the bound over shuffled minibatches; keeps the parameters best on the validation images.

    After every epoch the bound, rate and distortion are measured, with one particle, on all validation images and on
    as many training images. x of the training images is made anew each time, x of the validation images once.

    Args:
        program: an ``nn.Module`` such as ``VAE``; it is trained in place, on the device of its parameters.
        data: images of ``data.train`` train, those of ``data.valid`` choose.
        estimator: any ``pyro.infer.ELBO``; ``Trace_ELBO()`` if not given.
        optimizer: from a list of parameters to a torch optimiser; Adam with step ``lr`` if not given.
        schedule: from the optimiser and the number of steps of all epochs to a scheduler that is stepped after each,
            such as ``warm_cosine``; a constant step if not given.
        precision: ``torch.bfloat16`` has the networks of ``pyro_vae.networks`` compute in it, in training steps only;
            distributions, sums, parameters and every evaluation keep the dtype of the parameters.
        engine: "eager"; "compiled", loss and gradient as one graph; "svi", ``pyro.infer.SVI.step``, the reference;
            "auto" compiles where that is earned back, see ``pyro_vae.engines``. All train alike, up to rounding.
        clip: largest norm of all gradients together, to which longer ones are cut; None: they are left as they are.
        skip_non_finite: how many steps may be left out because their loss or gradient is not finite; one more is an
            error. ``History.skipped`` counts them.
        checkpoints: where the run is saved, and whether it goes on from there: to the same bits, on a CPU with the same
            number of threads and one process, as a run that was never stopped.
        seed: of minibatches and noise. The same seed on the same machine gives the same result.
        progress: whether to show a progress bar.

    Raises:
        ValueError: for settings that cannot be, before anything is trained; among them ``TraceMeanField_ELBO`` for a KL
            that has no closed form, and settings other than those of the run that is to be resumed.
        NonFiniteLoss: naming epoch, step, estimator and the site whose log-probability went first; the program then has
            the last good parameters.
        CheckpointError: where the run cannot be saved or resumed.

    Ctrl-C ends the training early, after a whole step, and the run is saved: the best parameters so far are kept and
    ``History.interrupted`` is set. SIGTERM does the same where its handler is ``state.interrupt``.

    On a CPU the process keeps freed memory from then on, up to 1 GiB (``engines.keep_freed_memory``).

    Under ``torchrun``, in a block of ``distributed.processes``, every rank calls ``fit`` with the same arguments, only
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
    _check_settings(program, data, estimator, epochs, batch_size, lr)
    if clip is not None and not 0 < clip < math.inf:
        raise ValueError(f"clip: wanted a positive number, the largest norm of all gradients together, got {clip}")
    distributed.check_batches(len(data.train), batch_size)
    distributed.check_held_out(len(data.valid))
    parameters = [parameter for parameter in program.parameters() if parameter.requires_grad]
    device = parameters[0].device
    data = data.to(device)
    optimizer = torch.optim.Adam(parameters, lr=lr, fused=True) if optimizer is None else optimizer(parameters)
    held_out = {
        "train": fixed_x(program, data.train.images[: len(data.valid.images)].to(device)),
        "valid": fixed_x(program, data.valid.images),
    }
    steps, images = math.ceil(len(data.train) / batch_size), data.train.images
    scheduler = schedule(optimizer, epochs * steps) if schedule else None
    run = Run(program, optimizer, scheduler, steps)
    saver = _Saver(run, checkpoints)
    engines.warn_if_emulated(precision, device)
    if device.type == "cpu":
        engines.keep_freed_memory()
    bar = tqdm(total=epochs * len(images), unit="image", unit_scale=True, disable=not progress)
    with seeded(distributed.own_seed(seed), device), mode(program, training=True), bar:
        first = program.observe(images[:batch_size].to(device))
        check_program(program, first)
        if isinstance(estimator, TraceMeanField_ELBO):
            check_analytic_kl(program.model, program.guide, first)
        saver.resume({"epochs": epochs, "batch_size": batch_size, "lr": lr, "seed": seed, "precision": str(precision),
                      "clip": clip, "estimator": _words(estimator)}, images)
        _follow_first(run, seed)
        shape = distributed.share(images[:batch_size]).shape if run.step else None
        step = engines.engine(engine, program, estimator, optimizer, scheduler, clip, epochs * steps, shape)
        bar.update(len(run.history.rows) * len(images) + min(run.taken * batch_size, len(images)))
        try:
            with deferred_interrupt() as raise_if_asked:
                while len(run.history.rows) < epochs:
                    with (
                        lowered_precision(program, precision),
                        engines.fast_matmul(device),
                        pyro.validation_enabled(False),
                    ):
                        for losses in _train_epoch(run, step, images, batch_size, bar):
                            _check_finite(run, losses, estimator, images, skip_non_finite)
                            saver.between_steps(raise_if_asked)
                    if run.history.engine not in ("", step.name):
                        warnings.warn(f"the run was trained by {run.history.engine!r} and went on by {step.name!r}: "
                                      "the same bits are not promised", stacklevel=2)
                    run.history.engine = step.name
                    run.end_epoch(_summaries(run, held_out, estimator), len(images))
                    saver.between_steps(raise_if_asked)
            saver.save()
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


@torch.no_grad()
def evaluate(program: Program, x: Tensor, *, particles: int = 1, batch_size: int = 1000, seed: int = 0) -> Evaluation:
    """Bound, rate and distortion of each image by Monte Carlo, without a step of any optimiser.

    x: (images, C, H, W), see ``fixed_x``. Every image is seen, in batches of at most ``batch_size``. Raises ValueError
    for a program whose sites share no plate over images, FloatingPointError where a value is not finite.

    >>> import pyro_vae as pv
    >>> vae = pv.VAE(
    ...     pv.priors.StandardNormal(2),
    ...     pv.likelihoods.Normal(pv.networks.MLPDecoder(2, (1, 8, 8), maps=2)),
    ...     pv.guides.MeanField(pv.networks.MLPEncoder((1, 8, 8)), 2),
    ... )
    >>> evaluate(vae, torch.rand(5, 1, 8, 8)).bound.shape
    torch.Size([5])
    """
    parts = []
    with seeded(seed, x.device), mode(program, training=False):
        for batch in x.split(batch_size):
            parts.append(_rate_and_distortion(program, batch, particles))
    rate, distortion = (torch.cat(part) for part in zip(*parts))
    bad = (~(rate + distortion).isfinite()).nonzero().flatten()
    if len(bad):
        raise FloatingPointError(
            f"the bound of {len(bad)} of {len(x)} images is not finite, the first being image {bad[0]}: rate "
            f"{rate[bad[0]]}, distortion {distortion[bad[0]]}; the parameters or these images are damaged"
        )
    return Evaluation(rate, distortion)


def fixed_x(program: Program, pixels: Tensor, seed: int = 0) -> Tensor:
    """x of validation and test images: drawn from the pixels once, by a seed of its own.

    >>> from pyro_vae.likelihoods import Bernoulli
    >>> likelihood, pixels = Bernoulli(nn.Identity()), torch.full((1, 1, 8, 8), 100, dtype=torch.uint8)
    >>> torch.equal(fixed_x(likelihood, pixels), fixed_x(likelihood, pixels))
    True
    """
    return program.observe(pixels, Generator(pixels.device).manual_seed(seed))


def check_program(program: Program, x: Tensor) -> None:
    """Runs model and guide once on x with Pyro's validation on: site names, shapes, supports, NaN.

    The user's validation setting is left as it was. Raises ValueError.
    """
    with torch.no_grad(), pyro.validation_enabled(True):
        traces = paired_traces(program.model, program.guide, (x,))
        for trace in traces:
            for name, site in sample_sites(trace).items():
                if not site["log_prob"].isfinite().all():
                    raise ValueError(
                        f"site {name!r}: its log-probability is not finite on the first batch; check the initial "
                        "parameters, and that x was made by observe(pixels)"
                    )


def _shared(program: Program, x: Tensor) -> Evaluation:
    """``evaluate`` with the images shared out over the ranks; its values are on every rank."""
    part = evaluate(program, x.tensor_split(distributed.world())[distributed.rank()], seed=distributed.own_seed(0))
    return Evaluation(distributed.joined(part.rate), distributed.joined(part.distortion))


def _summaries(run: "Run", held_out: Mapping[str, Tensor], estimator: ELBO) -> dict[str, dict[str, float]]:
    """Bound, rate and distortion of each of the held-out sets; NonFiniteLoss where one is not finite."""
    try:
        with pyro.validation_enabled(False):  # what is not finite is found by its values
            return {name: _shared(run.program, x).summary() for name, x in held_out.items()}
    except FloatingPointError as error:
        raise NonFiniteLoss(f"after epoch {len(run.history.rows) + 1} under {type(estimator).__name__}: {error}; "
                            f"{GOOD_ONES} {CURES}") from error


def _follow_first(run: "Run", seed: int) -> None:
    """Gives every rank the state of rank 0, which may have resumed it; the noise of the others is made anew."""
    if distributed.world() > 1:
        state = distributed.from_first(run.state_dict() if distributed.rank() == 0 else None)
        if distributed.rank() > 0:
            run.load_state_dict(state)
            torch.manual_seed(distributed.own_seed(seed) + 17 * run.step)


def _rate_and_distortion(program: Program, x: Tensor, particles: int) -> tuple[Tensor, Tensor]:
    model_trace, guide_trace = paired_traces(program.model, program.guide, (x,), particles=particles)
    plate, scale = image_plate(model_trace, guide_trace), common_scale(model_trace, guide_trace)

    def total(sites: dict[str, dict]) -> Tensor:
        return sum(per_image(site, plate).double().mean(0) for site in sites.values()) / scale

    rate = total(sample_sites(guide_trace)) - total(sample_sites(model_trace, observed=False))
    return rate, -total(sample_sites(model_trace, observed=True))


@dataclass
class Run:
    """All that changes while ``fit`` trains: what a checkpoint holds.

    ``epoch_steps``: steps of an epoch; ``taken``: those of the present one that are behind; ``order``: its images, None
    before it begins; ``best``: the parameters of the best epoch; ``unread``: batch and random numbers of steps whose
    losses were not looked at yet.
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
    unread: list[tuple[Tensor, dict[str, Any]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.best = deepcopy(self.program.state_dict())
        self.device = next(self.program.parameters()).device

    @property
    def step(self) -> int:
        """Steps taken in all."""
        return len(self.history.rows) * self.epoch_steps + self.taken

    def end_epoch(self, summaries: Mapping[str, Mapping[str, float]], images: int) -> None:
        """A new row of the history; the parameters, if they are the best so far."""
        epoch = len(self.history.rows) + 1
        self.history.rows.append(_row(epoch, summaries, self.seconds, images))
        self.taken, self.order = 0, None
        if self.history.best_epoch == epoch:
            self.best = deepcopy(self.program.state_dict())

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
            "history": {"rows": torch.tensor([[row[name] for name in ROW] for row in self.history.rows],
                                             dtype=torch.float64).reshape(-1, len(ROW)),
                        "skipped": self.history.skipped, "engine": self.history.engine},
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
        rows = [dict(zip(ROW, row)) for row in state["history"]["rows"].reshape(-1, len(ROW)).tolist()]
        rows = [{**row, "epoch": int(row["epoch"])} for row in rows]
        self.history = History(**{**state["history"], "rows": rows})
        self.order = None if state["order"] is None else state["order"].to(self.device)
        if not 0 <= self.taken <= self.epoch_steps or (self.taken and self.order is None):
            raise ValueError(f"{self.taken} steps taken of an epoch's {self.epoch_steps}")
        set_random_state(state["random"], self.device)


@dataclass
class _Saver:
    """Saves a run when it is time, and when it is asked to end; does nothing without checkpoints."""

    run: Run
    checkpoints: Checkpoints | None
    settings: dict[str, Any] = field(default_factory=dict)

    def resume(self, settings: Mapping[str, Any], images: Tensor) -> None:
        """Goes on with what was saved, where that is wanted and there is any; settings and images must not differ."""
        if self.checkpoints is None:
            return
        self.checkpoints.folder.mkdir(parents=True, exist_ok=True)
        self.settings = {**settings, **_kinds(self.run), "images": _fingerprint(images), **self.checkpoints.settings}
        saved = self.checkpoints.load()
        if saved is None:
            return
        check_same(saved.get("settings"), self.settings)
        if saved.get("versions") != _versions():
            warnings.warn(f"the checkpoint was written under {saved.get('versions')} and is resumed under "
                          f"{_versions()}: the same bits are not promised", stacklevel=3)
        try:
            self.run.load_state_dict(saved)
            if self.run.order is not None and not _is_permutation(self.run.order, len(images)):
                raise ValueError("its order of the images is none")
        except Exception as error:  # whatever a strange content leads to
            raise CheckpointError(f"{self.checkpoints.folder}: the checkpoint does not fit this run ({error}); begin "
                                  "anew") from error
        self.checkpoints.note(self.run.step)

    def between_steps(self, raise_if_asked: Callable[..., None]) -> None:
        try:
            raise_if_asked(distributed.greatest)  # else a rank that stops would leave the others waiting
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
        run.order = distributed.from_first(torch.cat(list(batches(len(images), batch_size, images.device))))
    run.order = run.order.to(images.device)
    clock = time.perf_counter() - run.seconds
    for index in run.order.split(batch_size)[run.taken :]:
        run.unread.append((index, torch_random_state(run.device)))
        losses.append(step(take(images, distributed.share(index)).to(run.device)))
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
        "processes": distributed.world(),
    }


def _names_and_shapes(program: Program) -> str:
    shapes = {name: list(value.shape) for name, value in program.state_dict().items()}
    return f"{len(shapes)} tensors, checksum of names and shapes {zlib.crc32(repr(shapes).encode())}"


def _words(estimator: ELBO) -> str:
    return f"{type(estimator).__name__}, {estimator.num_particles} particles"


def _fingerprint(images: Tensor) -> str:
    checksum = 0
    for part in parts(images):
        checksum = zlib.crc32(part.cpu().numpy(), checksum)
    return f"{len(images)} images, checksum {checksum}"


def _versions() -> dict[str, Any]:
    """What the bits of a training on a CPU depend on beside its settings."""
    return {"python": platform.python_version(), "torch": str(torch.__version__), "pyro": pyro.__version__,
            "threads": torch.get_num_threads()}


def _row(epoch: int, summaries: Mapping[str, Mapping[str, float]], seconds: float, images: int) -> dict[str, float]:
    values = {f"{name}_{term}": summary[term] for name, summary in summaries.items() for term in summary}
    row = {"epoch": epoch, **values, "seconds": seconds, "images_per_second": epoch * images / seconds}
    return {name: row[name] for name in ROW}


def _check_settings(program: Any, data: Data, estimator: ELBO, epochs: int, batch_size: int, lr: float) -> None:
    if not isinstance(program, nn.Module) or not all(hasattr(program, name) for name in ("model", "guide", "observe")):
        raise ValueError(f"program: wanted an nn.Module with model, guide and observe, got {type(program).__name__}")
    if not any(parameter.requires_grad for parameter in program.parameters()):
        raise ValueError("program: it has no trainable parameter; register its networks as submodules")
    if not isinstance(estimator, ELBO):
        raise ValueError(f"estimator: wanted a pyro.infer.ELBO such as Trace_ELBO(), got {estimator!r}")
    if not hasattr(estimator, "differentiable_loss"):
        name = type(estimator).__name__
        raise ValueError(f"estimator: {name} has no differentiable_loss; train by it under pyro.infer.SVI")
    if epochs < 1 or epochs != int(epochs):
        raise ValueError(f"epochs: wanted a whole number of at least 1, got {epochs}")
    if not 1 <= batch_size <= len(data.train.images):
        raise ValueError(f"batch_size: wanted 1 to {len(data.train.images)} (the training images), got {batch_size}")
    if not 0 < lr < math.inf:
        raise ValueError(f"lr: wanted a positive number, got {lr}")
