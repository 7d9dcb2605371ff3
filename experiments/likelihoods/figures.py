"""The figures: six panels of numbers, and strips of reconstructions and samples."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.likelihoods.families import FAMILIES
from pyro_vae.plots import COLOURS, DPI, tiled
from pyro_vae.runs.measurement import NEIGHBOURS

BOUND, EVIDENCE, OTHER = COLOURS[6], COLOURS[0], COLOURS[4]


def in_panels(families: dict[str, dict[str, Any]], common: dict[str, Any]) -> Figure:
    """Draw six panels with a line for each family and a point for each seed; the families in this order."""
    rows = [family for family in families.values() if family["seeds"]]
    figure = Figure(figsize=(11.5, 1.8 + 0.52 * max(len(rows), 3)), dpi=DPI, layout="constrained")
    panels = figure.subplots(2, 3, sharey=True).flatten()
    bounds(panels[:2], rows, common["measurement"])
    points(panels[2], [row["knn_accuracy"] for row in rows], f"{NEIGHBOURS} neighbours", EVIDENCE)
    points(panels[2], [row["linear_probe_accuracy"] for row in rows], "linear probe", BOUND)
    panels[2].set_title("accuracy of probes, better →", fontsize="medium")
    others = {
        "mse": "squared error of a pixel ← better",
        "active_units": "active units",
        "training_seconds": "seconds of training",
    }
    for axes, (quantity, title) in zip(panels[3:], others.items()):
        points(axes, [row[quantity] for row in rows], "", EVIDENCE)
        axes.set_title(title, fontsize="medium")
    for axes in panels:
        axes.set_yticks(range(len(rows)), [row["label"] for row in rows])
        axes.set_ylim(max(len(rows), 1) - 0.5, -0.5)
        axes.grid(alpha=0.3)
    for axes, place in zip(panels[:3], ("best", "best", "lower center")):
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="x-small", loc=place)
    return figure


def bounds(panels: Sequence[Axes], rows: list[dict[str, Any]], measurement: dict[str, Any]) -> None:
    """Draw the bounds: bits/dim of grey levels in the first panel, nats of black and white in the second."""
    K, n = measurement["particles"], measurement["images"]
    both = {"bound": ("bound, all test images", BOUND), "log_px": (f"$L_{{{K}}}$, {n} test images", EVIDENCE)}
    for axes, kind, title in (
        (panels[0], "bits/dim", "grey levels: bits/dim ← better"),
        (panels[1], "nats", "black and white: nats, better →"),
    ):
        for bound, (label, colour) in both.items():
            points(axes, [row[bound] if row["unit"] == kind else None for row in rows], label, colour)
        axes.set_title(title, fontsize="medium")
    floors = [(place, row["least"]) for place, row in enumerate(rows) if row["least"] is not None]
    panels[0].plot(
        [least for _, least in floors],
        [place for place, _ in floors],
        "|",
        color=OTHER,
        markersize=9,
        label="least possible",
    )


def points(axes: Axes, values: list[dict[str, Any] | None], label: str, colour: str) -> None:
    """Draw a point for each seed of each family that has a value."""
    pairs = [
        (seed, place) for place, value in enumerate(values) if value for seed in value["values"] if seed is not None
    ]
    if pairs:
        axes.plot(*zip(*pairs), "o", color=colour, label=label, markersize=4, alpha=0.8)


def in_rows(folder: Path, runs: dict[str, list[dict[str, Any]]]) -> Figure:
    """Draw for each family reconstructions of the same test images, and samples of its prior, of its first seed."""
    seeds = {
        name: [run["settings"]["seed"] for run in entries if not run["failed"] and not run.get("left_out")]
        for name, entries in runs.items()
    }
    rows = {
        name: torch.load(folder / f"{name}-seed{found[0]}" / "pictures.pt", weights_only=True)
        for name, found in seeds.items()
        if found
    }
    figure = Figure(figsize=(11, 0.3 + 0.52 * (len(rows) + 1)), dpi=DPI, layout="constrained")
    if not rows:
        return figure
    originals = next(iter(rows.values()))["images"]
    left, right = figure.subplots(1, 2)
    columns = {
        "reconstructions": [originals, *(row["reconstructions"] for row in rows.values())],
        "samples of the prior": [torch.ones_like(originals), *(row["samples"] for row in rows.values())],
    }
    for axes, (title, images) in zip((left, right), columns.items()):
        axes.imshow(tiled(torch.stack(images)), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.set_title(title, fontsize="medium")
        axes.spines[:].set_visible(False)
        axes.set_xticks([])
        axes.set_yticks([])
    height = originals.shape[-2]
    centres = [(height + 2) * place + (height - 1) / 2 for place in range(len(rows) + 1)]
    left.set_yticks(centres, ["test images", *(FAMILIES[name].label for name in rows)])
    left.tick_params(length=0)
    return figure
