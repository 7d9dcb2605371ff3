"""Figures of numbers: learning curves, and the variance of gradient estimators."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullLocator

from pyro_vae.plots.style import COLOURS, DPI, GREY, TRAIN, VALID

WEIGHTED: dict[str, Any] = {"IWAE": "o-", "DReG": "s--"}  # marker and line


def learning_curves(history: Iterable[Mapping[str, float]], title: str = "") -> Figure:
    """Draw bound, rate and distortion against the epoch, for training and validation images, in nats per image.

    A row of the history is one epoch: ``epoch``, ``train_bound``, ``train_rate``, ``train_distortion`` and the same
    with ``valid_``. ``fit(...).rows`` is such a history.

    >>> row = {"train_bound": -150.0, "train_rate": 6.0, "train_distortion": 144.0,
    ...        "valid_bound": -152.0, "valid_rate": 6.0, "valid_distortion": 146.0}
    >>> figure = learning_curves([{"epoch": 1, **row}, {"epoch": 2, **row}])
    >>> [axes.get_title() for axes in figure.axes]
    ['bound (higher is better)', 'rate', 'distortion']
    """
    history = list(history)
    if not history:
        raise ValueError("history: wanted a row an epoch, got none; train for at least one epoch")
    epochs = [row["epoch"] for row in history]
    figure = Figure(figsize=(10.4, 3.4), dpi=DPI, layout="constrained")
    names = {"bound": "bound (higher is better)", "rate": "rate", "distortion": "distortion"}
    for axes, (quantity, name) in zip(figure.subplots(1, 3), names.items()):
        for split, colour, label in (("train", TRAIN, "training"), ("valid", VALID, "validation")):
            values = [row[f"{split}_{quantity}"] for row in history]
            axes.plot(epochs, values, color=colour, label=label, marker="o", markersize=3)
        axes.set(title=name, xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("nats per image")
    figure.axes[0].legend(frameon=False)
    figure.suptitle(title)
    return figure


def estimator_variance(stages: Mapping[str, Mapping[str, Any]], title: str = "") -> Figure:
    """Draw the variance of the gradient of each estimator, for guide and model, at one or more stages of training.

    ``stages`` are results of ``compare_estimators`` by name, each as its ``to_dict()``. The variance is the trace of
    the covariance of one draw, in nats². If an importance-weighted estimator has several numbers of particles, a
    further panel shows the guide's signal-to-noise ratio, mean of |mean| / sd, against them. Lines through points are
    95 % intervals. The dotted line is the ratio below which it cannot be distinguished from zero with this number of
    draws.

    >>> numbers = {"value": 2.0, "low": 1.5, "high": 2.5}
    >>> entry = {"kind": "Trace_ELBO", "particles": 1, "guide": {"variance": numbers, "snr": numbers}, "model": None}
    >>> figure = estimator_variance({"": {"estimators": {"L^A": entry}, "draws": 100, "batches": 1}})
    >>> [axes.get_xlabel() for axes in figure.axes]
    ["variance of the guide's gradient (nats²)"]
    """
    if not stages:
        raise ValueError("stages: wanted at least one result of compare_estimators by name, got none")
    first = next(iter(stages.values()))
    names = list(first["estimators"])
    groups = [group for group in ("guide", "model") if any(entry[group] for entry in first["estimators"].values())]
    weighted = _weighted(first)
    size = (1.6 + 3.4 * len(groups) + 3.4 * bool(weighted), 1.4 + 0.3 * len(names))
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    panels = figure.subplots(1, len(groups) + bool(weighted), squeeze=False)[0]
    shades = [COLOURS[i] for i in (0, 6, 4, 3)]
    for axes, group in zip(panels, groups):
        for number, (stage, colour) in enumerate(zip(stages, itertools.cycle(shades))):
            places = np.arange(len(names)) + 0.22 * (number - (len(stages) - 1) / 2)
            entries = [stages[stage]["estimators"][name][group]["variance"] for name in names]
            _intervals(axes, entries, places, colour, stage, upright=False)
        axes.set(xscale="log", xlabel=f"variance of the {group}'s gradient (nats²)", ylim=(len(names) - 0.5, -0.5))
        axes.set_yticks(range(len(names)), names if axes is panels[0] else [""] * len(names))
        axes.grid(alpha=0.3)
    if weighted:
        _ratio_against_particles(panels[-1], stages, shades)
    if any(stages):
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower left", ncols=len(stages), frameon=False)
    figure.suptitle(title, fontsize="medium")
    return figure


def _weighted(result: Mapping[str, Any]) -> dict[str, list[tuple[int, str]]]:
    """Return the importance-weighted estimators with several numbers of particles: numbers and names by kind."""
    entries = result["estimators"].items()
    found = {
        label: sorted((entry["particles"], name) for name, entry in entries if entry["kind"] == kind)
        for kind, label in (("ImportanceWeighted", "IWAE"), ("DoublyReparameterized", "DReG"))
    }
    return {label: names for label, names in found.items() if len(names) > 1}


def _ratio_against_particles(axes: Axes, stages: Mapping[str, Mapping[str, Any]], shades: Sequence[str]) -> None:
    results = list(stages.values())
    first, last = results[0], results[-1]
    for result, colour in zip(results, itertools.cycle(shades)):
        for label, names in _weighted(result).items():
            particles = [number for number, _ in names]
            entries = [result["estimators"][name]["guide"]["snr"] for _, name in names]
            _intervals(axes, entries, particles, colour, label, upright=True, style=WEIGHTED[label])
    axes.axhline(math.sqrt(2 / (math.pi * last["draws"] * last["batches"])), color=GREY, linestyle=":")
    axes.set(xscale="log", yscale="log", xlabel="particles K", ylabel="signal to noise of the guide's gradient")
    ticks = [number for number, _ in [*_weighted(first).values()][-1]]
    axes.set_xticks(ticks, [str(number) for number in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.3)
    styles = {label: WEIGHTED[label] for label in _weighted(first)}
    lines = [Line2D([], [], color=GREY, marker=style[0], linestyle=style[1:]) for style in styles.values()]
    axes.legend(lines, list(styles), frameon=False, fontsize="small")


def _intervals(
    axes: Axes,
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
    axes.errorbar(**given, fmt=style, color=colour, label=label, markersize=4, linewidth=1.2)
