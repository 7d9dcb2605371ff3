"""The table and the picture of the errors, beside published ones."""

from typing import Any

from matplotlib.figure import Figure

from pyro_vae.plots import DPI, GREY, TRAIN, VALID
from pyro_vae.runs import estimate, mean

# Test errors in %, with their standard deviations over ten draws of the labels: Kingma et al. (2014), table 1.
PUBLISHED = {
    "M2": {100: (11.97, 1.71), 600: (4.94, 0.13), 1000: (3.60, 0.56), 3000: (3.92, 0.63)},
    "MLP on the labels alone": {100: (25.81, None), 600: (11.44, None), 1000: (10.70, None), 3000: (6.04, None)},
}


def tabulate(parts: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Return the mean errors in % over the seeds for each number of labels, in increasing order."""
    table = {}
    for count in sorted({part["labels"] for part in parts}):
        runs = sorted((part for part in parts if part["labels"] == count), key=lambda part: part["seed"])
        table[count] = {
            "seeds": [part["seed"] for part in runs],
            **{
                f"{who}_{split}": mean([100 * part[who][split] for part in runs])
                for who in ("m2", "alone")
                for split in ("test", "valid")
            },
            "bound": mean([part["bound"]["bound"] for part in runs]),
        }
    return table


def in_words(table: dict[int, dict[str, Any]]) -> str:
    """Return the table as text."""
    lines = [f"{'labels':>6} {'M2':>14} {'classifier alone':>17} {'M2, published':>14}   test errors in %"]
    for count, row in table.items():
        ours = [estimate(row[f"{who}_test"]["mean"], row[f"{who}_test"]["standard_error"]) for who in ("m2", "alone")]
        published = PUBLISHED["M2"].get(count)
        theirs = "" if published is None else f"{published[0]:.2f}"
        lines.append(f"{count:>6} {ours[0]:>14} {ours[1]:>17} {theirs:>14}   seeds {' '.join(map(str, row['seeds']))}")
    return "\n".join([*lines, "± standard error over the seeds"])


def picture(table: dict[int, dict[str, Any]]) -> Figure:
    """Draw the errors against the number of labels, with the published ones."""
    figure = Figure(figsize=(6, 4), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    for who, colour, label in (("alone", TRAIN, "classifier alone"), ("m2", VALID, "M2")):
        rows = {count: row[f"{who}_test"] for count, row in table.items()}
        errors = [row["standard_error"] or 0 for row in rows.values()]
        axes.errorbar(list(rows), [row["mean"] for row in rows.values()], errors, None, "o-", color=colour, label=label)
    for line, (name, points) in zip(("--", ":"), PUBLISHED.items()):
        axes.plot(list(points), [point[0] for point in points.values()], line, color=GREY, label=f"{name} (2014)")
    axes.set_xscale("log")
    axes.set_yscale("log")
    ticks = sorted({*table, *PUBLISHED["M2"]})
    axes.set_xticks(ticks, [f"{count:,}" for count in ticks], minor=False)
    axes.set_yticks([2, 5, 10, 20], ["2", "5", "10", "20"])
    axes.minorticks_off()
    axes.set_xlabel("labels")
    axes.set_ylabel("test error (%)")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize="small")
    return figure
