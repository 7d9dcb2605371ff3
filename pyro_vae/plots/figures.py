"""The one place that makes figures. They show themselves in notebooks, and pyplot does not know them."""

import io
from collections.abc import Sequence
from typing import Any, Literal

import matplotlib.figure
from matplotlib.axes import Axes

from pyro_vae.plots.style import DPI

SHOWN = 96  # pixels of a page for an inch of a figure; the picture itself has ``DPI``


class Figure(matplotlib.figure.Figure):
    """A figure that a notebook shows without ``%matplotlib inline``, and with it once.

    >>> Figure(figsize=(1.0, 0.5))._repr_png_()[1]
    {'width': 96, 'height': 48}
    """

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        width, height = self.get_size_inches()
        return png(self), {"width": round(width * SHOWN), "height": round(height * SHOWN)}


def png(figure: matplotlib.figure.Figure) -> bytes:
    """Return the figure as the bytes of a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def new_figure(width: float, height: float, layout: Literal["constrained", "compressed"] = "constrained") -> Figure:
    """Return an empty figure of a size in inches, which finds room for its labels; "compressed" around an image."""
    return Figure(figsize=(width, height), dpi=DPI, layout=layout)


def panel(
    ax: Axes | None, width: float, height: float, layout: Literal["constrained", "compressed"] = "constrained"
) -> Axes:
    """Return the axes to draw in: those that are given, or those of a new figure. Raises ValueError for other things.

    >>> panel([1, 2], 4.0, 3.0)
    Traceback (most recent call last):
        ...
    ValueError: ax: wanted one axes of matplotlib, got a list; write ax=axes[0] for one of several
    """
    if ax is None:
        return new_figure(width, height, layout).add_subplot()
    if not isinstance(ax, Axes):
        got = f"a {type(ax).__name__}"
        raise ValueError(f"ax: wanted one axes of matplotlib, got {got}; write ax=axes[0] for one of several")
    return ax


def panels(axes: Sequence[Axes] | None, number: int, width: float, height: float, **shared: Any) -> list[Axes]:
    """Return ``number`` axes in a row: those that are given, or those of a new figure."""
    if axes is None:
        return list(new_figure(width, height).subplots(1, number, squeeze=False, **shared)[0])
    given: list[Any] = list(axes) if hasattr(axes, "__iter__") else [axes]
    if len(given) != number or not all(isinstance(ax, Axes) for ax in given):
        raise ValueError(
            f"axes: wanted {number} axes of matplotlib, one for each panel, got {len(given)}; "
            f"write axes=figure.subplots(1, {number})"
        )
    return given


def figure_of(ax: Axes) -> Figure:
    """Return the figure that ``panel`` or ``panels`` has made for these axes."""
    figure = ax.figure.figure  # of a part of a figure the whole; get_figure(root=True) is not in matplotlib 3.8
    assert isinstance(figure, Figure)
    return figure
