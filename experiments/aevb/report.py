"""Tables and figures of the runs in a folder, ours beside the paper's (Kingma & Welling 2013)."""

import csv
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter
from parts import BINARIZE
from results import beside, save_figure, write_json
from torch import Tensor

from aevb import algorithms
from pyro_vae import VAE, analysis
from pyro_vae.plots import COLOURS, DPI, GREY, tiled

HERE = Path(__file__).parent
TITLES = {"mnist": "MNIST", "frey": "Frey Face", "digits": "digits"}
NAMES = {"aevb": "AEVB", "wake-sleep": "wake-sleep", "mcem": "Monte Carlo EM"}
COLOUR = {"aevb": COLOURS[4], "wake-sleep": COLOURS[2], "mcem": COLOURS[0]}
TOLERANCE = {"mnist": 2.0, "frey": 40.0}  # nats per image within which a bound counts as the paper's
POSTS = (6.0, 6.5, 7.0, 7.5, 8.0)  # log10 of the samples seen at which tables compare
BELOW = 20.0  # nats below the lowest end of a curve down to which figure 3 shows them; Monte Carlo EM starts far below
SIDE, COLUMNS = 20, 10  # pictures a side of a manifold, and of a panel of random samples

Result = dict[str, Any]


def gather(out: Path, wanted: Iterable[str] = ()) -> str:
    """Writes tables and figures of all runs in the folder beside it; returns the tables in words.

    ``wanted``: names of runs of which is said that they are lacking, if they are.
    """
    results = {path.stem: json.loads(path.read_text()) for path in sorted(out.glob("[!.]*.json"))}
    if not results:
        raise FileNotFoundError(f"{out} holds no run to report; run without --report first")
    bounds = [result for result in results.values() if not result["panel"]["evidence"]]
    evidence = [result for result in results.values() if result["panel"]["evidence"]]
    figures = {"figure2": figure_2(bounds), "figure3": figure_3(evidence)}
    figures |= figures_4_and_5(results, out)
    for name, figure in figures.items():
        if figure is not None:
            save_figure(beside(out, f"_{name}.png"), figure)
    tables = {"figure_2": table_2(bounds), "figure_3": table_3(evidence), "claims": claims(bounds, evidence)}
    words = in_words(tables, results)
    lacking = [name for name in wanted if name not in results]
    words += f"\nnot run: {', '.join(lacking)}" if lacking else ""
    beside(out, ".txt").write_text(words + "\n", encoding="utf-8")
    write_json(beside(out, ".json"), {**tables, "runs": results})
    return words


def published_bounds() -> dict[tuple[str, int, str, str], dict[float, float]]:
    """(data set, D, algorithm, split) -> {log10 of samples: nats}, read off the vector graphics of figure 2."""
    curves: dict[tuple[str, int, str, str], dict[float, float]] = {}
    with (HERE / "figure2.csv").open() as file:
        for row in csv.DictReader(file):
            key = (row["dataset"].lower(), int(row["latent_dim"]), row["algorithm"], row["split"])
            curves.setdefault(key, {})[float(row["log10_samples"])] = float(row["bound_nats"])
    return curves


def published_evidence() -> dict[tuple[int, str, str], dict[float, float]]:
    """(training images, algorithm, split) -> {samples: nats}, of figure 3."""
    curves: dict[tuple[int, str, str], dict[float, float]] = {}
    with (HERE / "figure3.csv").open() as file:
        for row in csv.DictReader(file):
            for split in ("train", "test"):
                key = (int(row["images"]), row["algorithm"], split)
                curves.setdefault(key, {})[float(row["samples"])] = float(row[f"{split}_nats"])
    return curves


