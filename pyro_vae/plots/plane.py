"""Codes in the latent plane: points coloured by label, and the aggregate posterior beside the prior."""

from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np
import torch
from matplotlib.axes import Axes
from scipy.stats import gaussian_kde
from torch import Tensor

from pyro_vae.plots.classes import Classes
from pyro_vae.plots.figures import Figure, figure_of, panel, panels
from pyro_vae.plots.style import GREY

Codes = Tensor | np.ndarray
Labels = Tensor | np.ndarray | Sequence | None
POINTS = 2.4e4  # area of all points together, in square points: many are drawn smaller


@overload
def latent_plane(
    codes: Codes,
    labels: Labels = ...,
    title: str = ...,
    legend: str = ...,
    *,
    classes: Sequence[str] = ...,
    ax: None = ...,
) -> Figure: ...
@overload
def latent_plane(
    codes: Codes, labels: Labels = ..., title: str = ..., legend: str = ..., *, classes: Sequence[str] = ..., ax: Axes
) -> Axes: ...
def latent_plane(
    codes: Codes,
    labels: Labels = None,
    title: str = "",
    legend: str = "class",
    *,
    classes: Sequence[str] = (),
    ax: Axes | None = None,
) -> Figure | Axes:
    """Draw codes (N, D) as points in the latent plane, coloured by label, if there are labels.

    For D > 2 the plane is that of the two principal components of the codes, and the title shows which share of the
    variance each has. For D = 1 it is a histogram.

    Args:
        codes: such as ``analysis.codes`` returns.
        labels: (N,), whole numbers, −1 where unknown, or words.
        title: of the figure.
        legend: the heading of the legend: what a label is.
        classes: the names of the labels 0, 1, …, as in ``data.classes``.
        ax: axes to draw in, which are returned; by default a new figure is made and returned.

    >>> figure = latent_plane(torch.randn(50, 8), torch.arange(50) % 2, classes=("cat", "dog"))
    >>> figure.axes[0].get_xlabel(), [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    ('first principal component', ['cat', 'dog'])
    """
    points = _points("codes", codes)
    groups = None if labels is None else Classes(labels, len(points), classes)
    plane = _Plane(points)
    drawn = panel(ax, 6.4 + (0.6 * (groups.columns - 1) if groups else 0.0), 5.4)
    plane.draw(drawn, points, groups)
    drawn.set_adjustable("datalim")  # points fill the axes, whatever their shape
    drawn.set_title(_lines(title, plane.note), fontsize="medium")
    if groups:
        groups.explain(drawn, legend)
    return figure_of(drawn) if ax is None else drawn


