"""Figures 2 to 5 of the paper, ours beside the published ones."""

import math
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter
from torch import Tensor

from experiments.aevb import algorithms
from experiments.aevb.published import NAMES, Result, key_of, measured, order_of, published_bounds, published_evidence
from pyro_vae import VAE, analysis
from pyro_vae.config import BINARIZE
from pyro_vae.plots import COLOURS, DPI, GREY, tiled

TITLES = {"mnist": "MNIST", "frey": "Frey Face", "digits": "digits"}
COLOUR = {"aevb": COLOURS[4], "wake-sleep": COLOURS[2], "mcem": COLOURS[0]}
BELOW = 20.0  # nats below the lowest end of a curve down to which figure 3 shows them; Monte Carlo EM starts far below
SIDE, COLUMNS = 20, 10  # pictures a side of a manifold, and of a panel of random samples


def figure_2(results: list[Result]) -> Figure | None:
    """Draw a panel for each data set and D: lines are ours, points the paper's; full and filled: test."""
    paper = published_bounds()
    panels = list(dict.fromkeys(result["settings"]["panel"] for result in sorted(results, key=order_of)))
    if not panels:
        return None
    columns = min(5, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(0.8 + 2.9 * columns, 0.9 + 2.7 * rows), dpi=DPI, layout="constrained")
    axes_of = dict(zip(panels, figure.subplots(rows, columns, squeeze=False).flat))
    for panel, axes in axes_of.items():
        shown = [result for result in results if result["settings"]["panel"] == panel]
        dataset, latent, *_ = key_of(shown[0], "")
        draw(axes, shown)
        last = max(p["samples"] for r in shown for p in r["points"])
        for algorithm in ("aevb", "wake-sleep"):
            for split, face in (("test", COLOUR[algorithm]), ("train", "none")):
                points = {
                    x: y
                    for x, y in paper.get((dataset, latent, algorithm, split), {}).items()
                    if x <= math.log10(last) + 0.01
                }
                axes.plot(
                    [10**x for x in points],
                    list(points.values()),
                    "o",
                    markersize=3,
                    color=COLOUR[algorithm],
                    markerfacecolor=face,
                    markeredgewidth=0.7,
                    linewidth=0,
                )
        axes.set(xscale="log", title=f"{TITLES[dataset]}, $N_z$ = {latent}", ylim=limits(shown, paper, dataset, latent))
        axes.set_xlabel("training samples seen")
        axes.grid(alpha=0.3)
    for axes in figure.axes[len(panels) :]:
        axes.set_axis_off()
    for axes in list(axes_of.values())[::columns]:
        axes.set_ylabel("bound (nats per image)")
    legend(figure, results, ("aevb", "wake-sleep"), columns)
    return figure


def limits(shown: list[Result], paper: dict, dataset: str, latent: int) -> tuple[float, float]:
    """Return the range of the last decade and a half of both, with a margin: the first steps would dwarf the rest."""
    curves = [measured(r, split) for r in shown for split in ("test", "train")]
    end = max(max(c) for c in curves)
    curves += [values for key, values in paper.items() if key[:2] == (dataset, latent)]
    values = [y for c in curves for x, y in c.items() if end - 1.3 <= x <= end + 0.01]
    margin = 0.06 * (max(values) - min(values)) + 1e-6
    return min(values) - margin, max(values) + margin


def figure_3(results: list[Result]) -> Figure | None:
    """Draw a panel for each number of training images: log p(x) against samples seen."""
    if not results:
        return None
    paper, sizes = published_evidence(), sorted({result["panel"]["images"] for result in results})
    figure = Figure(figsize=(1.5 + 4.0 * len(sizes), 3.9), dpi=DPI, layout="constrained")
    for images, axes in zip(sizes, figure.subplots(1, len(sizes), squeeze=False).flat):
        shown = [result for result in results if result["panel"]["images"] == images]
        draw(axes, shown)
        last = max(p["samples"] for r in shown for p in r["points"])
        for algorithm, colour in COLOUR.items():
            for split, face in (("test", colour), ("train", "none")):
                points = {x: y for x, y in paper.get((images, algorithm, split), {}).items() if x <= 1.01 * last}
                axes.plot(
                    list(points),
                    list(points.values()),
                    "o",
                    markersize=4,
                    color=colour,
                    markerfacecolor=face,
                    linewidth=0,
                )
        axes.set(xscale="log", xlabel="training samples seen", title=f"N = {images}, $N_z$ = 3, 100 hidden units")
        ends = [result["points"][-1][split] for result in shown for split in ("test", "train")]
        axes.set_ylim(bottom=max(axes.get_ylim()[0], min(ends) - BELOW))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("log p(x) (nats per image)")
    legend(figure, results, tuple(NAMES), len(sizes))
    return figure


