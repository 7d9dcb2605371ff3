"""Figures from results: each function takes tensors or numbers and returns a ``matplotlib.figure.Figure``.

Save one by ``figure.savefig("plane.png")``. Nothing is trained or drawn at random here, no global state of matplotlib
is changed, and no display is needed. Images are (..., C, H, W) in [0, 1], grey (C = 1) or red, green, blue (C = 3);
with any other number of channels each channel is drawn as a grey picture, one channel under the other.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullLocator
from scipy.stats import gaussian_kde
from torch import Tensor

DPI = 150
# Paul Tol's "muted" scheme, made for readers with any colour vision; its pale grey, meant for missing data, darkened.
COLOURS = ("#332288", "#88CCEE", "#117733", "#DDCC77", "#CC6677", "#882255", "#44AA99", "#AA4499", "#999933", "#666666")
MANY = colormaps["turbo"]  # for more labels than that
LEGEND, COLUMN = 60, 20  # labels that a legend has room for, and those in a column of it
GREY = "#666666"
TRAIN, VALID = "#88CCEE", "#332288"
WEIGHTED = {"IWAE": "o-", "DReG": "s--"}


def latent_plane(codes: Tensor, labels: Tensor | None = None, title: str = "", legend: str = "digit") -> Figure:
    """Codes (N, D) as points in the latent plane, coloured by label (N,), any whole numbers, where there are labels.

    For D > 2 the plane is that of the two principal components of the codes, and the title says which share of the
    variance each has; for D = 1 it is a histogram. ``legend`` is the heading of the legend: what a label is.

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
    """Draws of the aggregate posterior, one z ~ q(z | x) an image (N, D), beside draws of the prior (M, D).

    Both are shown in one plane, as in ``latent_plane``. For D > 1 lines in both panels enclose half and 90 % of the
    prior's draws, by a kernel density estimate: holes and spills of the aggregate posterior are seen against them.

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


def manifold(images: Tensor, title: str = "") -> Figure:
    """The decoder on a grid of the latent plane, (side, side, C, H, W): z_1 grows along rows, z_2 from last to first.

    >>> manifold(torch.rand(4, 4, 1, 8, 8)).axes[0].get_xlabel()
    '$z_1$ →'
    """
    _wanted("images", images, 5)
    figure = _canvas(images[None], cell=0.34, gap=0, title=title)
    figure.axes[0].set_xlabel("$z_1$ →")
    figure.axes[0].set_ylabel("$z_2$ →")
    return figure


def samples(images: Tensor, columns: int = 10, title: str = "") -> Figure:
    """Images (N, C, H, W) in rows of ``columns``.

    >>> samples(torch.rand(12, 1, 8, 8), columns=6).axes[0].images[0].get_array().shape
    (18, 58)
    """
    _wanted("images", images, 4)
    return _canvas(_in_rows(images, columns)[None], title=title)


def interpolation(images: Tensor, title: str = "") -> Figure:
    """Walks from one image to another, (walks, steps, C, H, W), each in a row.

    >>> interpolation(torch.rand(3, 9, 1, 8, 8)).axes[0].images[0].get_array().shape
    (28, 88)
    """
    _wanted("images", images, 5)
    return _canvas(images[None], title=title)


def reconstructions(x: Tensor, pictures: Tensor, columns: int = 10, title: str = "") -> Figure:
    """Originals (N, C, H, W) over their reconstructions.

    >>> figure = reconstructions(torch.rand(4, 1, 8, 8), torch.rand(4, 1, 8, 8))
    >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
    ['original', 'reconstruction']
    """
    return image_rows({"original": x, "reconstruction": pictures}, columns, title)


def image_rows(rows: Mapping[str, Tensor], columns: int = 10, title: str = "") -> Figure:
    """Images (N, C, H, W) under each other, a named row each; more than ``columns`` images continue below.

    >>> figure = image_rows({"x": torch.rand(12, 1, 8, 8), "imputed": torch.rand(12, 1, 8, 8)}, columns=6)
    >>> len(figure.axes)
    2
    """
    shapes = {name: tuple(images.shape) for name, images in rows.items()}
    if len(set(shapes.values())) != 1:
        raise ValueError(f"rows: wanted images of one shape in every row, got {shapes}")
    for name, images in rows.items():
        _wanted(name, images, 4)
    blocks = torch.stack([_in_rows(images, columns) for images in rows.values()], dim=1)
    return _canvas(blocks, names=list(rows), title=title)


def learning_curves(history: Iterable[Mapping[str, float]], title: str = "") -> Figure:
    """Bound, rate and distortion against the epoch, on training and validation images, in nats per image.

    A row of the history is an epoch: ``epoch``, ``train_bound``, ``train_rate``, ``train_distortion`` and the same with
    ``valid_``; ``fit(...).rows`` is such a history.

    >>> row = {"train_bound": -150.0, "train_rate": 6.0, "train_distortion": 144.0,
    ...        "valid_bound": -152.0, "valid_rate": 6.0, "valid_distortion": 146.0}
    >>> figure = learning_curves([{"epoch": 1, **row}, {"epoch": 2, **row}])
    >>> [axes.get_title() for axes in figure.axes]
    ['bound (higher is better)', 'rate', 'distortion']
    """
    history = list(history)
    if not history:
        raise ValueError("history: wanted a row an epoch, got none; train for at least one epoch")
    epochs = [row["epoch"] for row in history]
    figure = Figure(figsize=(10.4, 3.4), dpi=DPI, layout="constrained")
    names = {"bound": "bound (higher is better)", "rate": "rate", "distortion": "distortion"}
    for axes, (quantity, name) in zip(figure.subplots(1, 3), names.items()):
        for split, colour, label in (("train", TRAIN, "training"), ("valid", VALID, "validation")):
            values = [row[f"{split}_{quantity}"] for row in history]
            axes.plot(epochs, values, color=colour, label=label, marker="o", markersize=3)
        axes.set(title=name, xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("nats per image")
    figure.axes[0].legend(frameon=False)
    figure.suptitle(title)
    return figure


def estimator_variance(stages: Mapping[str, Mapping[str, Any]], title: str = "") -> Figure:
    """Variance of the gradient against estimator, guide and model apart, at one or more stages of training.

    ``stages`` are results of ``compare_estimators`` by name, each by its ``to_dict()``. Variance is the trace of the
    covariance of one draw, in nats². Where an importance-weighted estimator has several numbers of particles, a further
    panel shows the guide's signal-to-noise ratio, mean of |mean| / sd, against it. Lines through points are intervals
    of 95 %; the dotted line is where the ratio cannot be told from zero with so many draws.

    >>> numbers = {"value": 2.0, "low": 1.5, "high": 2.5}
    >>> entry = {"kind": "Trace_ELBO", "particles": 1, "guide": {"variance": numbers, "snr": numbers}, "model": None}
    >>> figure = estimator_variance({"": {"estimators": {"L^A": entry}, "draws": 100, "batches": 1}})
    >>> [axes.get_xlabel() for axes in figure.axes]
    ["variance of the guide's gradient (nats²)"]
    """
    if not stages:
        raise ValueError("stages: wanted at least one result of compare_estimators by name, got none")
    first = next(iter(stages.values()))
    names = list(first["estimators"])
    groups = [group for group in ("guide", "model") if any(entry[group] for entry in first["estimators"].values())]
    weighted = _weighted(first)
    size = (1.6 + 3.4 * len(groups) + 3.4 * bool(weighted), 1.4 + 0.3 * len(names))
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    panels = figure.subplots(1, len(groups) + bool(weighted), squeeze=False)[0]
    shades = [COLOURS[i] for i in (0, 6, 4, 3)]
    for axes, group in zip(panels, groups):
        for number, (stage, colour) in enumerate(zip(stages, itertools.cycle(shades))):
            places = np.arange(len(names)) + 0.22 * (number - (len(stages) - 1) / 2)
            entries = [stages[stage]["estimators"][name][group]["variance"] for name in names]
            _intervals(axes, entries, places, colour, stage, upright=False)
        axes.set(xscale="log", xlabel=f"variance of the {group}'s gradient (nats²)", ylim=(len(names) - 0.5, -0.5))
        axes.set_yticks(range(len(names)), names if axes is panels[0] else [""] * len(names))
        axes.grid(alpha=0.3)
    if weighted:
        _ratio_against_particles(panels[-1], stages, shades)
    if any(stages):
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower left", ncols=len(stages), frameon=False)
    figure.suptitle(title, fontsize="medium")
    return figure


def tiled(images: Tensor, gap: int = 2) -> np.ndarray:
    """One picture of images (rows, columns, C, H, W), ``gap`` white pixels apart: (H', W', 3) for C = 3, else (H', W').

    For C other than 1 and 3 all rows of the first channel come first, then those of the next.

    >>> tiled(torch.zeros(1, 2, 1, 1, 2), gap=1)
    array([[0., 0., 1., 0., 0.]], dtype=float32)
    """
    images = torch.cat(images.split(1, dim=2)) if _channels(images) > 1 else images
    rows, columns, channels, height, width = images.shape
    padded = torch.nn.functional.pad(images.detach().cpu().float(), (0, gap, 0, gap), value=1.0)
    picture = padded.permute(0, 3, 1, 4, 2).reshape(rows * (height + gap), columns * (width + gap), channels)
    picture = picture[: picture.shape[0] - gap, : picture.shape[1] - gap].clamp(0, 1).numpy()
    return picture[..., 0] if channels == 1 else picture


class _Plane:
    """The plane in which codes (N, D) are drawn: z itself for D ≤ 2, else that of the two principal components.

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
            variances, directions = np.linalg.eigh(np.cov(codes, rowvar=False))
            directions = directions[:, :-3:-1]
            # The sign of a component means nothing; a fixed one makes figures comparable.
            self.directions = directions * np.sign(directions[np.abs(directions).argmax(0), [0, 1]])
            self.names = ("first principal component", "second principal component")
            shares = variances[:-3:-1] / (variances.sum() or 1.0)  # codes that are all the same have no variance
            first, second = (f"{100 * share:.0f} %" for share in shares)
            self.note = f"two principal components of D = {dims} dimensions: {first} + {second} of the variance"

    def project(self, codes: np.ndarray) -> np.ndarray:
        return (codes - self.centre) @ self.directions

    def draw(self, axes: Axes, codes: np.ndarray, labels: np.ndarray | None) -> None:
        """Points, or for D = 1 a histogram, a colour for each label."""
        points = self.project(codes)
        axes.set_xlabel(self.names[0])
        if points.shape[1] == 1:
            edges = np.histogram_bin_edges(points, 40)
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
        """Lines of equal density around half and 90 % of the prior's draws, of which 2000 suffice."""
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
    """A colour for each label that occurs: for 0 … 9 always the same one, for others by their order."""
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
    """Which label has which colour: a legend, or a colour bar where there are too many for one."""
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
    """Codes and labels as arrays; ValueError unless they fit together and can be drawn."""
    if codes.dim() != 2 or len(codes) < 2 or (labels is not None and labels.shape != codes.shape[:1]):
        got = (tuple(codes.shape), None if labels is None else tuple(labels.shape))
        raise ValueError(f"codes and labels: wanted (N, D), N at least 2, and (N,) or None, got {got[0]} and {got[1]}")
    if not codes.isfinite().all():
        raise ValueError(f"codes: {int((~codes.isfinite()).any(1).sum())} of {len(codes)} are not finite")
    if labels is not None and labels.is_floating_point():
        raise ValueError(f"labels: wanted whole numbers, got {labels.dtype}; write labels.long()")
    return codes.detach().cpu().double().numpy(), None if labels is None else labels.detach().cpu().numpy()


