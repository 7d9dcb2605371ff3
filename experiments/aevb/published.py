"""The numbers of the paper (Kingma & Welling 2013), and the curves of our runs in the same form."""

import csv
import math
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent

NAMES = {"aevb": "AEVB", "wake-sleep": "wake-sleep", "mcem": "Monte Carlo EM"}

Result = dict[str, Any]


def published_bounds() -> dict[tuple[str, int, str, str], dict[float, float]]:
    """Return (data set, D, algorithm, split) -> {log10 of samples: nats}, read off the vector graphics of figure 2."""
    curves: dict[tuple[str, int, str, str], dict[float, float]] = {}
    with (HERE / "figure2.csv").open() as file:
        for row in csv.DictReader(file):
            key = (row["dataset"].lower(), int(row["latent_dim"]), row["algorithm"], row["split"])
            curves.setdefault(key, {})[float(row["log10_samples"])] = float(row["bound_nats"])
    return curves


def published_evidence() -> dict[tuple[int, str, str], dict[float, float]]:
    """Return (training images, algorithm, split) -> {samples: nats}, of figure 3."""
    curves: dict[tuple[int, str, str], dict[float, float]] = {}
    with (HERE / "figure3.csv").open() as file:
        for row in csv.DictReader(file):
            for split in ("train", "test"):
                key = (int(row["images"]), row["algorithm"], split)
                curves.setdefault(key, {})[float(row["samples"])] = float(row[f"{split}_nats"])
    return curves


def at(curve: dict[float, float], place: float, width: float = 0.13) -> float | None:
    """Return the curve at a place by linear interpolation; None beyond its ends or in a gap wider than 2 × width.

    >>> at({6.0: -100.0, 6.25: -90.0}, 6.125)
    -95.0
    """
    below = max((x for x in curve if x <= place + 1e-9), default=None)
    above = min((x for x in curve if x >= place - 1e-9), default=None)
    if below is None or above is None or above - below > 2 * width:
        return None
    share = (place - below) / (above - below) if above - below > 1e-9 else 0.0
    return curve[below] + share * (curve[above] - curve[below])


def measured(result: Result, split: str) -> dict[float, float]:
    """Return {log10 of samples: nats} of a run."""
    return {math.log10(point["samples"]): point[split] for point in result["points"]}


def key_of(result: Result, split: str) -> tuple[str, int, str, str]:
    """Return the key of the published curve; digits, which replace all data sets in a trial, have none."""
    dataset = "digits" if result["settings"].get("digits") else result["panel"]["dataset"]
    return dataset, result["panel"]["latent"], result["settings"]["algorithm"], split


def order_of(result: Result) -> tuple:
    """Return a sort key: MNIST before Frey Face, then by D, algorithm and how x is made."""
    dataset, *rest = key_of(result, "")
    return dataset == "frey", dataset, *rest, result["settings"]["binarize"]
