"""Training of any program by any Pyro ELBO, and the evaluation of its bound, rate and distortion per image."""

import math
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyro
import torch
from pyro.infer import ELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import Generator, Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from tqdm.auto import tqdm

from pyro_vae import engines
from pyro_vae.data import Data, batches
from pyro_vae.estimators import check_analytic_kl
from pyro_vae.networks import lowered_precision
from pyro_vae.state import deferred_interrupt, mode, seeded
from pyro_vae.traces import common_scale, image_plate, paired_traces, per_image, sample_sites


class Program(Protocol):
    """What can be trained: an ``nn.Module`` with a model and a guide of x, and a way from pixels to x."""

    def model(self, x: Tensor) -> Any: ...
    def guide(self, x: Tensor) -> Any: ...
    def observe(self, pixels: Tensor, generator: Generator | None = None) -> Tensor: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...


class NonFiniteLoss(RuntimeError):
    """The loss became NaN or infinite; the program has the last good parameters again."""


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
    images, seconds of training so far and images a second; whether Ctrl-C ended it; and the engine that trained.
    """

    rows: list[dict[str, float]] = field(default_factory=list)
    interrupted: bool = False
    engine: str = ""

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
        engine: "eager"; "compiled", the whole step as one graph; "svi", ``pyro.infer.SVI.step``, the reference; "auto"
            compiles where that is earned back, see ``pyro_vae.engines``. All train alike, up to rounding.
        clip: largest norm of all gradients together, to which longer ones are cut; None: they are left as they are.
        seed: of minibatches and noise. The same seed on the same machine gives the same result.
        progress: whether to show a progress bar.

    Raises:
        ValueError: for settings that cannot be, before anything is trained; among them ``TraceMeanField_ELBO`` for a KL
            that has no closed form.
        NonFiniteLoss: naming epoch, step and estimator; the program then has its last good parameters.

    Ctrl-C ends the training early: the best parameters so far are kept and ``History.interrupted`` is set.

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
    parameters = [parameter for parameter in program.parameters() if parameter.requires_grad]
    data = data.to(parameters[0].device)
    optimizer = torch.optim.Adam(parameters, lr=lr, fused=True) if optimizer is None else optimizer(parameters)
    held_out = {
        "train": fixed_x(program, data.train.images[: len(data.valid.images)]),
        "valid": fixed_x(program, data.valid.images),
    }
    history, best, seconds = History(), deepcopy(program.state_dict()), 0.0
    steps = epochs * math.ceil(len(data.train) / batch_size)
    scheduler = schedule(optimizer, steps) if schedule else None
    step = engines.engine(engine, program, estimator, optimizer, scheduler, clip, steps)
    bar = tqdm(total=epochs * len(data.train.images), unit="image", unit_scale=True, disable=not progress)
    with seeded(seed, parameters[0].device), mode(program, training=True), bar:
        first = program.observe(data.train.images[:batch_size])
        check_program(program, first)
        if isinstance(estimator, TraceMeanField_ELBO):
            check_analytic_kl(program.model, program.guide, first)
        try:
            with deferred_interrupt() as raise_if_asked:
                for epoch in range(1, epochs + 1):
                    start = time.perf_counter()
                    with lowered_precision(program, precision), pyro.validation_enabled(False):
                        for first, losses in _train_epoch(step, data.train.images, batch_size, epoch, bar):
                            _check_finite(losses, epoch, first, estimator)
                            raise_if_asked()
                    seconds += time.perf_counter() - start
                    history.engine = step.name
                    summaries = {name: evaluate(program, x).summary() for name, x in held_out.items()}
                    history.rows.append(_row(epoch, summaries, seconds, len(data.train.images)))
                    if history.best_epoch == epoch:
                        best = deepcopy(program.state_dict())
        except KeyboardInterrupt:
            history.interrupted = True
            best = best if history.rows else deepcopy(program.state_dict())
        finally:
            program.load_state_dict(best)
    return history


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


def _rate_and_distortion(program: Program, x: Tensor, particles: int) -> tuple[Tensor, Tensor]:
    model_trace, guide_trace = paired_traces(program.model, program.guide, (x,), particles=particles)
    plate, scale = image_plate(model_trace, guide_trace), common_scale(model_trace, guide_trace)

    def total(sites: dict[str, dict]) -> Tensor:
        return sum(per_image(site, plate).double().mean(0) for site in sites.values()) / scale

    rate = total(sample_sites(guide_trace)) - total(sample_sites(model_trace, observed=False))
    return rate, -total(sample_sites(model_trace, observed=True))


def _train_epoch(
    step: Callable[[Tensor], Tensor], images: Tensor, batch_size: int, epoch: int, bar: tqdm
) -> Iterator[tuple[int, Tensor]]:
    """One pass over the images; the losses of a few steps at a time, with the number of the first of them.

    On an accelerator they are few rarely: reading a loss waits for the device.
    """
    every, losses = 1 if images.device.type == "cpu" else 50, []
    for number, index in enumerate(batches(len(images), batch_size, images.device), start=1):
        losses.append(step(images[index]))
        bar.update(len(index))
        if len(losses) == every or number * batch_size >= len(images):
            yield number - len(losses) + 1, torch.stack(losses)
            bar.set_postfix_str(f"epoch {epoch}, bound {-losses[-1] / len(index):.1f} nats", refresh=False)
            losses.clear()


def _check_finite(losses: Tensor, epoch: int, first: int, estimator: ELBO) -> None:
    bad = ~losses.isfinite()
    if bad.any():
        at = bad.int().argmax().item()
        raise NonFiniteLoss(
            f"the loss became {losses[at].item()} in epoch {epoch}, step {first + at}, under "
            f"{type(estimator).__name__}; the last good parameters are restored. Try a smaller lr, a larger lower "
            "bound on the likelihood's scale, or look at this batch with pyro.validation_enabled(True)"
        )


def _row(epoch: int, summaries: dict[str, dict[str, float]], seconds: float, images: int) -> dict[str, float]:
    values = {
        f"{name}_{key}": summary[key] for name, summary in summaries.items() for key in ("bound", "rate", "distortion")
    }
    return {"epoch": epoch, **values, "seconds": seconds, "images_per_second": epoch * images / seconds}


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
