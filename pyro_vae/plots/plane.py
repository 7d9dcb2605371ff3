"""Codes in the latent plane: points coloured by label, and the aggregate posterior beside the prior."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.stats import gaussian_kde
from sklearn.decomposition import PCA
from torch import Tensor

from pyro_vae.plots.style import COLOURS, DPI, GREY

MANY = colormaps["turbo"]  # for more labels than there are COLOURS
LEGEND, COLUMN = 60, 20  # the most labels in a legend, and in one column of it


def latent_plane(codes: Tensor, labels: Tensor | None = None, title: str = "", legend: str = "digit") -> Figure:
    """Draw codes (N, D) as points in the latent plane, coloured by label (N,), any whole numbers, if there are labels.

    For D > 2 the plane is that of the two principal components of the codes, and the title shows which share of the
    variance each has. For D = 1 it is a histogram. ``legend`` is the heading of the legend: what a label is.

    >>> import torch
    >>> figure = latent_plane(torch.randn(50, 8), torch.arange(50) % 10)
    >>> figure.axes[0].get_xlabel()
    'first principal component'
    """
    points, groups = _points(codes, labels)
    plane = _Plane(points)
    figure = Figure(figsize=(6.4, 5.4), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    plane.draw(axes, points, groups)
    axes.set_title(_lines(title, plane.note), fontsize="medium")
    _legend(figure, groups, legend)
    return figure


def aggregate_posterior(
    codes: Tensor, prior: Tensor, labels: Tensor | None = None, title: str = "", legend: str = "digit"
) -> Figure:
    """Draw samples of the aggregate posterior, one z ~ q(z | x) per image (N, D), beside samples of the prior (M, D).

    Both are shown in one plane, as in ``latent_plane``. For D > 1 lines in both panels enclose 50 and 90 % of the
    prior's samples, by a kernel density estimate. They make holes and spills of the aggregate posterior visible.

    >>> import torch
    >>> figure = aggregate_posterior(torch.randn(50, 2), torch.randn(60, 2))
    >>> [axes.get_title() for axes in figure.axes]
    ['aggregate posterior', 'prior']
    """
    points, groups = _points(codes, labels)
    prior_points, _ = _points(prior, None)
    if prior.shape[1] != codes.shape[1]:
        raise ValueError(f"codes and prior: wanted one number of dimensions, got {codes.shape[1]} and {prior.shape[1]}")
    plane = _Plane(points)
    figure = Figure(figsize=(10.4, 5.2), dpi=DPI, layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    plane.draw(left, points, groups)
    plane.draw(right, prior_points, None)
    for axes, name in ((left, "aggregate posterior"), (right, "prior")):
        plane.outline(axes, prior_points)
        axes.set_title(name, fontsize="medium")
    note = "lines: half and 90 % of the prior" if points.shape[1] > 1 else ""
    figure.suptitle(_lines(title, plane.note, note), fontsize="medium")
    _legend(figure, groups, legend)
    return figure


class _Plane:
    """The plane in which codes (N, D) are drawn: z itself for D ≤ 2, otherwise that of the two principal components.

    >>> plane = _Plane(np.array([[3.0, 0.0, 0.0], [-3.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, -1.0, 0.0]]))
    >>> plane.project(np.array([[2.0, 1.0, 7.0]]))
    array([[2., 1.]])
    >>> plane.note
    'two principal components of D = 3 dimensions: 90 % + 10 % of the variance'
    """

    def __init__(self, codes: np.ndarray):
        dims = codes.shape[1]
        self.names, self.note = ("$z_1$", "$z_2$"), ""
        self.centre, self.directions = np.zeros(dims), np.eye(dims)
        if dims > 2:
            with np.errstate(invalid="ignore"):  # the shares of equal codes are 0 / 0
                components: Any = PCA(2, svd_solver="full").fit(codes)
            self.centre, self.directions = components.mean_, components.components_.T
            self.names = ("first principal component", "second principal component")
            shares = np.nan_to_num(components.explained_variance_ratio_)
            first, second = (f"{100 * share:.0f} %" for share in shares)
            self.note = f"two principal components of D = {dims} dimensions: {first} + {second} of the variance"

    def project(self, codes: np.ndarray) -> np.ndarray:
        """Return the coordinates of codes (N, D) in the plane, (N, 2), or (N, 1) for D = 1."""
        return (codes - self.centre) @ self.directions

    def draw(self, axes: Axes, codes: np.ndarray, labels: np.ndarray | None) -> None:
        """Draw points, or a histogram for D = 1, with one colour for each label."""
        points = self.project(codes)
        axes.set_xlabel(self.names[0])
        if points.shape[1] == 1:
            edges = np.histogram_bin_edges(points, 40).tolist()
            for colour, group in _coloured(points, labels):
                axes.hist(group[:, 0], edges, histtype="step", color=colour, linewidth=1.3)
            axes.set_ylabel("images")
            return
        chosen = {} if labels is None else _colours(labels)
        colours = GREY if labels is None else [chosen[label] for label in labels.tolist()]
        axes.scatter(*points.T, s=12, c=colours, alpha=0.85, linewidths=0)
        axes.set_ylabel(self.names[1])
        axes.set_aspect("equal")

    def outline(self, axes: Axes, prior: np.ndarray) -> None:
        """Draw lines of equal density around 50 and 90 % of the prior's samples, of which 2000 suffice."""
        points = self.project(prior)[:2000].T
        if len(points) < 2:
            return
        density = gaussian_kde(points)
        x, y = (np.linspace(low - 0.2 * (high - low), high + 0.2 * (high - low), 80) for low, high in _ranges(points))
        heights = density(np.stack(np.meshgrid(x, y)).reshape(2, -1)).reshape(80, 80)
        axes.contour(x, y, heights, np.quantile(density(points), (0.1, 0.5)), colors="black", linewidths=0.9)


