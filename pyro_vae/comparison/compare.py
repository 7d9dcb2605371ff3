"""``compare_estimators``: gradient estimators of any Pyro program compared at fixed parameters."""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple, overload

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO, Trace_ELBO
from tqdm import tqdm

from pyro_vae.checks import is_whole, whole_number
from pyro_vae.comparison.agreement import agreements
from pyro_vae.comparison.drawing import Drawer, Engine, checked_engine
from pyro_vae.comparison.measuring import measure, seconds_per_draw
from pyro_vae.comparison.results import Comparison
from pyro_vae.data.splits import Split
from pyro_vae.estimation import Estimator, check_analytic_kl, describe
from pyro_vae.observation import observed_once
from pyro_vae.program import Program, model_and_guide
from pyro_vae.random import without_autocast
from pyro_vae.tracing.leaves import ProgramParameters, find_parameters, left_as_it_was, tensors
from pyro_vae.tracing.traces import (
    check_messenger,
    common_weight,
    count_rows,
    points_without_density,
    rows_in_all,
    shared_plates,
    warn_of_points,
)

WEIGHTED = "sites have weights of their own, such as that of a KL"
POINTS = "the guide has points without a density, where it is log p(x, z)"


@overload
def compare_estimators(
    program: Program,
    /,
    *args: Any,
    estimators: Mapping[str, ELBO],
    draws: int = 1000,
    batches: Sequence[Any] | None = None,
    reference: str | None = None,
    agree: Iterable[tuple[str, str]] = (),
    kwargs: Mapping[str, Any] | None = None,
    engine: Engine = "auto",
    seed: int = 0,
    progress: bool = True,
) -> Comparison: ...


@overload
def compare_estimators(
    model: Callable,
    guide: Callable,
    /,
    *args: Any,
    estimators: Mapping[str, ELBO],
    draws: int = 1000,
    batches: Sequence[Any] | None = None,
    reference: str | None = None,
    agree: Iterable[tuple[str, str]] = (),
    kwargs: Mapping[str, Any] | None = None,
    engine: Engine = "auto",
    seed: int = 0,
    progress: bool = True,
) -> Comparison: ...