def _wanted(name: str, images: Tensor, dims: int) -> None:
    if images.dim() != dims or not images.is_floating_point():
        wanted = "(N, C, H, W)" if dims == 4 else "(rows, columns, C, H, W)"
        raise ValueError(f"{name}: wanted float images {wanted}, got {images.dtype} of shape {tuple(images.shape)}")


def _in_rows(images: Tensor, columns: int) -> Tensor:
    """(N, C, H, W) -> (rows, columns, C, H, W), the last row filled up with white."""
    columns = min(columns, len(images))
    blank = images.new_ones(-len(images) % columns, *images.shape[1:])
    return torch.cat([images, blank]).unflatten(0, (-1, columns))


def _canvas(blocks: Tensor, cell: float = 0.62, gap: int = 2, names: Iterable[str] = (), title: str = "") -> Figure:
    """A figure of blocks (blocks, rows, columns, C, H, W) of images under each other, ``cell`` inches an image."""
    count, rows, columns, _, height, width = blocks.shape
    channels = _channels(blocks[0])
    ticks = _ticks(list(names), rows, channels)
    beside, high = (0.3 if not ticks else 1.2 if channels == 1 else 2.0), channels * rows * cell + 0.2
    size = (columns * cell * width / max(height, width) + beside, count * high + 0.2)
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    for axes, images in zip(figure.subplots(count, 1, squeeze=False)[:, 0], blocks):
        axes.imshow(tiled(images, gap), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.spines[:].set_visible(False)
        axes.set_yticks([(height + gap) * row + (height - 1) / 2 for row in ticks.values()], list(ticks))
        axes.set_xticks([])
        axes.tick_params(length=0)
    figure.suptitle(title, fontsize="medium")
    return figure


def _channels(images: Tensor) -> int:
    """How many pictures show an image of (rows, columns, C, H, W): one, or where it has no colours one a channel."""
    return 1 if images.shape[2] in (1, 3) else images.shape[2]


def _ticks(names: Sequence[str], rows: int, channels: int) -> dict[str, float]:
    """What stands beside the rows of pictures, and at which of them: their names, their channels or both."""
    if channels == 1:
        return {name: row for row, name in enumerate(names)}
    if not names:
        return {f"channel {i + 1}": i * rows + (rows - 1) / 2 for i in range(channels)}
    return {f"{name}, channel {i + 1}": i * rows + row for i in range(channels) for row, name in enumerate(names)}


def _weighted(result: Mapping[str, Any]) -> dict[str, list[tuple[int, str]]]:
    """Importance-weighted estimators with several numbers of particles: by kind, numbers and names."""
    entries = result["estimators"].items()
    found = {
        label: sorted((entry["particles"], name) for name, entry in entries if entry["kind"] == kind)
        for kind, label in (("ImportanceWeighted", "IWAE"), ("DoublyReparameterized", "DReG"))
    }
    return {label: names for label, names in found.items() if len(names) > 1}


def _ratio_against_particles(axes: Axes, stages: Mapping[str, Mapping[str, Any]], shades: Sequence[str]) -> None:
    for result, colour in zip(stages.values(), itertools.cycle(shades)):
        for label, names in _weighted(result).items():
            particles = [number for number, _ in names]
            entries = [result["estimators"][name]["guide"]["snr"] for _, name in names]
            _intervals(axes, entries, particles, colour, label, upright=True, style=WEIGHTED[label])
    axes.axhline(math.sqrt(2 / (math.pi * result["draws"] * result["batches"])), color=GREY, linestyle=":")
    axes.set(xscale="log", yscale="log", xlabel="particles K", ylabel="signal to noise of the guide's gradient")
    axes.set_xticks(particles, particles)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.3)
    styles = {label: WEIGHTED[label] for label in _weighted(result)}
    lines = [Line2D([], [], color=GREY, marker=style[0], linestyle=style[1:]) for style in styles.values()]
    axes.legend(lines, list(styles), frameon=False, fontsize="small")


def _intervals(
    axes: Axes,
    entries: Sequence[Mapping[str, float]],
    places: Iterable[float],
    colour: str,
    label: str,
    upright: bool,
    style: str = "o",
) -> None:
    """Points with intervals, against places on the other axis; what is not known, and values of zero, are left out."""
    kept = [(place, entry) for place, entry in zip(places, entries) if entry["value"]]
    values = np.array([entry["value"] for _, entry in kept])
    ends = [[entry["value"] if entry[end] is None else entry[end] for end in ("low", "high")] for _, entry in kept]
    spread = np.abs(np.array(ends).reshape(-1, 2).T - values)
    where = np.array([place for place, _ in kept], dtype=float)
    given = {"x": where, "y": values, "yerr": spread} if upright else {"x": values, "y": where, "xerr": spread}
    axes.errorbar(**given, fmt=style, color=colour, label=label, markersize=4, linewidth=1.2)


def _lines(*parts: str) -> str:
    return "\n".join(part for part in parts if part)