def _ranges(points: np.ndarray) -> Iterator[tuple[float, float]]:
    return zip(points.min(1), points.max(1))


def _colours(labels: np.ndarray) -> dict[int, Any]:
    """Return a colour for each label that occurs: fixed colours for 0 … 9, others by their order."""
    found = np.unique(labels).tolist()
    if found[0] >= 0 and found[-1] < len(COLOURS):
        return {label: COLOURS[label] for label in found}
    return dict(zip(found, COLOURS if len(found) <= len(COLOURS) else MANY(np.linspace(0, 1, len(found)))))


def _coloured(points: np.ndarray, labels: np.ndarray | None) -> Iterator[tuple[Any, np.ndarray]]:
    if labels is None:
        yield GREY, points
    else:
        yield from ((colour, points[labels == label]) for label, colour in _colours(labels).items())


def _legend(figure: Figure, labels: np.ndarray | None, heading: str) -> None:
    """Add a legend of the labels' colours, or a colour bar if there are too many labels for one."""
    if labels is None:
        return
    colours = _colours(labels)
    if len(colours) > LEGEND:
        bar = figure.colorbar(ScalarMappable(Normalize(0, len(colours) - 1), MANY), ax=figure.axes, label=heading)
        places = np.linspace(0, len(colours) - 1, 9).round().astype(int)
        bar.set_ticks(places, labels=[str(list(colours)[place]) for place in places])
        return
    marks = [
        Line2D([], [], color=colour, marker="o", linestyle="", label=str(label)) for label, colour in colours.items()
    ]
    columns = math.ceil(len(marks) / COLUMN)
    figure.set_figwidth(figure.get_figwidth() + 0.6 * (columns - 1))
    figure.legend(handles=marks, title=heading, loc="outside right center", frameon=False, ncols=columns)


def _points(codes: Tensor, labels: Tensor | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Return codes and labels as arrays; raise ValueError unless they fit together and can be drawn."""
    if codes.dim() != 2 or len(codes) < 2 or (labels is not None and labels.shape != codes.shape[:1]):
        got = (tuple(codes.shape), None if labels is None else tuple(labels.shape))
        raise ValueError(f"codes and labels: wanted (N, D), N at least 2, and (N,) or None, got {got[0]} and {got[1]}")
    if not codes.isfinite().all():
        raise ValueError(f"codes: {int((~codes.isfinite()).any(1).sum())} of {len(codes)} are not finite")
    if labels is not None and labels.is_floating_point():
        raise ValueError(f"labels: wanted whole numbers, got {labels.dtype}; write labels.long()")
    return codes.detach().cpu().double().numpy(), None if labels is None else labels.detach().cpu().numpy()


def _lines(*parts: str) -> str:
    return "\n".join(part for part in parts if part)