def compare_estimators(
    first: Any,
    /,
    *rest: Any,
    estimators: Mapping[str, ELBO],
    draws: int = 1000,
    batches: Sequence[Any] | None = None,
    reference: str | None = None,
    agree: Iterable[tuple[str, str]] = (),
    kwargs: Mapping[str, Any] | None = None,
    engine: Engine = "auto",
    seed: int = 0,
    progress: bool = True,
) -> Comparison:
    """Draw each estimator of the loss and its gradient many times, at fixed parameters and arguments, and compare.

    Write ``compare_estimators(program, *args, ...)`` or ``compare_estimators(model, guide, *args, ...)``. Any program
    works, with parameters in modules or in Pyro's store. ``find_parameters`` finds them, and gradients are taken in the
    unconstrained leaves. Parameters that model and guide share count as the guide's. The bound is given in nats per
    image where all sites share a plate, else in nats for all data; of a plate that subsamples, all its rows count. The
    gradient is that of the loss as the estimator gives it: summed over the batch.

    Where sites have weights, as by ``handlers.KLWeighted`` in training mode or ``poutine.scale``, minus the loss bounds
    no log p(x): ``no_bound`` of the result says why, and its table marks the numbers by *. So it is where the guide has
    continuous points without a density, as an AutoDelta; of these ``errors.NoBound`` warns, too.

    Moments, and what their 95 % intervals need, are streamed; no gradients are kept (``Moments``). The pairwise tests
    keep one and a half copies of the parameters for each estimator. Estimators are drawn one after another, each with
    random numbers of its own, from ``seed`` and its name. So the tests compare independent draws, and the result of an
    estimator does not depend on the others. Seconds are medians of up to 20 further draws of the program itself. The
    estimators take turns in these, so that other load on the machine slows all of them alike.

    The other draws are vectorised: loss and gradient are recorded as a graph of operators, what depends on no random
    number is computed once, and a block of draws at a time runs through the rest. They are the draws that the program
    makes of the same random numbers, up to rounding; for each estimator some are compared before the graph is trusted.

    Each estimator says by its ``description`` what it estimates (``estimators.describe``). Pairs that estimate the
    gradient of one bound are tested for equal means; ``disagreements`` lists those that fail.

    When it returns or raises, nothing has changed: parameters, gradients, buffers, modes, Pyro's store and validation
    switch, and the random state of torch, numpy and Python are as they were. The first draw of an estimator runs with
    Pyro's validation as it is set, all later draws run without it.

    Args:
        first: the program, or its model, followed by the guide.
        rest: the guide, where ``first`` is a model, and positional arguments of model and guide; or, after a program, a
            split, which it observes once by a fixed seed.
        estimators: any ``pyro.infer.ELBO`` by name.
        draws: of each estimator, at each batch; at least 2.
        batches: in place of positional arguments, several tuples of them, or splits, of one number of images. Means,
            and variances of sampling, are then averages over batches. ``minibatch_variance`` is the variance that the
            batches add (law of total variance, without bias).
        reference: the estimator that variance × seconds is relative to; default: the first ``Trace_ELBO``, or else the
            first estimator.
        agree: pairs of names whose gradients should agree on average, beyond those whose descriptions say so.
        kwargs: keyword arguments of model and guide.
        engine: "eager" makes one draw after another by the program; "vectorized" makes blocks of draws, and raises
            ``Untraceable`` where that cannot be; "auto" vectorises 200 draws or more of an estimator where it can, and
            ``eager`` of the result says why others are drawn eagerly.
        seed: of all random numbers.
        progress: whether to show a progress bar on a terminal.

    Raises ValueError for fewer than 2 draws, an object that is no ELBO, a program without trainable parameters,
    different latent sites in model and guide, arguments of size 0, and an "analytic" KL that Pyro would sample. Raises
    ValueError that names estimator and draw for a loss or gradient that is not finite.

    >>> from pyro_vae.estimators import StickingTheLanding
    >>> from pyro_vae.linear_gaussian import LinearGaussian
    >>> program = LinearGaussian(torch.tensor([[1.0], [2.0]]))
    >>> comparison = compare_estimators(
    ...     program, program.simulate(8), draws=50, progress=False,
    ...     estimators={"L^A": Trace_ELBO(), "sticking the landing": StickingTheLanding()},
    ... )
    >>> comparison.estimators["sticking the landing"].guide.variance.value < 1e-6  # the guide is exact
    True
    >>> comparison.disagreements()
    ()
    """
    model, guide, args = model_and_guide(*arguments_of(first, *rest))
    if guide is None:
        raise ValueError("guide: wanted a function, got None; write compare_estimators(model, guide, ...)")
    kwargs = dict(kwargs or {})
    batches = checked_batches(args, batches and observed_once([first, *batches], {})[0][1:], kwargs)
    pairs = [frozenset(pair) for pair in agree]
    reference = _checked_settings(estimators, draws, reference, pairs)
    draws, seed, engine = int(draws), whole_number("seed", seed, least=None), checked_engine(engine)
    with at_rest(model, guide, seed):
        parameters, images, no_bound = explored(model, guide, batches, kwargs, estimators)
        drawer = Drawer((model, guide), batches, kwargs, parameters, engine)
        measured = {}
        total = draws * len(batches) * len(estimators)
        with tqdm(total=total, unit="draw", disable=None if progress else True) as bar:
            seconds = seconds_per_draw(drawer, estimators, draws)
            for name, elbo in estimators.items():
                bar.set_description(name)
                measured[name] = measure(drawer, name, elbo, draws, images, seed, seconds[name], bar)
    means = {name: mean for name, (_, mean) in measured.items()}
    claims: dict[str, Any] = {"is_bound": False, "estimates": None} if no_bound else {}
    return Comparison(
        estimators={name: replace(statistics, **claims) for name, (statistics, _) in measured.items()},
        agreements=tuple(agreements(estimators, means, parameters, pairs)),
        reference=reference,
        draws=draws,
        batches=len(batches),
        images=images,
        seed=seed,
        shared=parameters.shared,
        eager=drawer.eager,
        no_bound=no_bound,
    )


class Explored(NamedTuple):
    """What runs of a program say: its parameters, the number of images, and why minus a loss is no bound, or ""."""

    parameters: ProgramParameters
    images: int | None
    no_bound: str


@contextmanager
def at_rest(model: Callable, guide: Callable, seed: int) -> Iterator[None]:
    """Leave program, settings and random state as they were; seed the random numbers between."""
    with (
        torch.inference_mode(False), torch.enable_grad(), without_autocast(), left_as_it_was(model, guide),
        warnings.catch_warnings(),
    ):  # fmt: skip
        warnings.filterwarnings("ignore", "Encountered (NaN|.?inf)", UserWarning)  # an error here
        warnings.filterwarnings("ignore", r"[\s\S]*you need to use TraceEnum_ELBO", UserWarning)  # it may stand beside
        pyro.set_rng_seed(seed % 2**32)
        yield


def arguments_of(*given: Any) -> list[Any]:
    """Return positional arguments in which those that the program makes of a split take its place."""
    made, _ = observed_once(given, {})
    pieces = (
        value if isinstance(was, Split) and isinstance(value, tuple) else (value,) for was, value in zip(given, made)
    )
    return [piece for value in pieces for piece in value]


