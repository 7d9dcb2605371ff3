"""Samples of a program beside the data: one panel a column, and pairs of columns."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyro_vae.plots.style import COLOURS, DPI
from pyro_vae.tables import Column, Schema

DATA, SAMPLES, PAIRS_OF_DATA = COLOURS[1], COLOURS[0], COLOURS[4]
BINS, MOST_COUNTS, ACROSS = 40, 20, 5


def marginals(schema: Schema, data: np.ndarray, samples: np.ndarray) -> Figure:
    """Return a panel for each column: the share of the rows by value, of the data and of samples."""
    down = -(-len(schema) // ACROSS)
    figure = Figure(figsize=(3 * ACROSS, 2.3 * down), dpi=DPI, layout="constrained")
    for i, column in enumerate(schema.columns):
        axes = figure.add_subplot(down, ACROSS, i + 1)
        draw = bars if column.levels or column.kind == "count" else histograms
        draw(axes, column, data[:, i], samples[:, i])
        axes.set_title(f"{column.name} ({column.kind})", fontsize=9)
        axes.tick_params(labelsize=7)
    figure.axes[0].legend(fontsize=8)
    return figure


def bars(axes: Axes, column: Column, data: np.ndarray, samples: np.ndarray) -> None:
    """Draw the shares of levels, or of the counts up to ``MOST_COUNTS``."""
    values = np.array(column.levels) if column.levels else np.arange(min(data.max(), MOST_COUNTS) + 1)
    for offset, rows, colour, label in ((-0.2, data, DATA, "data"), (0.2, samples, SAMPLES, "samples")):
        shares = (np.abs(rows[:, None] - values) < 1e-3).mean(0)
        axes.bar(np.arange(len(values)) + offset, shares, 0.4, color=colour, label=label)
    words = column.categories or [f"{value:.3g}" for value in values]
    step = -(-len(values) // 6)
    axes.set_xticks(np.arange(len(values))[::step], [str(word)[:8] for word in words][::step])
    axes.set_ylabel("share of rows", fontsize=7)


def histograms(axes: Axes, column: Column, data: np.ndarray, samples: np.ndarray) -> None:
    """Draw densities between the outermost thousandths of the data."""
    low, high = np.quantile(data, [0.001, 0.999])
    edges = np.linspace(low, high, BINS + 1)
    axes.hist(data, edges, density=True, color=DATA, label="data")
    axes.hist(samples, edges, density=True, histtype="step", color=SAMPLES, linewidth=1.5, label="samples")
    axes.set_ylabel("density", fontsize=7)


def pairs(schema: Schema, data: np.ndarray, samples: np.ndarray, names: list[str], seed: int = 0) -> Figure:
    """Return a scatter plot for each pair of columns, data below the diagonal and samples above it.

    Levels and counts are moved at random by up to 0.3 of a step, so that equal values do not hide each other.
    """
    places = [schema.names.index(name) for name in names]
    figure = Figure(figsize=(2.2 * len(names), 2.2 * len(names)), dpi=DPI, layout="constrained")
    rng = np.random.default_rng(seed)
    grid = figure.subplots(len(names), len(names), squeeze=False)
    for row, j in enumerate(places):
        for at, i in enumerate(places):
            axes = grid[row][at]
            if row == at:
                axes.text(0.5, 0.5, names[row], ha="center", va="center", transform=axes.transAxes)
                axes.set_axis_off()
                continue
            rows, colour = (data, PAIRS_OF_DATA) if row > at else (samples, SAMPLES)
            x, y = (moved(schema.columns[k], rows[:, k], rng) for k in (i, j))
            axes.scatter(x, y, s=6, color=colour, alpha=0.5, linewidths=0)
            axes.set_xlim(*limits(data[:, i]))
            axes.set_ylim(*limits(data[:, j]))
            axes.tick_params(labelsize=6)
    figure.suptitle("data below the diagonal, samples above it", fontsize=9)
    return figure


def moved(column: Column, values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return values, those of levels and counts moved a little."""
    if not column.levels and column.kind != "count":
        return values
    step = np.diff(column.levels).min() if column.levels else 1.0
    return values + step * rng.uniform(-0.3, 0.3, len(values))


def limits(values: np.ndarray) -> tuple[float, float]:
    """Return the limits of an axis: the outermost thousandths of the data, and a margin."""
    low, high = np.quantile(values, [0.001, 0.999])
    return low - 0.15 * (high - low), high + 0.15 * (high - low)
