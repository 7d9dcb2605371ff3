"""Tables and claims of the runs in a folder, ours beside the paper's (Kingma & Welling 2013)."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from experiments.aevb.figures import figure_2, figure_3, figures_4_and_5
from experiments.aevb.published import (
    NAMES,
    Result,
    at,
    key_of,
    measured,
    order_of,
    published_bounds,
    published_evidence,
)
from pyro_vae.runs import beside, save_figure, write_json

TOLERANCE = {"mnist": 2.0, "frey": 40.0}  # nats per image within which a bound counts as the paper's
POSTS = (6.0, 6.5, 7.0, 7.5, 8.0)  # log10 of the samples seen at which tables compare


def gather(out: Path, wanted: Iterable[str] = ()) -> str:
    """Write tables and figures of all runs in the folder beside it; return the tables as text.

    ``wanted``: names of runs that the text lists as missing if they are.
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


def table_2(results: list[Result]) -> list[dict[str, Any]]:
    """Return a row for each run and number of samples: ours, the paper's and the difference, of both splits."""
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
    """Return the panel, and how x is made; runs are compared only if both are equal."""
    return result["settings"]["panel"], result["settings"]["binarize"]


def until(curve: dict[float, float], end: float) -> tuple[float, float]:
    """Return the last point of a curve up to a place, or just beyond it; its first point if all are beyond."""
    place = max((x for x in curve if x <= end + 0.03), default=min(curve))
    return place, curve[place]


def table_3(results: list[Result]) -> list[dict[str, Any]]:
    """Return a row for each run and number of samples: log p(x), ours, the paper's and the difference."""
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
    """Return ours minus theirs; None if one is unknown."""
    return None if ours is None or theirs is None else ours - theirs


def claims(bounds: list[Result], evidence: list[Result]) -> list[dict[str, Any]]:
    """Return what the paper says, and whether our runs agree: ``claim``, ``holds``, ``numbers``."""
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
    """Check that Nz = 200 is no worse than Nz = 20 by more than 1.5 nats, for each way of making x."""
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
    """Check the order of figure 3 where the shortest run ends, on test and training images."""
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
    """Yield results of two algorithms in the same panel on x made the same way."""
    by_key = {(*panel_of(r), r["settings"]["algorithm"]): r for r in results}
    for (panel, binarize, algorithm), result in by_key.items():
        if algorithm == first and (panel, binarize, second) in by_key:
            yield result, by_key[panel, binarize, second]


def in_words(tables: dict[str, Any], results: dict[str, Result]) -> str:
    """Return the tables as text."""

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