def draw(axes: Axes, results: list[Result]) -> None:
    """Draw our curves of a panel; those of grey levels paler."""
    for result in results:
        colour, grey = COLOUR[result["settings"]["algorithm"]], result["settings"]["binarize"] == "intensity"
        for split, style in (("test", "-"), ("train", "--")):
            points = [(point["samples"], point[split]) for point in result["points"]]
            axes.plot(*zip(*points), style, color=colour, alpha=0.45 if grey else 1.0, linewidth=1.4)


def legend(figure: Figure, results: list[Result], shown: tuple[str, ...], panels: int) -> None:
    """Draw the legend below the panels."""
    marks = [Line2D([], [], color=COLOUR[name], label=NAMES[name]) for name in shown]
    marks += [
        Line2D([], [], color=GREY, label="ours, test"),
        Line2D([], [], color=GREY, linestyle="--", label="ours, training"),
        Line2D([], [], color=GREY, marker="o", markersize=4, linestyle="", label="paper, test"),
        Line2D([], [], color=GREY, marker="o", markersize=4, linestyle="", label="paper, training", fillstyle="none"),
    ]
    if any(result["settings"]["binarize"] == "intensity" for result in results):
        marks.append(Line2D([], [], color=GREY, alpha=0.45, label="ours, grey levels"))
    columns = min(len(marks), 2 * panels)
    figure.legend(handles=marks, loc="outside lower center", ncols=columns, frameon=False, fontsize="small")


def figures_4_and_5(results: dict[str, Result], out: Path) -> dict[str, Figure | None]:
    """Draw manifolds of the runs with D = 2, and random samples for D = 2, 5, 10, 20."""
    programs: dict[str, dict[int, VAE]] = {}
    for name, result in results.items():
        aevb = result["settings"]["algorithm"] == "aevb" and not result["panel"]["evidence"]
        if aevb and result["settings"]["binarize"] != "intensity" and (out / f"{name}.pt").exists():
            of = programs.setdefault(result["panel"]["dataset"], {})
            of[result["panel"]["latent"]] = load_program(result, out, name)
    planes = {
        TITLES[dataset]: analysis.manifold(of[2], SIDE)
        for dataset, of in sorted(programs.items(), reverse=True)
        if 2 in of
    }
    draws = {
        f"{TITLES[dataset]}, $N_z$ = {latent}": analysis.sample_prior(of[latent], COLUMNS**2)
        for dataset, of in sorted(programs.items(), reverse=True)
        for latent in (2, 5, 10, 20)
        if latent in of
    }
    return {
        "figure4": pictures(planes, gap=0),
        "figure5": pictures({name: images.unflatten(0, (COLUMNS, COLUMNS)) for name, images in draws.items()}),
    }


def load_program(result: Result, out: Path, name: str) -> VAE:
    """Return the trained program of a run."""
    state = torch.load(out / f"{name}.pt", weights_only=True)
    panel, run = result["panel"], result["settings"]
    vae = algorithms.program(
        tuple(result["shape"]),
        panel["latent"],
        panel["hidden"],
        panel["dataset"] == "frey",
        BINARIZE[run["binarize"]],
        run["seed"],
    )
    vae.load_state_dict(state)
    return vae


def pictures(grids: dict[str, Tensor], gap: int = 1) -> Figure | None:
    """Draw grids of images (rows, columns, C, H, W), each under its name, four in a row."""
    if not grids:
        return None
    columns = min(4, len(grids))
    rows = math.ceil(len(grids) / columns)
    figure = Figure(figsize=(3.2 * columns, 3.7 * rows), dpi=DPI, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for axes in panels:
        axes.set_axis_off()
    for axes, (name, grid) in zip(figure.axes, grids.items()):
        axes.imshow(tiled(grid, gap=gap), cmap="gray", vmin=0, vmax=1)
        axes.set_title(name, fontsize="medium")
    return figure
