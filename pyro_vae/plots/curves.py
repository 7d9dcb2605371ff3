"""Figures of numbers: learning curves, and the variance of gradient estimators."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullLocator

from pyro_vae.plots.figures import Figure, figure_of, panels
from pyro_vae.plots.style import COLOURS, GREY, TRAIN, VALID

if TYPE_CHECKING:
    from pyro_vae.comparison import Comparison
    from pyro_vae.training import History

    Rows = History | Iterable[Mapping[str, float]]
    Stages = Comparison | Mapping[str, Comparison | Mapping[str, Any]]

QUANTITIES = {"bound": "bound (higher is better)", "rate": "rate", "distortion": "distortion"}
SPLITS = {"train": (TRAIN, "training"), "valid": (VALID, "validation")}
WEIGHTED: dict[str, Any] = {"IWAE": "o-", "DReG": "s--"}  # marker and line


@overload
def learning_curves(history: "Rows", title: str = ..., *, axes: None = ...) -> Figure: ...
@overload
def learning_curves(history: "Rows", title: str = ..., *, axes: Sequence[Axes]) -> list[Axes]: ...
def learning_curves(history: "Rows", title: str = "", *, axes: Sequence[Axes] | None = None) -> Figure | list[Axes]:
    """Draw bound, rate and distortion against the epoch, for training and validation images, in nats per image.

    Args:
        history: what ``fit`` returns, or its rows: ``epoch``, ``train_bound``, ``train_rate``, ``train_distortion`` and
            the same with ``valid_``. Of a ``History`` the epoch that is kept is marked.
        title: of the figure.
        axes: three axes to draw in, which are returned; by default a new figure is made and returned.

    >>> row = {"train_bound": -150.0, "train_rate": 6.0, "train_distortion": 144.0,
    ...        "valid_bound": -152.0, "valid_rate": 6.0, "valid_distortion": 146.0}
    >>> figure = learning_curves([{"epoch": 1, **row}, {"epoch": 2, **row}])
    >>> [ax.get_title() for ax in figure.axes]
    ['bound (higher is better)', 'rate', 'distortion']
    """
    rows = _rows(history)
    drawn = panels(axes, 3, 10.4, 3.4)
    epochs, kept = [row["epoch"] for row in rows], getattr(history, "kept_epoch", None)
    for ax, (quantity, name) in zip(drawn, QUANTITIES.items()):
        for split, (colour, label) in SPLITS.items():
            values = [row[f"{split}_{quantity}"] for row in rows]
            ax.plot(epochs, values, color=colour, label=label, marker="o", markersize=3 if len(rows) < 50 else 0)
        if kept:
            ax.axvline(kept, color=GREY, linestyle=":", zorder=0, label=f"epoch {kept}, which is kept")
        ax.set(title=name, xlabel="epoch")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.grid(alpha=0.3)
    drawn[0].set_ylabel("nats per image")
    drawn[0].legend(frameon=False)
    return _titled(drawn, axes, title)


@overload
def estimator_variance(stages: "Stages", title: str = ..., *, axes: None = ...) -> Figure: ...
@overload
def estimator_variance(stages: "Stages", title: str = ..., *, axes: Sequence[Axes]) -> list[Axes]: ...
def estimator_variance(stages: "Stages", title: str = "", *, axes: Sequence[Axes] | None = None) -> Figure | list[Axes]:
    """Draw the variance of the gradient of each estimator, for guide and model, at one or more stages of training.

    The variance is the trace of the covariance of one draw, in nats². If an importance-weighted estimator has several
    numbers of particles, a further panel shows the guide's signal-to-noise ratio, mean of |mean| / sd, against them.
    Lines through points are 95 % intervals. The dotted line is the ratio below which it cannot be distinguished from
    zero with this number of draws.

    Args:
        stages: a result of ``compare_estimators``; or several by name, each also as its ``to_dict()``.
        title: of the figure.
        axes: as many axes as there are panels, which are returned; by default a new figure is made and returned.

    >>> numbers = {"value": 2.0, "low": 1.5, "high": 2.5}
    >>> entry = {"kind": "Trace_ELBO", "particles": 1, "guide": {"variance": numbers, "snr": numbers}, "model": None}
    >>> figure = estimator_variance({"": {"estimators": {"L^A": entry}, "draws": 100, "batches": 1}})
    >>> [ax.get_xlabel() for ax in figure.axes]
    ["variance of the guide's gradient (nats²)"]
    """
    results = _results(stages)
    first = next(iter(results.values()))
    names = list(first["estimators"])
    groups = [group for group in ("guide", "model") if any(entry[group] for entry in first["estimators"].values())]
    weighted = _weighted(first)
    number = len(groups) + bool(weighted)
    drawn = panels(axes, number, 1.6 + 3.4 * number, max(3.0, 1.4 + 0.3 * len(names)))
    shades = [COLOURS[i] for i in (0, 6, 4, 3)]
    for ax, group in zip(drawn, groups):
        _variances(ax, results, names, group, shades)
        ax.set_yticks(range(len(names)), names if ax is drawn[0] else [""] * len(names))
    if weighted:
        _ratio_against_particles(drawn[-1], results, shades)
    if any(results):
        _legend(drawn, own=axes is None, columns=len(results))
    return _titled(drawn, axes, title)


def _rows(history: Any) -> list[Mapping[str, float]]:
    rows = list(getattr(history, "rows", history))
    if not rows:
        raise ValueError("history: wanted a row an epoch, got none; train for at least one epoch")
    wanted = ["epoch", *(f"{split}_{quantity}" for split in SPLITS for quantity in QUANTITIES)]
    for row in rows:
        missing = [name for name in wanted if name not in row] if isinstance(row, Mapping) else wanted
        if missing:
            got = f"a row without {', '.join(missing)}" if isinstance(row, Mapping) else f"a {type(row).__name__}"
            raise ValueError(f"history: wanted the History of a training, or its rows, got {got}; write fit(...)")
    return rows


def _results(stages: Any) -> dict[str, Mapping[str, Any]]:
    """Return results of ``compare_estimators`` as dictionaries, by the name of the stage."""
    named = {"": stages} if hasattr(stages, "to_dict") else stages
    if not isinstance(named, Mapping) or not named:
        got = "none" if isinstance(named, Mapping) else f"a {type(named).__name__}"
        raise ValueError(
            f"stages: wanted at least one result of compare_estimators by name, got {got}; "
            'write {"after training": compare_estimators(...)}'
        )
    return {name: result.to_dict() if hasattr(result, "to_dict") else result for name, result in named.items()}


def _titled(drawn: list[Axes], given: Sequence[Axes] | None, title: str) -> Figure | list[Axes]:
    """Set the title, of the figure if it is ours, otherwise of the first axes; return what the caller shall have."""
    if given is None:
        figure = figure_of(drawn[0])
        figure.suptitle(title, fontsize="medium")
        return figure
    if title:
        drawn[0].set_title("\n".join(filter(None, (title, drawn[0].get_title()))))
    return drawn


def _legend(drawn: list[Axes], own: bool, columns: int) -> None:
    handles, labels = drawn[0].get_legend_handles_labels()
    if own:
        figure_of(drawn[0]).legend(handles, labels, loc="outside lower left", ncols=columns, frameon=False)
    else:
        drawn[0].legend(handles, labels, fontsize="small")


def _variances(
    ax: Axes, results: Mapping[str, Mapping[str, Any]], names: Sequence[str], group: str, shades: Sequence[str]
) -> None:
    for number, (stage, colour) in enumerate(zip(results, itertools.cycle(shades))):
        places = np.arange(len(names)) + 0.22 * (number - (len(results) - 1) / 2)
        entries = [results[stage]["estimators"][name][group]["variance"] for name in names]
        _intervals(ax, entries, places, colour, stage, upright=False)
    ax.set(xscale="log", xlabel=f"variance of the {group}'s gradient (nats²)", ylim=(len(names) - 0.5, -0.5))
    ax.grid(alpha=0.3)


def _weighted(result: Mapping[str, Any]) -> dict[str, list[tuple[int, str]]]:
    """Return the importance-weighted estimators with several numbers of particles: numbers and names by kind."""
    entries = result["estimators"].items()
    found = {
        label: sorted((entry["particles"], name) for name, entry in entries if entry["kind"] == kind)
        for kind, label in (("ImportanceWeighted", "IWAE"), ("DoublyReparameterized", "DReG"))
    }
    return {label: names for label, names in found.items() if len(names) > 1}


def _ratio_against_particles(ax: Axes, stages: Mapping[str, Mapping[str, Any]], shades: Sequence[str]) -> None:
    results = list(stages.values())
    first, last = results[0], results[-1]
    for result, colour in zip(results, itertools.cycle(shades)):
        for label, names in _weighted(result).items():
            particles = [number for number, _ in names]
            entries = [result["estimators"][name]["guide"]["snr"] for _, name in names]
            _intervals(ax, entries, particles, colour, label, upright=True, style=WEIGHTED[label])
    ax.axhline(math.sqrt(2 / (math.pi * last["draws"] * last["batches"])), color=GREY, linestyle=":")
    ax.set(xscale="log", yscale="log", xlabel="particles K", ylabel="signal to noise\nof the guide's gradient")
    ticks = [number for number, _ in [*_weighted(first).values()][-1]]
    ax.set_xticks(ticks, [str(number) for number in ticks])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.grid(alpha=0.3)
    styles = {label: WEIGHTED[label] for label in _weighted(first)}
    lines = [Line2D([], [], color=GREY, marker=style[0], linestyle=style[1:]) for style in styles.values()]
    ax.legend(lines, list(styles), frameon=False, fontsize="small")


def _intervals(
    ax: Axes,
    entries: Sequence[Mapping[str, float]],
    places: Iterable[float],
    colour: str,
    label: str,
    upright: bool,
    style: str = "o",
) -> None:
    """Draw points with intervals against places on the other axis; unknown values and zeros are left out."""
    kept = [(place, entry) for place, entry in zip(places, entries) if entry["value"]]
    values = np.array([entry["value"] for _, entry in kept])
    ends = [[entry["value"] if entry[end] is None else entry[end] for end in ("low", "high")] for _, entry in kept]
    spread = np.abs(np.array(ends).reshape(-1, 2).T - values)
    where = np.array([place for place, _ in kept], dtype=float)
    given = {"x": where, "y": values, "yerr": spread} if upright else {"x": values, "y": where, "xerr": spread}
    ax.errorbar(**given, fmt=style, color=colour, label=label, markersize=4, linewidth=1.2)
