"""The answers of the atlas in numbers, and a figure for each question."""

import statistics
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from pyro_vae.plots.figures import new_figure
from pyro_vae.plots.style import COLOURS

REFERENCE = "L^A"
PLAIN = "STL, K = 1"
OF_ONE = {"IWAE": REFERENCE, "DReG": PLAIN}  # with one particle
GROUPS = ("guide", "model")
CONVERGED, GAINS = "converged", "gains"  # the last moment of a training, and the trainings for equal seconds
Cell = dict[str, Any]
Place = tuple[str, str]  # a program and a moment


def measured(cells: Sequence[Cell]) -> list[Cell]:
    """Return the cells in which estimators were drawn."""
    return [cell for cell in cells if cell["moment"] != GAINS]


def of(cells: Sequence[Cell], place: Place) -> list[Cell]:
    """Return the cells of a program and a moment, one for each seed."""
    return [cell for cell in cells if (cell["program"], cell["moment"]) == place]


def value(cell: Cell, name: str, group: str, quantity: str = "variance") -> float | None:
    """Return a number of an estimator in a group of parameters; None where there is none."""
    entry = cell["estimators"].get(name)
    return entry[group][quantity]["value"] if entry and entry[group] else None


def ratio(cell: Cell, name: str, group: str, seconds: bool = False, to: str = REFERENCE) -> float | None:
    """Return the variance, or variance × seconds, of an estimator over that of another."""
    own, other = (value(cell, each, group) for each in (name, to))
    if own is None or not other:
        return None
    times = [cell["estimators"][each]["seconds"] if seconds else 1.0 for each in (name, to)]
    return own * times[0] / (other * times[1])


def minibatch_share(cell: Cell, name: str, group: str) -> float | None:
    """Return the share of the choice of images in all variance of a gradient, from 0 to 1."""
    entry = cell["estimators"].get(name)
    if not entry or not entry[group] or entry[group]["minibatch_variance"] is None:
        return None
    between = max(entry[group]["minibatch_variance"], 0.0)
    return between / (between + entry[group]["variance"]["value"])


def cheapest(cell: Cell) -> tuple[str, float]:
    """Return the estimator of the ELBO with the least variance × seconds of the whole gradient, over that of L^A."""

    def cost(name: str) -> float:
        entry = cell["estimators"][name]
        return sum(entry[group]["variance"]["value"] for group in GROUPS if entry[group]) * entry["seconds"]

    unbiased = [n for n, e in cell["estimators"].items() if e["estimates"] == "ELBO" and n not in BIASED]
    best = min(unbiased, key=cost)
    return best, cost(best) / cost(REFERENCE)


BIASED = ("straight-through", "ReinMax")


def line(cell: Cell) -> str:
    """Return the numbers of a cell as a line."""
    name, cost = cheapest(cell)
    wrong = f", {len(cell['disagreements'])} DISAGREE" if cell["disagreements"] else ""
    return f"{len(cell['estimators'])} estimators, least variance × seconds {name}, {cost:.2g} times that of L^A{wrong}"


def line_of_gains(cell: Cell) -> str:
    """Return the bounds that the trainings for equal seconds have reached as a line."""
    reached = ", ".join(f"{name} {run['evidence']['log_px']:.2f}" for name, run in cell["trained"].items())
    return f"L_64 of validation images after {cell['seconds']:g} s by each: {reached}"


def table(cells: Sequence[Cell]) -> str:
    """Return the answers as text; each number is a mean over seeds, with their least and largest in brackets."""
    lines = [f"{'program, moment':28}{'seeds':>6}  L^B/L^A, guide     STL/L^A, guide     minibatch share of L^A"]
    for place in places(measured(cells)):
        found = of(cells, place)
        answers = [spread([ratio(cell, name, "guide") for cell in found]) for name in ("L^B", PLAIN)]
        share = spread([minibatch_share(cell, REFERENCE, "guide") for cell in found])
        lines.append(f"{', '.join(place):28}{len(found):>6}  {answers[0]:18} {answers[1]:18} {share}")
        lines += [f"  seed {cell['seed']}: {line(cell)}" for cell in found]
    lines += [f"{c['program']}, seed {c['seed']}: {line_of_gains(c)}" for c in cells if c["moment"] == GAINS]
    return "\n".join(lines)


def spread(values: Sequence[float | None], digits: int = 2) -> str:
    """Return the mean with the least and the largest, each with so many digits.

    >>> spread([0.5, 1.5]), spread([0.5]), spread([None])
    ('1 [0.5, 1.5]', '0.5', '–')
    """
    known = [each for each in values if each is not None]
    if not known:
        return "–"
    ends = f" [{min(known):.{digits}g}, {max(known):.{digits}g}]" if len(known) > 1 else ""
    return f"{statistics.fmean(known):.{digits}g}{ends}"


def places(cells: Sequence[Cell]) -> list[Place]:
    """Return programs and moments in their order."""

    def order(place: Place) -> tuple[str, float]:
        return place[0], float("inf") if place[1] == CONVERGED else float(place[1].split()[0])

    return sorted({(cell["program"], cell["moment"]) for cell in cells}, key=order)


def moments(cells: Sequence[Cell]) -> list[str]:
    """Return the moments of some cells in their order."""
    return [moment for _, moment in places([{**cell, "program": ""} for cell in cells])]


def figures(cells: Sequence[Cell]) -> dict[str, Figure]:
    """Return a figure for each question, by its name."""
    drawn, trained = measured(cells), [cell for cell in cells if cell["moment"] == GAINS]
    found = {}
    if drawn:
        found = {"variance": by_estimator(drawn, False), "cost": by_estimator(drawn, True),
                 "signal": signal(drawn), "minibatch": minibatch(drawn)}  # fmt: skip
    return found | ({"gains": gains(trained)} if trained else {})