@overload
def aggregate_posterior(
    codes: Codes,
    prior: Codes,
    labels: Labels = ...,
    title: str = ...,
    legend: str = ...,
    *,
    classes: Sequence[str] = ...,
    axes: None = ...,
) -> Figure: ...
@overload
def aggregate_posterior(
    codes: Codes,
    prior: Codes,
    labels: Labels = ...,
    title: str = ...,
    legend: str = ...,
    *,
    classes: Sequence[str] = ...,
    axes: Sequence[Axes],
) -> list[Axes]: ...
def aggregate_posterior(
    codes: Codes,
    prior: Codes,
    labels: Labels = None,
    title: str = "",
    legend: str = "class",
    *,
    classes: Sequence[str] = (),
    axes: Sequence[Axes] | None = None,
) -> Figure | list[Axes]:
    """Draw samples of the aggregate posterior, one z ~ q(z | x) per image (N, D), beside samples of the prior (M, D).

    Both are shown in one plane, as in ``latent_plane``, with the same arguments. For D > 1 lines in both panels enclose
    50 and 90 % of the prior's samples, by a kernel density estimate. They make holes and spills of the aggregate
    posterior visible. ``axes`` are two axes to draw in, which are returned; by default a new figure is.

    >>> figure = aggregate_posterior(torch.randn(50, 2), torch.randn(60, 2))
    >>> [ax.get_title() for ax in figure.axes]
    ['aggregate posterior', 'prior']
    """
    points, prior_points = _points("codes", codes), _points("prior", prior)
    groups = None if labels is None else Classes(labels, len(points), classes)
    dims, prior_dims = points.shape[1], prior_points.shape[1]
    if prior_dims != dims:
        raise ValueError(
            f"codes and prior: wanted one number of dimensions, got {dims} and {prior_dims}; take both of one model"
        )
    plane = _Plane(points)
    width = 10.4 + (0.6 * (groups.columns - 1) if groups else 0.0)
    left, right = drawn = panels(axes, 2, width, 5.2, sharex=True, sharey=True)
    plane.draw(left, points, groups)
    plane.draw(right, prior_points, None)
    _share_limits(left, right)
    plane.outline((left, right), prior_points)
    for ax, name in ((left, "aggregate posterior"), (right, "prior")):
        ax.set_title(name, fontsize="medium")
    if groups:
        groups.explain(right, legend)
    words = _lines(title, plane.note, "lines: half and 90 % of the prior" if dims > 1 else "")
    if axes is not None:
        left.set_title(_lines(words, left.get_title()), fontsize="medium")
        return drawn
    figure = figure_of(left)
    right.set_ylabel("")
    figure.suptitle(words, fontsize="medium")
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
            self.centre = codes.mean(0)
            variances, directions = np.linalg.eigh(np.cov(codes.T))  # in ascending order
            first_two = directions[:, [-1, -2]]
            largest = np.take_along_axis(first_two, np.abs(first_two).argmax(0)[None], 0)
            self.directions = first_two * np.where(largest < 0, -1.0, 1.0)  # their signs are free
            self.names = ("first principal component", "second principal component")
            shares = variances[[-1, -2]] / (variances.sum() or 1.0)
            first, second = (f"{100 * share:.0f} %" for share in shares)
            self.note = f"two principal components of D = {dims} dimensions: {first} + {second} of the variance"

    def project(self, codes: np.ndarray) -> np.ndarray:
        """Return the coordinates of codes (N, D) in the plane, (N, 2), or (N, 1) for D = 1."""
        return (codes - self.centre) @ self.directions

    def draw(self, ax: Axes, codes: np.ndarray, groups: Classes | None) -> None:
        """Draw points, or a histogram for D = 1, with one colour for each label."""
        points = self.project(codes)
        ax.set_xlabel(self.names[0])
        if points.shape[1] == 1:
            edges = np.histogram_bin_edges(points, 40).tolist()
            everything: list[tuple[dict[str, Any], Any]] = [({"color": GREY}, slice(None))]
            for look, rows in groups.each() if groups else everything:
                ax.hist(points[rows, 0], edges, histtype="step", linewidth=1.3, **look)
            ax.set_ylabel("images")
            return
        area = min(20.0, max(4.0, POINTS / len(points)))
        for colours, marker, rows in groups.together() if groups else [(GREY, "o", slice(None))]:
            width = 0.8 if marker == "x" else 0
            ax.scatter(*points[rows].T, s=area, c=colours, marker=marker, alpha=0.85, linewidths=width)
        ax.set_ylabel(self.names[1])
        ax.set_aspect("equal")

    def outline(self, axes: Sequence[Axes], prior: np.ndarray) -> None:
        """Draw lines of equal density around 50 and 90 % of the prior's samples, of which 2000 suffice."""
        points = self.project(prior)[:2000].T
        if len(points) < 2 or np.linalg.matrix_rank(np.cov(points)) < 2:  # a line or a point has no density
            return
        density = gaussian_kde(points)
        x, y = (np.linspace(low - 0.2 * (high - low), high + 0.2 * (high - low), 80) for low, high in _ranges(points))
        heights = density(np.stack(np.meshgrid(x, y)).reshape(2, -1)).reshape(80, 80)
        levels = np.quantile(density(points), (0.1, 0.5))
        for ax in axes:
            ax.contour(x, y, heights, levels, colors="black", linewidths=0.9)


def _share_limits(*axes: Axes) -> None:
    """Give axes the limits that show what each of them shows, whatever is drawn later."""
    for name in "xy":
        limits = np.array([getattr(ax, f"get_{name}lim")() for ax in axes])
        for ax in axes:
            getattr(ax, f"set_{name}lim")(limits.min(), limits.max())


def _ranges(points: np.ndarray) -> Iterator[tuple[float, float]]:
    return zip(points.min(1), points.max(1))


def _points(name: str, codes: Codes) -> np.ndarray:
    """Return codes (N, D) in float64; raise ValueError unless they can be drawn."""
    found = codes.detach().cpu() if isinstance(codes, Tensor) else torch.from_numpy(np.array(codes))
    if found.dim() != 2 or len(found) < 2 or not found.shape[1] or found.is_complex():
        cure = "codes.reshape(len(codes), -1)" if found.dim() > 2 else "analysis.codes(vae, x) for two or more images"
        raise ValueError(f"{name}: wanted (N, D), N at least 2, got {tuple(found.shape)}; write {cure}")
    if not found.isfinite().all():
        bad = int((~found.isfinite()).any(1).sum())
        raise ValueError(f"{name}: {bad} of {len(found)} are not finite; write codes[codes.isfinite().all(1)]")
    return found.double().numpy()


def _lines(*parts: str) -> str:
    return "\n".join(part for part in parts if part)
