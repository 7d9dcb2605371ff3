"""The report: all runs in a folder, gathered and ranked, as a table, numbers and figures."""

import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.likelihoods.families import FAMILIES, RUNS, SHARED_SETTINGS
from experiments.likelihoods.figures import in_panels, in_rows
from experiments.likelihoods.measurement import PROBE
from pyro_vae.runs import provenance, save_figure, write_json
from pyro_vae.runs.measurement import NEIGHBOURS
from pyro_vae.saved import METRICS

YARDSTICKS = ("knn_accuracy", "linear_probe_accuracy", "mse", "active_units", "training_seconds")


def report(out: Path) -> str:
    """Return the table of all runs in a folder; write table, numbers and figures there."""
    runs = gather(out / RUNS)
    families = {name: summary(entries) for name, entries in runs.items()}
    for rank, name in enumerate(ranking(families), start=1):
        families[name]["rank"] = rank
    first = next(iter(runs.values()))[0]
    common = {
        "settings": {name: first["settings"][name] for name in SHARED_SETTINGS},
        "measurement": first["measurement"],
        "dataset": first["dataset"],
    }
    text = table(families, common)
    (out / "likelihoods.txt").write_text(text + "\n", encoding="utf-8")
    save_figure(out / "likelihoods.png", in_panels({name: families[name] for name in in_order(families)}, common))
    save_figure(out / "likelihood_pictures.png", in_rows(out / RUNS, runs))
    write_json(
        out / "likelihoods.json",
        {
            **common,
            "versions": provenance(),
            "families": families,
            "runs": [entry for entries in runs.values() for entry in entries],
        },
    )
    return text


