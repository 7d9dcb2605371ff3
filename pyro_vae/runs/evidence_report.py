"""What ``pyro-vae evidence`` shows: the bounds as a table, and as a figure of three panels."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pyro_vae.evidence.results import TRUSTED
from pyro_vae.optional import optional
from pyro_vae.plots import COLOURS, DPI

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

IMPORTANCE, PRIOR, GUIDE, UPPER = COLOURS[9], COLOURS[1], COLOURS[0], COLOURS[4]
STARTS = {"prior": PRIOR, "guide": GUIDE}
OWN, REFITTED, LOCAL = "guide", "refitted guide", "local proposals"  # what importance sampling draws from
PROPOSALS = {REFITTED: COLOURS[2], LOCAL: COLOURS[3]}
SHARE = f"share_pareto_k_above_{TRUSTED}"

Rows = dict[str, list[dict[str, Any]]]  # kind of bound -> a row for each setting


def picture(results: Rows) -> "Figure":
    """Draw three panels against time: importance sampling, annealing, both bounds; those without rows stay empty."""
    figure = optional("matplotlib.figure", "figures").Figure(figsize=(11.5, 3.8), dpi=DPI, layout="constrained")
    ticker = optional("matplotlib.ticker", "figures")
    panels = zip(figure.subplots(1, 3), (draw_importance, draw_annealed, draw_both), results.values())
    for axes, panel, rows in panels:
        if not rows:
            axes.set_axis_off()
            continue
        panel(axes, results)
        axes.set_title(axes.get_title(), fontsize="medium")
        axes.set(xscale="log", xlabel="seconds per image", ylabel="nats per image")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
        axes.margins(0.12)
        axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 3.0)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
    return figure


def draw_importance(axes: "Axes", results: Rows) -> None:
    """Draw the bound by importance sampling for each number of particles, with the share of untrusted images."""
    rows = in_one_precision(results)
    shares = ["" if row[SHARE] is None else f"\n{row[SHARE]:.0%}" for row in rows]
    words = [f"K = {row['num_particles']}{share}" for row, share in zip(rows, shares)]
    draw(axes, rows, "log_px", "monte_carlo_error", "importance sampling", IMPORTANCE, words)
    for name, colour in PROPOSALS.items():
        by_proposal = [entry for entry in results["proposals"] if entry["proposal"] == name]
        if by_proposal:
            words = [f"K = {row['num_particles']}" for row in by_proposal]
            draw(axes, by_proposal, "log_px", "monte_carlo_error", name, colour, words)
    axes.set(title=f"{rows[0]['images']} test images (%: share with k̂ > {TRUSTED})")


def draw_annealed(axes: "Axes", results: Rows) -> None:
    """Draw the annealed bounds for each number of temperatures, and importance sampling of the same images."""
    importance, annealed = in_one_precision(results), results["annealed"][0]["images"]
    for start, colour in STARTS.items():
        rows = [entry for entry in results["annealed"] if entry["start"] == start]
        words = temperatures(rows) if start == "prior" else ()  # they are the same
        draw(axes, rows, "log_px", "monte_carlo_error", f"annealed from the {start}", colour, words)
    draw(axes, importance, "log_px_of_annealed_images", None, "importance sampling", IMPORTANCE)
    which = "first" if annealed < importance[-1]["images"] else "same"
    axes.set(title=f"the {which} {annealed} test images")


def draw_both(axes: "Axes", results: Rows) -> None:
    """Draw the lower and the upper bound for each number of temperatures, and those by importance sampling."""
    rows = results["bidirectional"]
    draw(axes, rows, "upper", None, "upper bound", UPPER, temperatures(rows))
    draw(axes, rows, "lower", None, "lower bound", GUIDE)
    for row in results["certificates"]:
        name, middle, reach = row["proposal"], (row["lower"] + row["upper"]) / 2, abs(row["gap"]) / 2
        options: dict[str, Any] = {"color": {OWN: IMPORTANCE, **PROPOSALS}[name], "marker": "_", "capsize": 3}
        axes.errorbar([row["seconds"] / row["images"]], [middle], yerr=[reach], label=certified(row), **options)
    axes.set(title=f"{rows[-1]['images']} simulated images: gap {rows[-1]['gap']:.2f} nats")


def certified(row: dict[str, Any]) -> str:
    """Return words for the setting of a certificate."""
    return f"{row['proposal']}, K = {row['num_particles']}"


def temperatures(rows: list[dict[str, Any]]) -> list[str]:
    """Return words for the number of temperatures of each row."""
    return [f"T = {row['num_temperatures']}" for row in rows]


def in_one_precision(results: Rows) -> list[dict[str, Any]]:
    """Return the rows of importance sampling but the one that measures the bias of bfloat16."""
    return [row for row in results["importance"] if "bias" not in row]


def draw(
    axes: "Axes",
    rows: list[dict[str, Any]],
    value: str,
    error: str | None,
    label: str,
    colour: str,
    words: Sequence[str] = (),
) -> None:
    """Draw a line of values against time, with two Monte Carlo errors and words at each point, if they are given."""
    bars = [2 * (row[error] or 0) for row in rows] if error else None
    seconds, values = [row["seconds"] / row["images"] for row in rows], [row[value] for row in rows]
    axes.errorbar(seconds, values, yerr=bars, label=label, color=colour, marker="o", markersize=4, capsize=2)
    style: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "va": "top", "fontsize": "x-small"}
    for word, place in zip(words, zip(seconds, values)):
        axes.annotate(word, place, (0, -6), **style)


def report(results: Rows) -> str:
    """Return the rows as a table."""
    heads = f"{'nats per image':>15} {'± images':>9} {'± Monte Carlo':>14} {'images':>7} {'k̂ > 0.7':>8} {'seconds':>8}"
    lines = [f"{'bound':<32} {heads}"]
    named = [(f"importance, K = {r['num_particles']}" + ", bfloat16" * ("bias" in r), r) for r in results["importance"]]
    named += [(f"{r['proposal']}, K = {r['num_particles']}", r) for r in results["proposals"]]
    named += [(f"annealed from {r['start']}, T = {r['num_temperatures']}", r) for r in results["annealed"]]
    for name, r in named:
        errors = ["" if r[key] is None else f"{r[key]:.3f}" for key in ("standard_error", "monte_carlo_error")]
        share = "" if r.get(SHARE) is None else f"{r[SHARE]:.1%}"
        lines.append(
            f"{name:<32} {r['log_px']:>15.3f} {errors[0]:>9} {errors[1]:>14} {r['images']:>7,} {share:>8} "
            f"{r['seconds']:>8.0f}"
        )
    for r in results["proposals"][:1]:
        if "refit_seconds" in r:
            lines.append(f"the guide was refitted by {r['refit_epochs']} epochs in {r['refit_seconds']:.0f} seconds")
    for r in results["importance"]:
        if "bias" in r:
            lines.append(
                f"bfloat16 moves it by {r['bias']:+.4f} ± {r['bias_standard_error']:.4f} nats per image, on "
                f"{r['images']} of them"
            )
    best = in_one_precision(results)[-1]
    lines.append(
        f"importance, K = {best['num_particles']}, on the annealed images alone: "
        f"{best['log_px_of_annealed_images']:.3f}"
    )
    if best[SHARE]:
        lines.append(
            f"k̂ > {TRUSTED} for {best[SHARE]:.1%} of the images: importance sampling cannot be trusted there, nor with "
            "more particles; take --local or the annealed bounds, or train a richer guide, such as --guide full-rank"
        )
    both = [(f"T = {r['num_temperatures']}", r) for r in results["bidirectional"]]
    for setting, r in [*both, *((certified(r), r) for r in results["certificates"])]:
        lines.append(
            f"{r['lower']:.3f} ≤ log p(x) ≤ {r['upper']:.3f} on {r['images']} simulated images, gap {r['gap']:.3f} ± "
            f"{r['gap_standard_error']:.3f}, {setting}, {r['seconds']:.0f} seconds"
        )
    return "\n".join(lines)