def explored(
    model: Callable, guide: Callable, batches: Sequence[tuple], kwargs: dict[str, Any], estimators: Mapping[str, ELBO]
) -> Explored:
    """Run the program once at each batch; return what the runs say."""
    enumerated = all(describe(elbo).enumerates for elbo in estimators.values())
    parameters, model_trace, guide_trace = find_parameters(model, guide, batches[0], kwargs, enumerated)
    if not all(isinstance(elbo, Estimator) for elbo in estimators.values()):
        check_messenger(guide, guide_trace)
    images = _images(model_trace, guide_trace, count_rows(batches[0], kwargs))
    points = points_without_density(model_trace, guide_trace)
    warn_of_points(points)
    no_bound = POINTS if points else _weighted(images, common_weight(model_trace, guide_trace))
    for args in batches[1:]:
        _, model_trace, guide_trace = find_parameters(model, guide, args, kwargs, enumerated)
        _check_same_images(images, _images(model_trace, guide_trace, count_rows(args, kwargs)))
    for name, elbo in estimators.items():
        check_kl(name, elbo, model, guide, batches[0], kwargs)
    return Explored(parameters, images, no_bound)


def _images(model_trace: poutine.Trace, guide_trace: poutine.Trace, rows: int | None) -> int | None:
    """Return the number of images that the loss sums over; for a subsampling plate, the number in the full data.

    A weight of all sites counts, such as full size / size given by hand; one of some sites does not. None if no plate
    is over images, if plates of different sizes could be over them, if rows have weights, or for no whole number.
    """
    try:
        shared = shared_plates(model_trace, guide_trace)
    except ValueError:
        return None
    over_rows = [plate for plate in shared if rows in (plate.size, plate.full_size)] or shared
    sizes = {rows_in_all(plate) for plate in over_rows}
    weight = common_weight(model_trace, guide_trace)
    factor = torch.as_tensor(1.0 if weight is None else weight)
    if len(sizes) > 1 or factor.numel() > 1:
        return None
    images = sizes.pop() * factor.item()
    return round(images) if images >= 1 and math.isclose(images, round(images), rel_tol=1e-5) else None


def _weighted(images: int | None, weight: float | torch.Tensor | None) -> str:
    """Say why minus a loss is no bound on log p(x), if some sites have a weight, or all one that counts no rows."""
    whole = weight is not None and (images is not None or bool((torch.as_tensor(weight) == 1).all()))
    return "" if whole else WEIGHTED


def _check_same_images(first: int | None, other: int | None) -> None:
    if first != other:
        raise ValueError(f"batches: wanted batches of one size, got {first} and {other} images; drop the smaller one")


def check_kl(name: str, elbo: ELBO, model: Callable, guide: Callable, args: tuple, kwargs: Mapping[str, Any]) -> None:
    """Raise ValueError where an estimator takes a KL in closed form, and the program has one without."""
    if describe(elbo).closed_form_kl:
        try:
            check_analytic_kl(model, guide, *args, **kwargs)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error


def checked_batches(args: tuple, batches: Sequence[Any] | None, kwargs: Mapping[str, Any]) -> list[tuple]:
    """Return the batches, each a tuple of arguments; ValueError for none, and for arguments of size 0."""
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
    """Return the name of the reference; ValueError for an invalid setting."""
    if not is_whole(draws) or draws < 2:
        raise ValueError(f"draws: wanted a whole number of at least 2, for a variance, got {draws!r}")
    check_estimators(estimators)
    unknown = {name for pair in agree for name in pair} | {reference or next(iter(estimators))}
    if unknown - set(estimators):
        raise ValueError(
            f"reference or agree: {sorted(unknown - set(estimators))} are no names of estimators, which are "
            f"{sorted(estimators)}"
        )
    plain = (name for name, elbo in estimators.items() if type(elbo) is Trace_ELBO)
    return reference or next(plain, next(iter(estimators)))


def check_estimators(estimators: Any) -> None:
    """Raise ValueError unless these are estimators by name."""
    if not isinstance(estimators, Mapping) or not estimators:
        raise ValueError(f"estimators: wanted ELBOs by name, as in {{'L^A': Trace_ELBO()}}, got {estimators!r}")
    for name, elbo in estimators.items():
        if not isinstance(elbo, ELBO):
            hint = f"; write {elbo.__name__}()" if isinstance(elbo, type) and issubclass(elbo, ELBO) else ""
            raise ValueError(f"estimators[{name!r}]: wanted a pyro.infer.ELBO such as Trace_ELBO(), got {elbo!r}{hint}")
        describe(elbo)