def gather(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Return all runs by family, in the order of FAMILIES and seeds; ValueError if their settings differ."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for name in FAMILIES:
        files = folder.glob(f"{name}-seed*/{METRICS}")
        entries = sorted((json.loads(file.read_text()) for file in files), key=lambda run: run["settings"]["seed"])
        if entries:
            runs[name] = entries
    if not runs:
        raise ValueError(f"{folder} holds no runs; train some, without --report")
    everything = [entry for entries in runs.values() for entry in entries]
    for entry in everything:
        for part, names in (
            ("settings", SHARED_SETTINGS),
            ("measurement", ("particles", "images")),
            ("dataset", ("name", "train", "test")),
        ):
            for name in names:
                values = [other[part][name] for other in (everything[0], entry)]
                if values[0] != values[1]:
                    raise ValueError(
                        f"{folder} holds runs with {part} {name} = {values[0]} and {values[1]}; they do "
                        "not compare, move one kind elsewhere"
                    )
    return runs


def scores(results: dict[str, Any]) -> dict[str, Any]:
    """Return the bounds of a run in the unit of its family."""
    return results["bits_per_dim"] or results["nats"]


def unit(results: dict[str, Any]) -> str:
    """Return the unit of a run's bounds."""
    return "bits/dim" if results["bits_per_dim"] else "nats"


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return one family over its seeds."""
    finished = [run["results"] for run in runs if not run["failed"]]
    known = {
        "label": FAMILIES[runs[0]["family"]].label,
        "rank": None,
        "seeds": [run["settings"]["seed"] for run in runs if not run["failed"]],
        "failed": {str(run["settings"]["seed"]): run["failed"] for run in runs if run["failed"]},
        "left_out": {
            str(run["settings"]["seed"]): run["left_out"] for run in runs if run.get("left_out") and not run["failed"]
        },
    }
    if not finished:
        return known
    if "clip" in finished[0]:
        known["label"] += f", clip {finished[0]['clip']:g}"
    facts = ("min_log_scale", "clip")
    return {
        **known,
        "unit": unit(finished[0]),
        **{bound: over_seeds([scores(run)[bound] for run in finished]) for bound in ("bound", "log_px")},
        "least": (finished[0]["bits_per_dim"] or {}).get("least"),
        **{name: spread([run[name] for run in finished]) for name in YARDSTICKS},
        **{name: finished[0][name] for name in facts if name in finished[0]},
        **(
            {"share_of_scales_at_bound": spread([run["share_of_scales_at_bound"] for run in finished])}
            if "share_of_scales_at_bound" in finished[0]
            else {}
        ),
    }


def over_seeds(estimates: list[dict[str, Any]]) -> dict[str, Any]:
    """Return mean and standard deviation over seeds, and the standard error over test images.

    All seeds see the same test images, so more seeds do not make this error smaller: it is their average.
    """
    errors = [estimate["standard_error"] for estimate in estimates]
    return {
        **spread([estimate["mean"] for estimate in estimates]),
        "standard_error": None if None in errors else statistics.fmean(errors),
        "images": estimates[0]["images"],
    }


def spread(values: list[float | None]) -> dict[str, Any]:
    """Return mean and standard deviation over seeds; None if a value is unknown."""
    if None in values:
        return {"mean": None, "sd_over_seeds": None, "values": values}
    sd = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "sd_over_seeds": sd, "values": values}


def ranking(families: dict[str, dict[str, Any]]) -> list[str]:
    """Return the families that have bits/dim, the lowest L_K first. Nats of black and white pixels are never ranked."""
    grey = [name for name, family in families.items() if family.get("unit") == "bits/dim"]
    return sorted(grey, key=lambda name: families[name]["log_px"]["mean"])


def in_order(families: dict[str, dict[str, Any]]) -> list[str]:
    """Return the ranked families, then the others."""
    first = ranking(families)
    return first + [name for name in families if name not in first]


def table(families: dict[str, dict[str, Any]], common: dict[str, Any]) -> str:
    """Return the table with its notes."""
    K = common["measurement"]["particles"]
    titles = (
        "",
        "",
        "bits/dim,",
        "bits/dim,",
        "least",
        "nats,",
        "nats,",
        "kNN",
        "linear",
        "squared",
        "active",
        "training",
        "",
    )
    heads = (
        "rank",
        "likelihood",
        "bound",
        f"L_{K}",
        "possible",
        "bound",
        f"L_{K}",
        "accuracy",
        "probe",
        "error",
        "units",
        "seconds",
        "seeds",
    )
    rows = [titles, heads, *(row(families[name]) for name in in_order(families))]
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(cells, widths)).rstrip() for cells in rows]
    return "\n".join([*lines, "", *notes(families, common)])


def row(family: dict[str, Any]) -> tuple[str, ...]:
    """Return the cells of one family."""
    seeds = str(len(family["seeds"]))
    if not family["seeds"]:
        return ("", family["label"], *["-"] * 10, seeds)
    grey = family["unit"] == "bits/dim"
    bounds = tuple(number(family[bound], 3 if grey else 2) for bound in ("bound", "log_px"))
    least = "none" if family["least"] is None else f"{family['least']:g}"
    digits = (3, 3, 4, 1, 0)
    return (
        str(family["rank"] or ""),
        family["label"],
        *((*bounds, least, "", "") if grey else ("", "", "", *bounds)),
        *(number(family[name], places) for name, places in zip(YARDSTICKS, digits)),
        seeds,
    )


def number(value: dict[str, Any], digits: int) -> str:
    """Return mean ± standard error over images (standard deviation over seeds), as far as they are known."""
    if value["mean"] is None:
        return "-"
    error, sd = value.get("standard_error"), value["sd_over_seeds"]
    parts = [f"{value['mean']:.{digits}f}"]
    parts += [f"± {error:.{digits}f}"] if error is not None else []
    parts += [f"({sd:.{digits}f})"] if sd is not None else []
    return " ".join(parts)


def notes(families: dict[str, dict[str, Any]], common: dict[str, Any]) -> Iterator[str]:
    """Yield what a reader of the table must know."""
    settings, sizes, measured = common["settings"], common["dataset"], common["measurement"]
    yield (
        f"{sizes['name']}, {settings['net']} networks, {settings['latent']} latent dimensions, {settings['epochs']} "
        f"epochs of {sizes['train']} images, batches of {settings['batch']}, Adam {settings['lr']:g} "
        f"({settings['schedule']}), the same seeds for every family."
    )
    yield (
        f"Bound: {sizes['test']} test images, one particle; L_{measured['particles']}: the first "
        f"{measured['images']} of them. ± standard error over images, (standard deviation over seeds)."
    )
    yield (
        "Bits/dim: of the mass on the 256 grey levels, lower is better; ranked by "
        f"L_{measured['particles']}. B bins spread their mass evenly over the levels in them, which costs at least "
        "log2(256 / B)."
    )
    yield "Nats per image of black and white pixels, higher is better: other data, so not to be ranked with bits/dim."
    yield (
        f"Probes: {NEIGHBOURS} neighbours and logistic regression, on the codes of {min(PROBE, sizes['train'])} "
        f"training images, tested on {sizes['test']}. Squared error: a pixel's, mean of p(x | code) to g / 255."
    )
    for family in families.values():
        share = family.get("share_of_scales_at_bound")
        if share:
            yield (
                f"{family['label']}: the lower bound {family['min_log_scale']:g} on the log scale holds up "
                f"{share['mean']:.1%} of the scales."
            )
        for seed, reason in family["failed"].items():
            yield f"{family['label']}, seed {seed}: {reason}"
        for seed, names in family["left_out"].items():
            yield from (f"{family['label']}, seed {seed}: left out: {name}: {why}" for name, why in names.items())
    if sizes["note"]:
        yield f"NOTE: {sizes['note']}"