def at(curve: dict[float, float], place: float, width: float = 0.13) -> float | None:
    """The curve at a place by linear interpolation; None beyond its ends or in a gap wider than 2 × width.

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
    """{log10 of samples: nats}."""
    return {math.log10(point["samples"]): point[split] for point in result["points"]}


def key_of(result: Result, split: str) -> tuple[str, int, str, str]:
    """Of the published curve; none is that of the digits, which stand for all data sets where a run is tried out."""
    dataset = "digits" if result["settings"].get("digits") else result["panel"]["dataset"]
    return dataset, result["panel"]["latent"], result["settings"]["algorithm"], split


def order_of(result: Result) -> tuple:
    """MNIST before Frey Face, then by D, algorithm and how x is made."""
    dataset, *rest = key_of(result, "")
    return dataset == "frey", dataset, *rest, result["settings"]["binarize"]


def table_2(results: list[Result]) -> list[dict[str, Any]]:
    """A row for each run and number of samples: ours, the paper's and the difference, of both splits."""
    paper, rows = published_bounds(), []
    for result in sorted(results, key=order_of):
        ends = {max(measured(other, "test")) for other in results if panel_of(other) == panel_of(result)}
        posts = [post for post in POSTS if at(measured(result, "test"), post) is not None]
        for post in sorted({*posts, *(end for end in ends if at(measured(result, "test"), end) is not None)}):
            row: dict[str, Any] = {
                "panel": result["settings"]["panel"],
                "algorithm": result["settings"]["algorithm"],
                "binarize": result["settings"]["binarize"],
                "log10_samples": post,
            }
            for split in ("test", "train"):
                ours, theirs = at(measured(result, split), post), at(paper.get(key_of(result, split), {}), post)
                row |= {split: ours, f"{split}_paper": theirs, f"{split}_difference": difference(ours, theirs)}
            rows.append(row)
    return rows


def panel_of(result: Result) -> tuple[str, str]:
    """The panel, and how x is made: what is compared has both in common."""
    return result["settings"]["panel"], result["settings"]["binarize"]


def until(curve: dict[float, float], end: float) -> tuple[float, float]:
    """The last point of a curve up to a place, or just beyond it; its first where all are beyond."""
    place = max((x for x in curve if x <= end + 0.03), default=min(curve))
    return place, curve[place]


def table_3(results: list[Result]) -> list[dict[str, Any]]:
    """A row for each run and number of samples: log p(x), ours, the paper's and the difference, of both splits."""
    paper, rows = published_evidence(), []
    for result in sorted(results, key=lambda result: (result["panel"]["images"], result["settings"]["algorithm"])):
        images, algorithm = result["panel"]["images"], result["settings"]["algorithm"]
        for point in result["points"]:
            row: dict[str, Any] = {
                "images": images,
                "algorithm": algorithm,
                "binarize": result["settings"]["binarize"],
                "samples": point["samples"],
            }
            for split in ("test", "train"):
                theirs = paper.get((images, algorithm, split), {})
                near = [value for place, value in theirs.items() if abs(place / point["samples"] - 1) < 0.01]
                theirs = near[0] if near else None
                row |= {
                    split: point[split],
                    f"{split}_paper": theirs,
                    f"{split}_difference": difference(point[split], theirs),
                }
            rows.append(row)
    return rows


def difference(ours: float | None, theirs: float | None) -> float | None:
    return None if ours is None or theirs is None else ours - theirs


