"""Labels of points: their names, colours and marks, and the legend that explains them."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgba
from matplotlib.lines import Line2D
from torch import Tensor

from pyro_vae.plots.style import COLOURS, UNKNOWN

MANY = colormaps["turbo"]  # for more labels than there are COLOURS
MARKERS = "o^sDv"  # with more labels than COLOURS, neighbours in MANY differ in these
DASHES = ("-", "--", ":", "-.", (0, (1, 3)))
LEGEND, COLUMN = 60, 20  # the most labels in a legend, and in one column of it


class Classes:
    """What each of N labels looks like. The label −1 is unknown; it has a grey of its own, and lies below the others.

    Up to ten labels have fixed colours; the digits 0 to 9 keep theirs where some are absent. More labels have the
    colours of a map, and differ also in their marks.

    Args:
        labels: (N,), whole numbers or words.
        count: N.
        classes: the names of the labels 0, 1, …

    >>> groups = Classes(["dog", "cat", "dog"], 3)
    >>> groups.names, len(groups.colours)
    (['cat', 'dog'], 2)
    """

    def __init__(self, labels: Any, count: int, classes: Sequence[str] = ()):
        self.labels = _labels(labels, count)
        self.unknown = self.labels == -1 if self.labels.dtype.kind == "i" else np.zeros(count, bool)
        found = np.unique(self.labels[~self.unknown])
        self.places = np.searchsorted(found, self.labels)  # of the known ones
        positions, total = np.arange(len(found)), len(found)
        if classes:
            _check_named(found, classes)
            positions, total = found, len(classes)
        elif total and self.labels.dtype.kind == "i" and found[0] >= 0 and found[-1] < len(COLOURS):
            positions, total = found, len(COLOURS)
        self.names = [plain(str(classes[label] if classes else label)) for label in found]
        few, self.bar = total <= len(COLOURS), len(found) > LEGEND
        colours = [COLOURS[i] for i in positions] if few else MANY(positions / max(1, total - 1))
        self.colours = np.array([to_rgba(colour) for colour in colours]).reshape(-1, 4)
        self.kinds = (positions % len(MARKERS)) * (not few and not self.bar)  # numbers of marks and dashes

    @property
    def columns(self) -> int:
        """The number of columns of the legend."""
        return 1 if self.bar else math.ceil((len(self.names) + self.unknown.any()) / COLUMN)

    def together(self) -> Iterator[tuple[Any, str, np.ndarray]]:
        """Yield colours, a marker and the rows that have it, in the order in which they are drawn."""
        if self.unknown.any():
            yield UNKNOWN, "x", self.unknown
        for kind in np.unique(self.kinds):
            rows = ~self.unknown & np.append(self.kinds == kind, False)[self.places]
            yield self.colours[self.places[rows]], MARKERS[kind], rows

    def each(self) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
        """Yield the look of a line and the rows of each label."""
        if self.unknown.any():
            yield {"color": UNKNOWN}, self.unknown
        for place, colour in enumerate(self.colours):
            yield {"color": colour, "linestyle": DASHES[self.kinds[place]]}, (self.places == place) & ~self.unknown

    def explain(self, ax: Axes, heading: str) -> None:
        """Add a legend to the right of the axes, or a colour bar if there are too many labels for one."""
        if self.bar:
            last = len(self.names) - 1
            heading += ", × unknown" * bool(self.unknown.any())
            bar = ax.figure.colorbar(ScalarMappable(Normalize(0, last), MANY), ax=ax, label=heading)
            places = np.linspace(0, last, 9).round().astype(int)
            bar.set_ticks(list(places), labels=[self.names[place] for place in places])
            return
        looks = [(name, self.colours[i], MARKERS[self.kinds[i]]) for i, name in enumerate(self.names)]
        looks += [("unknown", to_rgba(UNKNOWN), "x")] * bool(self.unknown.any())
        marks = [Line2D([], [], color=colour, marker=mark, linestyle="", label=" ") for _, colour, mark in looks]
        drawn = ax.legend(
            handles=marks, title=heading, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False,
            ncols=max(1, self.columns), handletextpad=0.2, columnspacing=0.8,
        )  # fmt: skip
        for text, (name, *_) in zip(drawn.get_texts(), looks):
            text.set_text(name)  # as a label matplotlib 3.8 would leave out what begins with an underscore


def plain(name: str) -> str:
    r"""Return a name of the data as matplotlib shows it as it is, and not as mathematics between two signs of dollar.

    >>> plain("$5 to $10")
    '\\$5 to \\$10'
    """
    return name.replace("$", r"\$")


def _labels(labels: Any, count: int) -> np.ndarray:
    """Return labels (N,) as int64 or strings."""
    found = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if found.shape != (count,):
        raise ValueError(f"labels: wanted ({count},), one for each code, got {found.shape}; write labels[:len(codes)]")
    if found.dtype.kind in "biu":
        return found.astype(np.int64)
    if found.dtype.kind in "UO" and all(isinstance(label, str) for label in found.tolist()):
        return found.astype(str)
    cure = "labels.long()" if isinstance(labels, Tensor) else "numpy.asarray(labels).astype(int)"
    kind = labels.dtype if isinstance(labels, Tensor) else found.dtype
    raise ValueError(f"labels: wanted whole numbers or words, got {kind}; write {cure}")


def _check_named(found: np.ndarray, classes: Sequence[str]) -> None:
    if found.dtype.kind != "i":
        raise ValueError("classes: wanted none, as the labels are words already; leave classes away")
    if len(found) and not 0 <= found[0] <= found[-1] < len(classes):
        wrong = found[0] if found[0] < 0 else found[-1]
        raise ValueError(
            f"labels: wanted −1 (unknown) or 0 to {len(classes) - 1}, a number for each of the {len(classes)} classes, "
            f"got {wrong}; give all classes a name"
        )
