"""What ``pyro-vae evidence`` shows: the bounds as a table, and as a figure of three panels."""

from typing import TYPE_CHECKING, Any

from pyro_vae.evidence.results import TRUSTED
from pyro_vae.optional import optional
from pyro_vae.plots import COLOURS, DPI

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

IMPORTANCE, PRIOR, GUIDE, UPPER = COLOURS[9], COLOURS[1], COLOURS[0], COLOURS[4]
STARTS = {"prior": PRIOR, "guide": GUIDE}
SHARE = f"share_pareto_k_above_{TRUSTED}"

Rows = dict[str, list[dict[str, Any]]]  # kind of bound -> a row for each setting


def picture(results: Rows) -> "Figure":
    """Draw three panels: importance sampling, annealing, both bounds; those without rows stay empty."""
    figure = optional("matplotlib.figure", "figures").Figure(figsize=(11.5, 3.8), dpi=DPI, layout="constrained")
    panels = zip(figure.subplots(1, 3), (draw_importance, draw_annealed, draw_both), results.values())
    for axes, panel, rows in panels:
        if not rows:
            axes.set_axis_off()
            continue
        panel(axes, results)
        axes.set_title(axes.get_title(), fontsize="medium")
        axes.set_xscale("log")
        axes.set_ylabel("nats per image")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
        axes.margins(y=0.15)
    return figure


def draw_importance(axes: "Axes", results: Rows) -> None:
    """Draw the bound by importance sampling against the number of particles, with the share of untrusted images."""
    importance = in_one_precision(results)
    draw(axes, importance, "num_particles", "log_px", "monte_carlo_error", "importance sampling", IMPORTANCE)
    for entry in importance:
        if entry[SHARE] is not None:
            place = entry["num_particles"], entry["log_px"]
            words: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "fontsize": "x-small"}
            axes.annotate(f"{entry[SHARE]:.0%}", place, (0, -14), **words)
    axes.set(xlabel="particles K", title=f"{importance[0]['images']} test images (%: share with k̂ > {TRUSTED})")


def draw_annealed(axes: "Axes", results: Rows) -> None:
    """Draw the annealed bounds against the number of temperatures, and the best bound by importance sampling."""
    for start, colour in STARTS.items():
        rows = [entry for entry in results["annealed"] if entry["start"] == start]
        draw(axes, rows, "num_temperatures", "log_px", "monte_carlo_error", f"annealed from the {start}", colour)
    best, annealed = in_one_precision(results)[-1], results["annealed"][0]["images"]
    label = f"importance, K = {best['num_particles']}"
    axes.axhline(best["log_px_of_annealed_images"], color=IMPORTANCE, linestyle="--", label=label)
    which = "first" if annealed < best["images"] else "same"
    axes.set(xlabel="temperatures T", title=f"the {which} {annealed} test images")


def draw_both(axes: "Axes", results: Rows) -> None:
    """Draw the lower and the upper bound against the number of temperatures."""
    for name, colour in (("upper", UPPER), ("lower", GUIDE)):
        draw(axes, results["bidirectional"], "num_temperatures", name, None, f"{name} bound", colour)
    last = results["bidirectional"][-1]
    axes.set(xlabel="temperatures T", title=f"{last['images']} simulated images: gap {last['gap']:.2f} nats")


def in_one_precision(results: Rows) -> list[dict[str, Any]]:
    """Return the rows of importance sampling but the one that measures the bias of bfloat16."""
    return [row for row in results["importance"] if "bias" not in row]


def draw(axes: "Axes", rows: list[dict], at: str, value: str, error: str | None, label: str, colour: str) -> None:
    """Draw a line of values, with two Monte Carlo errors if they are given."""
    bars = [2 * (entry[error] or 0) for entry in rows] if error else None
    places, values = [entry[at] for entry in rows], [entry[value] for entry in rows]
    axes.errorbar(places, values, yerr=bars, label=label, color=colour, marker="o", markersize=4, capsize=2)


def report(results: Rows) -> str:
    """Return the rows as a table."""
    lines = [f"{'bound':<32} {'nats per image':>15} {'± Monte Carlo':>14} {'k̂ > 0.7':>8} {'seconds':>8}"]
    named = [(f"importance, K = {r['num_particles']}" + ", bfloat16" * ("bias" in r), r) for r in results["importance"]]
    named += [(f"annealed from {r['start']}, T = {r['num_temperatures']}", r) for r in results["annealed"]]
    for name, r in named:
        error = "" if r["monte_carlo_error"] is None else f"{r['monte_carlo_error']:.3f}"
        share = r.get(SHARE)
        lines.append(
            f"{name:<32} {r['log_px']:>15.3f} {error:>14} {'' if share is None else format(share, '.1%'):>8} "
            f"{r['seconds']:>8.0f}"
        )
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
            "more particles; take the annealed bounds, or train a richer guide, such as --guide full-rank"
        )
    for r in results["bidirectional"]:
        lines.append(
            f"{r['lower']:.3f} ≤ log p(x) ≤ {r['upper']:.3f} on {r['images']} simulated images, gap {r['gap']:.3f} ± "
            f"{r['gap_standard_error']:.3f}, T = {r['num_temperatures']}, {r['seconds']:.0f} seconds"
        )
    return "\n".join(lines)