def claims(bounds: list[Result], evidence: list[Result]) -> list[dict[str, Any]]:
    """What the paper says, and whether our runs bear it out: ``claim``, ``holds``, ``numbers``."""
    found = []
    for row in table_2(bounds):
        tolerance = TOLERANCE[row["panel"].split("-")[0]]
        if row["algorithm"] == "aevb" and row["test_difference"] is not None and row["log10_samples"] == 7:
            found.append(
                {
                    "claim": f"{row['panel']}, {row['binarize']}: AEVB's test bound at 10^7 within {tolerance:g} "
                    "of the paper's",
                    "holds": abs(row["test_difference"]) <= tolerance,
                    "numbers": f"{row['test']:.1f}, paper {row['test_paper']:.1f}: {row['test_difference']:+.1f}",
                }
            )
    for ours, other in pairs(bounds, "aevb", "wake-sleep"):
        curve, against = measured(ours, "test"), measured(other, "test")
        end = min(max(curve), max(against))
        gaps = {
            p: at(curve, p) - at(against, p)
            for p in {*curve, *against}
            if end - 1 <= p <= end and None not in (at(curve, p), at(against, p))
        }
        if gaps:
            found.append(
                {
                    "claim": f"{ours['settings']['panel']}, {ours['settings']['binarize']}: wake-sleep below AEVB at "
                    f"the same number of samples, 10^{min(gaps):.3g} to 10^{max(gaps):.3g}",
                    "holds": min(gaps.values()) > 0,
                    "numbers": f"AEVB − wake-sleep from {min(gaps.values()):+.1f} to {max(gaps.values()):+.1f}",
                }
            )
    found += superfluous_dimensions(bounds)
    for panel in sorted({panel_of(result) for result in evidence}):
        found += order_of_evidence([result for result in evidence if panel_of(result) == panel])
    return found


def superfluous_dimensions(bounds: list[Result]) -> list[dict[str, Any]]:
    """Nz = 200 no worse than Nz = 20 by more than 1.5 nats, for each way of making x."""
    curves = {panel_of(r): measured(r, "test") for r in bounds if r["settings"]["algorithm"] == "aevb"}
    found = []
    for (panel, binarize), few in curves.items():
        many = curves.get(("mnist-200", binarize))
        if panel == "mnist-20" and many:
            end = min(max(few), max(many))
            values = [until(curve, end)[1] for curve in (many, few)]
            found.append(
                {
                    "claim": f"{binarize}: superfluous dimensions do not overfit: mnist-200 no worse than mnist-20 by "
                    f"over 1.5, at 10^{end:.3g}",
                    "holds": values[0] > values[1] - 1.5,
                    "numbers": f"{values[0]:.1f} and {values[1]:.1f}",
                }
            )
    return found


def order_of_evidence(results: list[Result]) -> list[dict[str, Any]]:
    """Figure 3: who is above whom where the shortest run ends, on test and training images."""
    images, binarize = results[0]["panel"]["images"], results[0]["settings"]["binarize"]
    last = {result["settings"]["algorithm"]: result["points"][-1] for result in results}
    end = min(max(measured(result, "test")) for result in results)
    panel = f"N = {images}, {binarize}"
    found = []
    for name, check in ((name, point["check"]) for name, point in last.items() if "check" in point):
        annealed = check["annealed"]["log_px"]
        found.append(
            {
                "claim": f"{panel}, {NAMES[name]}: annealing finds the same log p(x) (1 nat)",
                "numbers": f"{annealed:.2f} and {check['marginal']:.2f} ({check['annealed']['images']} images)",
                "holds": abs(annealed - check["marginal"]) < 1,
            }
        )
    for split in ("test", "train"):
        ends = {result["settings"]["algorithm"]: until(measured(result, split), end) for result in results}
        values = {name: value for name, (_, value) in ends.items()}
        numbers = ", ".join(f"{NAMES[name]} {value:.1f} (10^{place:.3g})" for name, (place, value) in ends.items())
        if {"aevb", "wake-sleep"} <= set(values):
            found.append(
                {
                    "claim": f"{panel}, {split}: AEVB above wake-sleep",
                    "numbers": numbers,
                    "holds": values["aevb"] > values["wake-sleep"],
                }
            )
        if {"aevb", "wake-sleep", "mcem"} <= set(values):
            small = images <= 1000
            claim = "Monte Carlo EM close to AEVB (5 nats)" if small else "Monte Carlo EM far behind (10 nats)"
            behind = values["aevb"] - values["mcem"]
            found.append(
                {
                    "claim": f"{panel}, {split}: {claim}",
                    "numbers": numbers,
                    "holds": abs(behind) < 5 if small else behind > 10,
                }
            )
    return found


