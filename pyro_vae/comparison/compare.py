"""What a gradient estimator costs and buys: estimators of a bound compared on any Pyro program, at fixed parameters."""

import itertools
import math
import statistics
import time
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import pyro
import torch
from matplotlib.figure import Figure
from pyro import poutine
from pyro.infer import (
    ELBO,
    JitTrace_ELBO,
    JitTraceMeanField_ELBO,
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from pyro.poutine.runtime import effectful
from torch import Tensor
from tqdm.auto import tqdm

from pyro_vae.checks import is_whole, whole_number
from pyro_vae.comparison.moments import (
    PROJECTIONS,
    Estimate,
    Mean,
    Moments,
    equal_means_p_value,
    largest_z,
    short,
    typical_largest_z,
)
from pyro_vae.errors import short_errors
from pyro_vae.estimators import (
    DoublyReparameterized,
    Estimator,
    ImportanceWeighted,
    ScoreFunction,
    StickingTheLanding,
    WakeSleep,
    check_analytic_kl,
)
from pyro_vae.plots import estimator_variance
from pyro_vae.printing import printable
from pyro_vae.random import without_autocast
from pyro_vae.tracing.leaves import Parameters, find_parameters, left_as_it_was, tensors
from pyro_vae.tracing.traces import check_messenger, count_rows, sample_sites, shared_plates

GROUPS = ("guide", "model")
DOUBT = 0.01  # chance of a false alarm over all pairs that should agree
TIMED = 20  # draws that the seconds are the median of, at most
OF_THE_ELBO = (
    Trace_ELBO,
    JitTrace_ELBO,
    TraceMeanField_ELBO,
    JitTraceMeanField_ELBO,
    TraceGraph_ELBO,
    TraceEnum_ELBO,
    StickingTheLanding,
    ScoreFunction,
)


@dataclass(frozen=True)
class BoundStatistics:
    """Minus the loss, in nats per image: mean, its standard error, and variance of a draw, in nats².

    ``minibatch_variance`` is the variance between batches without the share of sampling (unbiased, so perhaps
    negative); None for a single batch.
    """

    mean: float
    standard_error: float
    variance: float
    minibatch_variance: float | None


@dataclass(frozen=True)
class GradientStatistics:
    """Of the gradient of the loss (summed over the batch, in nats) in a group of parameters.

    ``variance`` is (a), the trace of the covariance of a draw; ``snr`` is (b), the mean over parameters of |mean| / sd;
    ``norm_ratio`` is (c), ‖mean‖ / √trace. ``varying`` counts the parameters whose gradient varies by more than
    rounding: (b) is a mean over these. ``minibatch_variance`` is the trace of the covariance of the mean gradient
    between batches, None for a single batch.
    """

    parameters: int
    varying: int
    variance: Estimate
    snr: Estimate
    norm_ratio: Estimate
    minibatch_variance: float | None


@dataclass(frozen=True)
class EstimatorStatistics:
    """What ``compare_estimators`` saw of one estimator; ``seconds`` is the time of a loss with its gradient."""

    kind: str
    particles: int
    is_bound: bool
    bound: BoundStatistics
    guide: GradientStatistics | None
    model: GradientStatistics | None
    seconds: float


@dataclass(frozen=True)
class Agreement:
    """Whether the mean gradients of two estimators agree in a group of parameters.

    ``largest_z`` over the parameters, that of ``parameter``, is to be compared with ``typical_largest_z``: its median
    if the means are equal and the coordinates independent. ``p_value`` is a global test's (``equal_means_p_value``).
    ``expected`` says that the two estimators have one gradient on average.
    """

    first: str
    second: str
    group: str
    largest_z: float
    typical_largest_z: float
    parameter: str
    p_value: float
    expected: bool


@dataclass(frozen=True)
class Comparison:
    """The result of ``compare_estimators``: ``print`` it for a table; ``to_dict`` and ``figure`` for more."""

    estimators: Mapping[str, EstimatorStatistics]
    agreements: tuple[Agreement, ...]
    reference: str
    draws: int
    batches: int
    images: int | None
    seed: int
    shared: tuple[str, ...]

    def cost(self, name: str, group: str) -> float:
        """Variance (a) × seconds of an estimator relative to that of the reference; NaN without such parameters."""
        products = [
            statistics.variance.value * self.estimators[key].seconds
            for key in (name, self.reference)
            if (statistics := getattr(self.estimators[key], group))
        ]
        return _ratio(*products) if products else math.nan

    def disagreements(self) -> tuple[Agreement, ...]:
        """Pairs that should agree and do not: p-value below 0.01 divided by the number of such pairs (Bonferroni)."""
        expected = [pair for pair in self.agreements if pair.expected]
        return tuple(pair for pair in expected if pair.p_value < DOUBT / len(expected))

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dictionaries, for JSON; what is not finite is None."""
        result = asdict(self)
        for name, entry in result["estimators"].items():
            for group in GROUPS:
                if entry[group]:
                    entry[group]["cost"] = self.cost(name, group)
        return _plain(result)

    def figure(self) -> Figure:
        """Variance of the gradient against estimator, guide and model apart; see ``plots.estimator_variance``."""
        return estimator_variance({"": self.to_dict()})

    def __str__(self) -> str:
        return printable("\n".join(_report(self)))


def compare_estimators(
    model: Callable,
    guide: Callable,
    *args: Any,
    estimators: Mapping[str, ELBO],
    draws: int = 1000,
    seed: int = 0,
    batches: Sequence[tuple] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    reference: str | None = None,
    agree: Iterable[tuple[str, str]] = (),
    progress: bool = True,
) -> Comparison:
    """Draws each estimator of the loss and its gradient many times, at fixed parameters and arguments, and compares.

    For any program, its parameters in modules or in Pyro's store: they are found by ``find_parameters``, and gradients
    are those of the unconstrained leaves. Parameters that model and guide share count as the guide's. The bound is
    given in nats per image where all sites share a plate, else for all data. The gradient is that of the loss as the
    estimator gives it: summed over the batch.

    Moments and what the intervals of 95 % need are streamed, no gradients are kept (``Moments``); each estimator leaves
    one and a half copies of the parameters behind for the pairwise tests. Estimators are drawn one after another, each
    with random numbers of its own, from ``seed`` and its name, so that the tests compare independent draws and a
    result does not depend on what else is compared. Seconds are medians of up to 20 further draws, in which the
    estimators take turns, so that a machine that is busy for a while is so for all.

    When it returns or raises, nothing has changed: parameters, gradients, buffers, modes, Pyro's store and validation
    switch, and the random state of torch, numpy and Python are as they were. The first draw of an estimator runs with
    Pyro's validation as it is set, the others without.

    Args:
        args, kwargs: positional and keyword arguments of model and guide.
        estimators: any ``pyro.infer.ELBO`` by name.
        draws: of each estimator, at each batch; at least 2.
        batches: in place of ``args``, several tuples of arguments, of one number of images. Means are then averages
            over batches, variances those of sampling, averaged over batches, and ``minibatch_variance`` is what batches
            add to them (law of total variance, without bias).
        reference: the estimator that variance × seconds is relative to: the first ``Trace_ELBO`` if not given, or else
            the first estimator.
        agree: pairs of names whose gradients should agree on average, beyond those that are known to.
        progress: whether to show a progress bar.

    Raises ValueError for: fewer than 2 draws, what is no ELBO, a program without trainable parameters, model and guide
    whose latent sites differ, arguments of size 0, an "analytic" KL that Pyro would sample, and a loss or gradient that
    is not finite (naming estimator and draw).

    >>> from pyro_vae.linear_gaussian import LinearGaussian
    >>> program = LinearGaussian(torch.tensor([[1.0], [2.0]]))
    >>> comparison = compare_estimators(
    ...     program.model, program.guide, program.simulate(8), draws=50, progress=False,
    ...     estimators={"L^A": Trace_ELBO(), "sticking the landing": StickingTheLanding()},
    ... )
    >>> comparison.estimators["sticking the landing"].guide.variance.value < 1e-6  # the guide is exact
    True
    >>> comparison.disagreements()
    ()
    """
    kwargs = dict(kwargs or {})
    batches = _checked_batches(args, batches, kwargs)
    agree = [frozenset(pair) for pair in agree]
    reference = _checked_settings(estimators, draws, reference, agree)
    draws, seed = int(draws), whole_number("seed", seed, least=None)
    with (
        torch.inference_mode(False), torch.enable_grad(), without_autocast(), left_as_it_was(model, guide),
        warnings.catch_warnings(),
    ):  # fmt: skip
        warnings.filterwarnings("ignore", "Encountered (NaN|.?inf)", UserWarning)  # it is an error here
        program = _Program(model, guide, batches, kwargs, estimators, seed)
        bar = tqdm(total=draws * len(batches) * len(estimators), unit="draw", disable=not progress)
        measured = {}
        with bar:
            seconds = _seconds(program, estimators, draws)
            for name, elbo in estimators.items():
                bar.set_description(name)
                measured[name] = _measure(program, name, elbo, draws, seed, seconds[name], bar)
    means = {name: mean for name, (_, mean) in measured.items()}
    return Comparison(
        estimators={name: statistics for name, (statistics, _) in measured.items()},
        agreements=tuple(_agreements(estimators, means, program.parameters, agree)),
        reference=reference,
        draws=draws,
        batches=len(batches),
        images=program.images,
        seed=seed,
        shared=program.parameters.shared,
    )


class _Program:
    """A program with its batches, its parameters and the flat vector that takes their gradient, the guide's first."""

    def __init__(
        self,
        model: Callable,
        guide: Callable,
        batches: Sequence[tuple],
        kwargs: dict[str, Any],
        estimators: Mapping[str, ELBO],
        seed: int,
    ):
        pyro.set_rng_seed(seed % 2**32)
        self.model, self.guide, self.batches, self.kwargs = model, guide, batches, kwargs
        enumerated = all(isinstance(elbo, TraceEnum_ELBO) for elbo in estimators.values())
        self.parameters, *traces = find_parameters(model, guide, batches[0], kwargs, enumerated)
        if not all(isinstance(elbo, Estimator) for elbo in estimators.values()):
            check_messenger(guide, traces[1])
        self.images = _images(*traces, count_rows(batches[0], kwargs))
        for args in batches[1:]:
            _, *traces = find_parameters(model, guide, args, kwargs, enumerated)
            _check_same_images(self.images, _images(*traces, count_rows(args, kwargs)))
        for name, elbo in estimators.items():
            _check_kl(name, elbo, model, guide, batches[0], kwargs)
        groups = {group: leaves for group in GROUPS if (leaves := list(getattr(self.parameters, group).values()))}
        self.leaves = [leaf for leaves in groups.values() for leaf in leaves]
        if not self.leaves:
            raise ValueError(
                "the program has no trainable parameter: its log-probabilities depend on no tensor that requires a "
                "gradient; use pyro.param, or modules whose parameters are not frozen"
            )
        self.others = [tensor for tensor in tensors((batches, kwargs)) if tensor.is_leaf and tensor.requires_grad]
        self.sizes = {group: [leaf.numel() for leaf in leaves] for group, leaves in groups.items()}
        totals = [sum(sizes) for sizes in self.sizes.values()]
        dtype = torch.float64 if any(leaf.dtype == torch.float64 for leaf in self.leaves) else torch.float32
        self.flat = torch.zeros(sum(totals), dtype=dtype, device=self.leaves[0].device)
        self.parts = dict(zip(groups, self.flat.split(totals)))

    def draw(self, elbo: ELBO, args: tuple) -> tuple[float, float]:
        """One loss, in nats, and the seconds that it took; the gradient is left in ``flat``."""
        self._wait()
        start = time.perf_counter()
        if hasattr(elbo, "differentiable_loss"):
            loss = elbo.differentiable_loss(self.model, self.guide, *args, **self.kwargs)
            if not getattr(loss, "requires_grad", False):
                raise ValueError("the loss depends on no parameter of the program, so it has no gradient")
            gradients = torch.autograd.grad(loss, self.leaves, allow_unused=True)
            loss = loss.detach()
        else:
            loss, gradients = self._backward(elbo, args)
        self._wait()
        seconds = time.perf_counter() - start
        for part, gradient in zip(self.flat.split([leaf.numel() for leaf in self.leaves]), gradients):
            part.zero_() if gradient is None else part.copy_(gradient.reshape(-1))
        return float(loss), seconds

    def _backward(self, elbo: ELBO, args: tuple) -> tuple[float, list[Tensor | None]]:
        """The gradients of an ELBO that writes them into the parameters; those that lie there are put back."""
        touched = [*self.leaves, *self.others]
        before = [leaf.grad for leaf in touched]
        try:
            for leaf in touched:
                leaf.grad = None
            loss = elbo.loss_and_grads(_announced(self.model), self.guide, *args, **self.kwargs)
            return loss[0] if isinstance(loss, tuple) else loss, [leaf.grad for leaf in self.leaves]
        finally:
            for leaf, gradient in zip(touched, before):
                leaf.grad = gradient

    def _wait(self) -> None:
        if self.flat.is_cuda:
            torch.cuda.synchronize(self.flat.device)


@effectful(type="param")
def _parameter_site(value: Tensor) -> Tensor:
    return value


def _announced(model: Callable) -> Callable:
    """The model with a param site, without which Pyro's ``loss_and_grads`` takes no gradients in modules."""

    def announced(*args: Any, **kwargs: Any) -> Any:
        _parameter_site(torch.zeros(()), name="pyro_vae_parameters")
        return model(*args, **kwargs)

    return announced


class _Bounds:
    """Streamed moments of a scalar, in one or several batches."""

    def __init__(self) -> None:
        self.means: list[float] = []
        self.count, self.mean, self.squares, self.total = 0, 0.0, 0.0, 0

    def add(self, value: float) -> None:
        self.count += 1
        delta = value - self.mean
        self.mean += delta / self.count
        self.squares += delta * (value - self.mean)

    def end_batch(self) -> None:
        self.means.append(self.mean)
        self.total += self.count
        self.count, self.mean = 0, 0.0

    def statistics(self) -> BoundStatistics:
        variance = self.squares / (self.total - len(self.means))
        between = statistics.variance(self.means) - variance * len(self.means) / self.total if self.means[1:] else None
        return BoundStatistics(statistics.fmean(self.means), math.sqrt(variance / self.total), variance, between)


def _seconds(program: _Program, estimators: Mapping[str, ELBO], draws: int) -> dict[str, float]:
    """The median time of a draw of each estimator, the first draw being left out."""
    times = {name: [] for name in estimators}
    for number in range(min(draws, TIMED) + 1):
        for name, elbo in estimators.items():
            _, elapsed = _draw(program, name, elbo, program.batches[0], number + 1, draws)
            times[name].append(elapsed)
    return {name: statistics.median(elapsed[1:]) for name, elapsed in times.items()}


def _measure(
    program: _Program, name: str, elbo: ELBO, draws: int, seed: int, seconds: float, bar: tqdm
) -> tuple[EstimatorStatistics, dict[str, Mean]]:
    projections = max(1, min(PROJECTIONS, draws * len(program.batches) // 4))
    moments = {group: Moments(sizes, program.flat[:1], projections, seed) for group, sizes in program.sizes.items()}
    bounds = _Bounds()
    pyro.set_rng_seed((seed + zlib.crc32(name.encode())) % 2**32)
    for args in program.batches:
        for number in range(1, draws + 1):
            loss, _ = _draw(program, name, elbo, args, number, draws)
            sizes = [float(moments[group].add(part)) for group, part in program.parts.items()]
            if not all(map(math.isfinite, (loss, *sizes))):
                raise ValueError(_not_finite(name, number, draws, loss))
            bounds.add(-loss / (program.images or 1))
            bar.update()
        for accumulator in (bounds, *moments.values()):
            accumulator.end_batch()
    result = EstimatorStatistics(
        kind=type(elbo).__name__,
        particles=getattr(elbo, "num_particles", 1),
        is_bound=getattr(elbo, "is_bound", True),
        bound=bounds.statistics(),
        guide=_gradient_statistics(moments.get("guide")),
        model=_gradient_statistics(moments.get("model")),
        seconds=seconds,
    )
    return result, {group: moment.mean() for group, moment in moments.items()}


def _draw(program: _Program, name: str, elbo: ELBO, args: tuple, number: int, draws: int) -> tuple[float, float]:
    """A draw, the first of a batch with Pyro's validation as it is set; its errors say whose it is."""
    try:
        with nullcontext() if number == 1 else pyro.validation_enabled(False), short_errors(args, program.kwargs):
            return program.draw(elbo, args)
    except ValueError as error:
        raise ValueError(f"{name}, draw {number} of {draws}: {error}") from error


def _gradient_statistics(moments: Moments | None) -> GradientStatistics | None:
    if moments is None:
        return None
    return GradientStatistics(
        parameters=moments.size,
        varying=moments.varying(),
        variance=moments.trace(),
        snr=moments.snr(),
        norm_ratio=moments.norm_ratio(),
        minibatch_variance=moments.between(),
    )


def _agreements(
    estimators: Mapping[str, ELBO],
    means: Mapping[str, Mapping[str, Mean]],
    parameters: Parameters,
    agree: Sequence[frozenset[str]],
) -> Iterator[Agreement]:
    for (first, a), (second, b) in itertools.combinations(estimators.items(), 2):
        for group in means[first]:
            mean, other = means[first][group], means[second][group]
            z, coordinate = largest_z(mean, other)
            target = _target(a, group)
            yield Agreement(
                first=first,
                second=second,
                group=group,
                largest_z=z,
                typical_largest_z=typical_largest_z(len(mean.mean)),
                parameter=_parameter_name(getattr(parameters, group), coordinate),
                p_value=equal_means_p_value(mean, other),
                expected=frozenset((first, second)) in agree or (target is not None and target == _target(b, group)),
            )


def _target(elbo: ELBO, group: str) -> int | None:
    """K where the gradient of a group of parameters is, on average, that of L_K; None where that is not known."""
    kind = type(elbo)
    if kind in OF_THE_ELBO or (kind is WakeSleep and group == "model"):
        return 1
    if kind is ImportanceWeighted:
        return elbo.K
    if kind is DoublyReparameterized or (kind is RenyiELBO and elbo.alpha == 0):
        return elbo.num_particles
    return None


def _parameter_name(leaves: Mapping[str, Tensor], coordinate: int) -> str:
    """The parameter that a coordinate of the flat vector belongs to, with its index."""
    for name, leaf in leaves.items():
        if coordinate < leaf.numel():
            index = [str(int(i)) for i in torch.unravel_index(torch.tensor(coordinate), leaf.shape)]
            return f"{name}[{', '.join(index)}]" if index else name
        coordinate -= leaf.numel()
    raise IndexError(coordinate)


def _images(model_trace: poutine.Trace, guide_trace: poutine.Trace, rows: int | None) -> int | None:
    """Images that the loss is summed over, those that a subsampling plate stands for; None where they have no number.

    So it is without such a plate, where several of different sizes could be it, and where rows have weights.
    """
    try:
        shared = shared_plates(model_trace, guide_trace)
    except ValueError:
        return None
    sizes = {plate.size for plate in shared if rows in (plate.size, plate.full_size)} or {p.size for p in shared}
    sites = {**sample_sites(model_trace), **sample_sites(model_trace, observed=True)}
    scale = torch.as_tensor(list(sites.values())[-1]["scale"])
    if len(sizes) > 1 or scale.numel() > 1:
        return None
    images = sizes.pop() * float(scale)
    return round(images) if images >= 1 and math.isclose(images, round(images), rel_tol=1e-5) else None


def _check_same_images(first: int | None, other: int | None) -> None:
    if first != other:
        raise ValueError(f"batches: wanted batches of one size, got {first} and {other} images; drop the smaller one")


def _check_kl(name: str, elbo: ELBO, model: Callable, guide: Callable, args: tuple, kwargs: Mapping[str, Any]) -> None:
    if isinstance(elbo, TraceMeanField_ELBO):
        try:
            check_analytic_kl(model, guide, *args, **kwargs)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error


def _checked_batches(args: tuple, batches: Sequence[tuple] | None, kwargs: Mapping[str, Any]) -> list[tuple]:
    if batches is not None and args:
        raise ValueError("batches: got arguments of the program too; give either them or batches=[(x,), ...]")
    if batches is not None and not len(batches):
        raise ValueError("batches: wanted at least one, got none; write batches=[(x,), ...]")
    found = [args] if batches is None else [tuple(b) if isinstance(b, tuple | list) else (b,) for b in batches]
    for tensor in tensors((found, kwargs)):
        if not tensor.numel():
            raise ValueError(f"an argument of the program has shape {tuple(tensor.shape)}, wanted at least one image")
    return found


def _checked_settings(
    estimators: Mapping[str, ELBO], draws: int, reference: str | None, agree: Sequence[frozenset[str]]
) -> str:
    """The name of the reference; ValueError where a setting cannot be."""
    if not is_whole(draws) or draws < 2:
        raise ValueError(f"draws: wanted a whole number of at least 2, for a variance, got {draws!r}")
    if not isinstance(estimators, Mapping) or not estimators:
        raise ValueError(f"estimators: wanted ELBOs by name, as in {{'L^A': Trace_ELBO()}}, got {estimators!r}")
    for name, elbo in estimators.items():
        if not isinstance(elbo, ELBO):
            hint = f"; write {elbo.__name__}()" if isinstance(elbo, type) and issubclass(elbo, ELBO) else ""
            raise ValueError(f"estimators[{name!r}]: wanted a pyro.infer.ELBO such as Trace_ELBO(), got {elbo!r}{hint}")
    unknown = {name for pair in agree for name in pair} | {reference or next(iter(estimators))}
    if unknown - set(estimators):
        raise ValueError(
            f"reference or agree: {sorted(unknown - set(estimators))} are no names of estimators, which are "
            f"{sorted(estimators)}"
        )
    plain = (name for name, elbo in estimators.items() if type(elbo) is Trace_ELBO)
    return reference or next(plain, next(iter(estimators)))


def _not_finite(name: str, number: int, draws: int, loss: float) -> str:
    what = f"the loss is {loss}" if not math.isfinite(loss) else "a gradient is not finite"
    return (
        f"{name}, draw {number} of {draws}: {what}, wanted finite numbers; check the parameters, and that the data lie "
        "in the support of the likelihood (pyro.enable_validation(True) shows where)"
    )


def _ratio(a: float, b: float | None = None) -> float:
    """a / b; 1 where b is not given."""
    if b is None:
        return 1.0
    return a / b if b else (math.nan if a == 0 else math.inf)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _report(comparison: Comparison) -> Iterator[str]:
    """Lines of at most 110 characters."""
    width = min(24, max(map(len, comparison.estimators)))
    where = f"{comparison.batches} batches" if comparison.batches > 1 else "one batch"
    unit = f" of {comparison.images} images; nats per image" if comparison.images else "; nats for all data"
    settings = f"{comparison.draws} draws each, seed {comparison.seed}, at {where}"
    yield f"{len(comparison.estimators)} estimators, {settings}{unit}"
    yield f"{'':{width + 48}}variance between batches" if comparison.batches > 1 else ""
    heading = f"   {'bound':>9} {'guide':>9} {'model':>9}" if comparison.batches > 1 else ""
    yield f"{'':{width}}  {'bound':>22}  {'variance':>9}  {'seconds':>8}{heading}"
    for name, entry in comparison.estimators.items():
        bound = f"{entry.bound.mean:.4f} ± {entry.bound.standard_error:.4f}{' ' if entry.is_bound else '*'}"
        numbers = f"{bound:>22}  {short(entry.bound.variance):>9}  {short(entry.seconds):>8}"
        yield f"{name[:width]:{width}}  {numbers}" + _batch_numbers(comparison, entry)
    for group in GROUPS:
        yield from _gradient_report(comparison, group, width)
    yield from _agreement_report(comparison)
    yield from _notes(comparison)


def _batch_numbers(comparison: Comparison, entry: EstimatorStatistics) -> str:
    if comparison.batches == 1:
        return ""
    parts = [part.minibatch_variance if part else math.nan for part in (entry.bound, entry.guide, entry.model)]
    return "   " + " ".join(f"{short(part):>9}" for part in parts)


def _gradient_report(comparison: Comparison, group: str, width: int) -> Iterator[str]:
    first = getattr(next(iter(comparison.estimators.values())), group)
    if first is None:
        return
    yield ""
    yield f"gradient of the {group}'s {first.parameters:,} parameters, with 95 % intervals"
    yield f"{'':{width}}  {'(a) variance':<27}{'(b) |mean| / sd':<25}{'(c) ‖mean‖ / ‖sd‖':<24}   cost"
    for name, entry in comparison.estimators.items():
        numbers = getattr(entry, group)
        cells = f"{numbers.variance!s:<26} {numbers.snr!s:<24} {numbers.norm_ratio!s:<23}"
        yield f"{name[:width]:{width}}  {cells} {short(comparison.cost(name, group)):>7}"


def _agreement_report(comparison: Comparison) -> Iterator[str]:
    pairs = [pair for pair in comparison.agreements if pair.expected or len(comparison.estimators) <= 6]
    if not pairs:
        return
    yield ""
    yield "mean gradients: = should agree, ! and do not; the largest z (median if equal), p of a global test"
    for (first, second), entries in itertools.groupby(pairs, key=lambda pair: (pair.first, pair.second)):
        entries = list(entries)
        mark = "!" if any(entry in comparison.disagreements() for entry in entries) else ""
        mark = mark or ("=" if any(entry.expected for entry in entries) else " ")
        cells = [
            f"{entry.group} {short(entry.largest_z):>4} ({entry.typical_largest_z:.1f}), p {short(entry.p_value):<7}"
            for entry in entries
        ]
        yield f"{mark} {f'{first[:21]} – {second[:21]}':<45} {'  '.join(cells)}".rstrip()


def _notes(comparison: Comparison) -> Iterator[str]:
    yield ""
    floor, reference = math.sqrt(2 / (math.pi * comparison.draws * comparison.batches)), comparison.reference[:24]
    yield f"(b) is about {floor:.2g} where the mean is zero. Cost: variance (a) × seconds, {reference} = 1."
    if any(estimate.doubtful for estimate in _estimates(comparison)):
        yield "? a few draws make the width of the interval: such tails may be too heavy for any; give more draws"
    if any(not entry.is_bound for entry in comparison.estimators.values()):
        yield "* minus the loss of an estimator that has no bound"
    if comparison.shared:
        yield f"shared by model and guide, counted as the guide's: {len(comparison.shared)} tensors"
    if len(comparison.estimators) > 6:
        yield "pairs that need not agree are in to_dict()"


def _estimates(comparison: Comparison) -> Iterator[Estimate]:
    for entry in comparison.estimators.values():
        for numbers in filter(None, (entry.guide, entry.model)):
            yield from (numbers.variance, numbers.snr, numbers.norm_ratio)