def by_estimator(cells: Sequence[Cell], seconds: bool) -> Figure:
    """Draw the variance of each estimator over that of L^A, at the last moment of each program."""
    programs = sorted({cell["program"] for cell in cells})
    names = list(dict.fromkeys(name for cell in cells for name in cell["estimators"]))
    figure = new_figure(2.6 * len(programs) + 1.5, 0.2 * len(names) + 1.2)
    axes = figure.subplots(1, len(programs), sharey=True, squeeze=False)[0]
    for ax, program in zip(axes, programs):
        last = moments([cell for cell in cells if cell["program"] == program])[-1]
        found = of(cells, (program, last))
        for group, colour, marker in zip(GROUPS, (COLOURS[0], COLOURS[4]), "os"):
            points = [(r, i) for i, n in enumerate(names) for c in found if (r := ratio(c, n, group, seconds))]
            ax.plot(*zip(*points), marker, color=colour, ms=4, label=group) if points else None
        ax.axvline(1.0, color="0.6", lw=0.8)
        ax.set(xscale="log", title=f"{program},\n{last}", xlim=(1e-6, 1e5))
        ax.grid(axis="y", lw=0.3)
    axes[0].set_yticks(range(len(names)), names, fontsize=7)
    axes[0].invert_yaxis()
    axes[-1].legend(fontsize=7)
    figure.supxlabel(f"variance{' × seconds' * seconds} of the gradient, L^A = 1")
    return figure


def signal(cells: Sequence[Cell]) -> Figure:
    """Draw the guide's signal-to-noise ratio against K, for each program with L_K, by moment."""
    programs = sorted({cell["program"] for cell in cells if curve([cell], "IWAE")})
    drawn = [cell for cell in cells if cell["program"] in programs]
    figure = new_figure(3.0 * max(1, len(programs)) + 1.5, 3.2)
    for ax, program in zip(figure.subplots(1, max(1, len(programs)), squeeze=False)[0], programs):
        for moment, colour in zip(moments(drawn), COLOURS):
            found = of(cells, (program, moment))
            for kind, style in {"IWAE": "-o", "DReG": "--s"}.items():
                ax.plot(
                    *zip(*curve(found, kind)), style, color=colour, ms=4, label=f"{kind}, {moment}"
                ) if found else None
        ax.set(xscale="log", title=program, xlabel="particles K")
        numbers = sorted({K for cell in drawn for K, _ in curve([cell], "IWAE")})
        ax.set_xticks(numbers, map(str, numbers))
        ax.minorticks_off()
    figure.axes[0].set_ylabel("SNR of the guide's gradient")
    known = {label: line for ax in figure.axes for line, label in zip(*ax.get_legend_handles_labels())}
    figure.legend(known.values(), known.keys(), fontsize=6, loc="outside right upper")
    return figure


def curve(cells: Sequence[Cell], kind: str) -> list[tuple[int, float]]:
    """Return K and the mean SNR over seeds of "IWAE" or "DReG", in the order of K; with K = 1 they are L^A and STL."""
    found: dict[int, list[float]] = {}
    for cell in cells:
        if not any(name.startswith(f"{kind}, ") for name in cell["estimators"]):
            continue
        for name, entry in cell["estimators"].items():
            snr = value(cell, name, "guide", "snr")
            if snr is not None and (name == OF_ONE[kind] or name.startswith(f"{kind}, ")):
                found.setdefault(entry["particles"], []).append(snr)
    return sorted((K, statistics.fmean(values)) for K, values in found.items())


def gains(cells: Sequence[Cell]) -> Figure:
    """Draw the bounds after equal seconds of training by each estimator, one point a seed."""
    programs = sorted({cell["program"] for cell in cells})
    figure = new_figure(3.4 * len(programs), 2.8)
    for ax, program in zip(figure.subplots(1, len(programs), squeeze=False)[0], programs):
        found = [cell for cell in cells if cell["program"] == program]
        names = list(dict.fromkeys(name for cell in found for name in cell["trained"]))
        for cell, colour in zip(found, COLOURS):
            runs = cell["trained"]
            ax.plot([runs[n]["evidence"]["log_px"] for n in runs], [names.index(n) for n in runs], "o",
                    color=colour, ms=4, label=f"seed {cell['seed']}")  # fmt: skip
        ax.set_yticks(range(len(names)), names, fontsize=7)
        ax.set(title=program, xlabel=f"L_64 after {found[0]['seconds']:g} s [nats per image]")
        ax.invert_yaxis()
        ax.grid(axis="y", lw=0.3)
    figure.axes[0].legend(fontsize=6)
    return figure


def minibatch(cells: Sequence[Cell]) -> Figure:
    """Draw the share of the choice of images in all variance, against the epochs, for L^A and STL."""
    figure = new_figure(7.0, 3.2)
    for ax, group in zip(figure.subplots(1, 2, sharey=True), GROUPS):
        for program, colour in zip(sorted({cell["program"] for cell in cells}), COLOURS):
            for name, style in ((REFERENCE, "-o"), (PLAIN, "--s")):
                points = [(c["epochs"], s) for c in cells if c["program"] == program
                          and (s := minibatch_share(c, name, group)) is not None]  # fmt: skip
                if points:
                    ax.plot(*zip(*sorted(points)), style, color=colour, ms=4, label=f"{program}, {name}")
        ax.set(xlabel="epochs", title=f"{group}'s gradient", ylim=(0, 1), xscale="symlog")
        ax.set_xlim(left=-0.3)
    figure.axes[0].set_ylabel("share of the choice of images")
    figure.axes[0].legend(fontsize=6)
    return figure