def pairs(results: list[Result], first: str, second: str) -> Iterable[tuple[Result, Result]]:
    """Results of two algorithms in the same panel on x made the same way."""
    by_key = {(*panel_of(r), r["settings"]["algorithm"]): r for r in results}
    for (panel, binarize, algorithm), result in by_key.items():
        if algorithm == first and (panel, binarize, second) in by_key:
            yield result, by_key[panel, binarize, second]


def in_words(tables: dict[str, Any], results: dict[str, Result]) -> str:
    def cells(row: dict[str, Any], split: str) -> str:
        numbers = ((row[split], ".1f"), (row[f"{split}_paper"], ".1f"), (row[f"{split}_difference"], "+.1f"))
        return " ".join(f"{'' if number is None else format(number, kind):>8}" for number, kind in numbers)

    lines = []
    heading = f"{'test':>8} {'paper':>8} {'differs':>8}  {'train':>8} {'paper':>8} {'differs':>8}"
    if tables["figure_2"]:
        lines += ["Bound after so many samples (figure 2), nats per image", f"{'':<36} {'samples':>8} {heading}"]
    for row in tables["figure_2"]:
        name = f"{row['panel']} {row['algorithm']}{'' if row['binarize'] == 'dynamic' else ' ' + row['binarize']}"
        lines.append(f"{name:<36} 10^{row['log10_samples']:<5.4g} {cells(row, 'test')}  {cells(row, 'train')}")
    if tables["figure_3"]:
        lines += ["", "log p(x) after so many samples (figure 3), nats per image", f"{'':<36} {'samples':>8} {heading}"]
    for row in tables["figure_3"]:
        name = f"N = {row['images']} {row['algorithm']}{'' if row['binarize'] == 'dynamic' else ' ' + row['binarize']}"
        lines.append(f"{name:<36} {row['samples']:>8.1e} {cells(row, 'test')}  {cells(row, 'train')}")
    lines += ["", *(f"{'yes ' if c['holds'] else 'MISS'} {c['claim']}: {c['numbers']}" for c in tables["claims"])]
    lines += ["", "runs: samples, step of Adagrad, seconds"]
    for name, result in sorted(results.items(), key=lambda item: order_of(item[1])):
        run = result["settings"]
        lines.append(
            f"{name:<28} {run['samples']:>10.1e} {result['step']:>6g} {result['seconds']:>6.0f}   "
            f"{run['estimator']}, seed {run['seed']}"
        )
    return "\n".join(lines)


def figure_2(results: list[Result]) -> Figure | None:
    """A panel for each data set and D: lines are ours, points the paper's; full and filled: test, else training."""
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
    """What the last decade and a half of either spans, with a margin: the first steps would dwarf the rest."""
    curves = [measured(r, split) for r in shown for split in ("test", "train")]
    end = max(max(c) for c in curves)
    curves += [values for key, values in paper.items() if key[:2] == (dataset, latent)]
    values = [y for c in curves for x, y in c.items() if end - 1.3 <= x <= end + 0.01]
    margin = 0.06 * (max(values) - min(values)) + 1e-6
    return min(values) - margin, max(values) + margin


def figure_3(results: list[Result]) -> Figure | None:
    """A panel for each number of training images: log p(x) against samples seen."""
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
    """Our curves of a panel; those of grey levels paler."""
    for result in results:
        colour, grey = COLOUR[result["settings"]["algorithm"]], result["settings"]["binarize"] == "intensity"
        for split, style in (("test", "-"), ("train", "--")):
            points = [(point["samples"], point[split]) for point in result["points"]]
            axes.plot(*zip(*points), style, color=colour, alpha=0.45 if grey else 1.0, linewidth=1.4)


def legend(figure: Figure, results: list[Result], shown: tuple[str, ...], panels: int) -> None:
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
    """Manifolds of the runs with D = 2, and random samples for D = 2, 5, 10, 20."""
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
    """Grids of images (rows, columns, C, H, W), each under its name, four in a row."""
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
