"""Figures of images in rows and grids.

Images are tensors or NumPy arrays, (..., C, H, W): floating-point numbers in [0, 1], or uint8 grey levels.
"""

from collections.abc import Mapping, Sequence
from typing import overload

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from torch import Tensor

from pyro_vae.checks import whole_number
from pyro_vae.plots.figures import Figure, figure_of, panel
from pyro_vae.plots.style import COLOURS

Images = Tensor | np.ndarray
CELL = 0.62  # inches of an image
GAP = 2  # white pixels between images
FRAME = COLOURS[4]  # around the ends of interpolations; seen on black and on white
PATH = "{} steps between their codes"


@overload
def manifold(images: Images, title: str = ..., *, ax: None = ...) -> Figure: ...
@overload
def manifold(images: Images, title: str = ..., *, ax: Axes) -> Axes: ...
def manifold(images: Images, title: str = "", *, ax: Axes | None = None) -> Figure | Axes:
    """Draw images on a grid of the latent plane, (side, side, C, H, W): z_1 grows along rows, z_2 from last to first.

    Returns a new figure; or ``ax``, if axes to draw in are given.

    >>> manifold(torch.rand(4, 4, 1, 8, 8)).axes[0].get_xlabel()
    '$z_1$ →'
    """
    pictures = as_images("images", images, "rows", "columns")
    drawn = _draw(ax, tiled(pictures, 0), _scale(pictures, 0.34), title=title, beside=0.3)
    drawn.set_xlabel("$z_1$ →")
    drawn.set_ylabel("$z_2$ →")
    return figure_of(drawn) if ax is None else drawn


@overload
def samples(images: Images, columns: int = ..., title: str = ..., *, ax: None = ...) -> Figure: ...
@overload
def samples(images: Images, columns: int = ..., title: str = ..., *, ax: Axes) -> Axes: ...
def samples(images: Images, columns: int = 10, title: str = "", *, ax: Axes | None = None) -> Figure | Axes:
    """Draw images (N, C, H, W) in rows of ``columns``.

    Returns a new figure; or ``ax``, if axes to draw in are given.

    >>> samples(torch.rand(12, 1, 8, 8), columns=6).axes[0].images[0].get_array().shape
    (18, 58)
    """
    rows = _in_rows(as_images("images", images, "N"), columns)
    ticks = _ticks([], len(rows), _channels(rows))
    places = [(name, _middle(row, rows.shape[-2])) for name, row in ticks.items()]
    drawn = _draw(ax, tiled(rows), _scale(rows, CELL), places, title)
    return figure_of(drawn) if ax is None else drawn


@overload
def interpolation(
    images: Images, originals: Sequence[Images] | None = ..., title: str = ..., *, ax: None = ...
) -> Figure: ...
@overload
def interpolation(images: Images, originals: Sequence[Images] | None = ..., title: str = ..., *, ax: Axes) -> Axes: ...
def interpolation(
    images: Images, originals: Sequence[Images] | None = None, title: str = "", *, ax: Axes | None = None
) -> Figure | Axes:
    """Draw paths from one image to another, each in a row, with both ends framed.

    Args:
        images: (paths, steps, C, H, W), or one path, (steps, C, H, W), as ``analysis.interpolate`` returns them.
        originals: the two images, or batches of them, (paths, C, H, W), between whose codes the paths lead. They are
            drawn beside the paths, and framed instead of the first and the last step.
        title: of the figure.
        ax: axes to draw in, which are returned; by default a new figure is made and returned.

    >>> first, last = torch.rand(3, 1, 8, 8), torch.rand(3, 1, 8, 8)
    >>> figure = interpolation(torch.rand(3, 9, 1, 8, 8), (first, last))
    >>> [label.get_text() for label in figure.axes[0].get_xticklabels()]
    ['original', '9 steps between their codes', 'original']
    """
    one = np.ndim(images) == 4
    paths = as_images("images", images[None] if one else images, "paths", "steps")
    blocks = [paths] if originals is None else _between(paths, originals, one)
    picture, starts = _beside([tiled(block) for block in blocks], paths.shape[-1])
    drawn = _draw(ax, picture, _scale(paths, CELL), title=title, below=0.25)
    ends = _ends(blocks, starts)
    for place in ends.values():
        for row in range(0, picture.shape[0], paths.shape[-2] + GAP):
            size = paths.shape[-1] + 1, paths.shape[-2] + 1
            drawn.add_patch(Rectangle((place - 1, row - 1), *size, fill=False, edgecolor=FRAME, lw=2, clip_on=False))
    _name_columns(drawn, blocks, starts, ends)
    return figure_of(drawn) if ax is None else drawn


@overload
def reconstructions(x: Images, pictures: Images, columns: int = ..., title: str = ..., *, ax: None = ...) -> Figure: ...
@overload
def reconstructions(x: Images, pictures: Images, columns: int = ..., title: str = ..., *, ax: Axes) -> Axes: ...
def reconstructions(
    x: Images, pictures: Images, columns: int = 10, title: str = "", *, ax: Axes | None = None
) -> Figure | Axes:
    """Draw originals (N, C, H, W) above their reconstructions.

    Returns a new figure; or ``ax``, if axes to draw in are given.

    >>> figure = reconstructions(torch.rand(4, 1, 8, 8), torch.rand(4, 1, 8, 8))
    >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
    ['original', 'reconstruction']
    """
    return image_rows({"original": x, "reconstruction": pictures}, columns, title, ax=ax)


@overload
def image_rows(rows: Mapping[str, Images], columns: int = ..., title: str = ..., *, ax: None = ...) -> Figure: ...
@overload
def image_rows(rows: Mapping[str, Images], columns: int = ..., title: str = ..., *, ax: Axes) -> Axes: ...
@overload
def image_rows(rows: Mapping[str, Images], columns: int, title: str, *, ax: Axes | None) -> Figure | Axes: ...
def image_rows(
    rows: Mapping[str, Images], columns: int = 10, title: str = "", *, ax: Axes | None = None
) -> Figure | Axes:
    """Draw named rows of images (N, C, H, W), one below the other; after ``columns`` images a new block begins.

    Returns a new figure; or ``ax``, if axes to draw in are given.

    >>> figure = image_rows({"x": torch.rand(12, 1, 8, 8), "imputed": torch.rand(12, 1, 8, 8)}, columns=6)
    >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
    ['x', 'imputed', 'x', 'imputed']
    """
    given = {name: as_images(name, images, "N") for name, images in rows.items()}
    shapes = {name: tuple(images.shape) for name, images in given.items()}
    if len(set(shapes.values())) != 1:
        raise ValueError(
            f"rows: wanted images of one shape in every row, got {shapes or 'no rows'}; give each row one image for "
            "each image of the others"
        )
    blocks = torch.stack([_in_rows(images, columns) for images in given.values()], dim=1)
    picture, starts = _below([tiled(block) for block in blocks])
    ticks, height = _ticks(list(given), len(given), _channels(blocks[0])), blocks.shape[-2]
    places = [(name, start + _middle(row, height)) for start in starts for name, row in ticks.items()]
    drawn = _draw(ax, picture, _scale(blocks[0], CELL), places, title)
    return figure_of(drawn) if ax is None else drawn


def tiled(images: Images, gap: int = GAP) -> np.ndarray:
    """Return one picture of images (rows, columns, C, H, W) that are ``gap`` white pixels apart.

    Its shape is (H', W', 3) for C = 3, else (H', W'). For C other than 1 and 3 all rows of the first channel come
    first, then those of the next.

    >>> tiled(torch.zeros(1, 2, 1, 1, 2), gap=1)
    array([[0., 0., 1., 0., 0.]], dtype=float32)
    """
    images = torch.as_tensor(images)
    images = torch.cat(images.split(1, dim=2)) if _channels(images) > 1 else images
    rows, columns, channels, height, width = images.shape
    padded = torch.nn.functional.pad(images.detach().cpu().float(), (0, gap, 0, gap), value=1.0)
    picture = padded.permute(0, 3, 1, 4, 2).reshape(rows * (height + gap), columns * (width + gap), channels)
    picture = picture[: picture.shape[0] - gap, : picture.shape[1] - gap].clamp(0, 1).numpy()
    return picture[..., 0] if channels == 1 else picture


def as_images(name: str, images: Images, *leading: str) -> Tensor:
    """Return images as floating-point numbers on the CPU; uint8 grey levels are divided by 255.

    ``leading`` names the dimensions before C, H, W. Values outside [0, 1], as the mean of a normal likelihood may have,
    are drawn as black or white. Raises ValueError for another shape, for values that are not finite, and for grey
    levels as floating-point numbers.

    >>> as_images("images", np.full((1, 1, 1, 2), 51, np.uint8), "N")
    tensor([[[[0.2000, 0.2000]]]])
    """
    found = images.detach().cpu() if isinstance(images, Tensor) else torch.from_numpy(np.array(images))
    wanted = f"({', '.join([*leading, 'C', 'H', 'W'])})"
    levels = found.dtype == torch.uint8
    if found.dim() != len(leading) + 3 or not found.numel() or not (found.is_floating_point() or levels):
        cure = "images[:, None] adds one channel" if found.dim() == len(leading) + 2 else "images in [0, 1], or uint8"
        got = f"{str(found.dtype).removeprefix('torch.')} of shape {tuple(found.shape)}"
        raise ValueError(f"{name}: wanted float images in [0, 1] or uint8, {wanted}, got {got}; give {cure}")
    if not found.isfinite().all():
        bad = int((~found.isfinite()).sum())
        raise ValueError(f"{name}: wanted finite values, got {bad} that are not; give images.nan_to_num(0)")
    if not levels and found.max() > 1 and (found == found.round()).all():
        raise ValueError(
            f"{name}: wanted values in [0, 1], got whole numbers to {found.max():g}; write images / 255 for grey levels"
        )
    return found.float() / 255 if levels else found


def _in_rows(images: Tensor, columns: int) -> Tensor:
    """Reshape (N, C, H, W) to (rows, columns, C, H, W); fill the last row with white."""
    whole_number("columns", columns)
    columns = min(columns, len(images))
    blank = images.new_ones(-len(images) % columns, *images.shape[1:])
    return torch.cat([images, blank]).unflatten(0, (-1, columns))


def _between(paths: Tensor, originals: Sequence[Images], one: bool) -> list[Tensor]:
    """Return the blocks of first originals, paths and last originals, each (paths, columns, C, H, W)."""
    count = len(originals)
    ends = [
        as_images("originals", end[None] if one and np.ndim(end) == 3 else end, "paths")[:, None] for end in originals
    ]
    if count != 2 or any(end[:, 0].shape != paths[:, 0].shape for end in ends):
        got = " and ".join(str(tuple(end[:, 0].shape)) for end in ends)
        raise ValueError(
            f"originals: wanted two, a first and a last image for each path, {tuple(paths[:, 0].shape)}, got {got}; "
            "give the images that analysis.interpolate had"
        )
    return [ends[0], paths, ends[1]]


def _ends(blocks: Sequence[Tensor], starts: Sequence[int]) -> dict[str, int]:
    """Return where the framed columns begin: the originals, or the first and the last step."""
    if len(blocks) == 3:
        return {"first": starts[0], "last": starts[2]}
    return {"first": 0, "last": (blocks[0].shape[1] - 1) * (blocks[0].shape[-1] + GAP)}


def _name_columns(ax: Axes, blocks: Sequence[Tensor], starts: Sequence[int], ends: Mapping[str, int]) -> None:
    width, steps = blocks[0].shape[-1], blocks[len(blocks) // 2].shape[1]
    first, last = (place + (width - 1) / 2 for place in ends.values())
    path = PATH.format(steps) if steps > 6 else "decoded"
    if len(blocks) == 3:
        ax.set_xticks([first, (first + last) / 2, last], ["original", path, "original"])
    else:
        ax.set_xticks([first, last], ["first", "last"])


def _below(pictures: Sequence[np.ndarray]) -> tuple[np.ndarray, list[int]]:
    """Join pictures of one shape, one below the other and further apart than images; return also where each begins."""
    apart = np.ones((max(2 * GAP, len(pictures[0]) // 8), *pictures[0].shape[1:]), pictures[0].dtype)
    joined = np.concatenate([part for picture in pictures for part in (picture, apart)][:-1])
    return joined, [i * (len(pictures[0]) + len(apart)) for i in range(len(pictures))]


def _beside(pictures: Sequence[np.ndarray], width: int) -> tuple[np.ndarray, list[int]]:
    """Join pictures of one height, half an image's width apart, from left to right; return also where each begins."""
    apart = np.ones((len(pictures[0]), GAP + width // 2, *pictures[0].shape[2:]), pictures[0].dtype)
    starts = [sum(before.shape[1] + apart.shape[1] for before in pictures[:i]) for i in range(len(pictures))]
    return np.concatenate([part for picture in pictures for part in (picture, apart)][:-1], axis=1), starts


def _scale(images: Tensor, cell: float) -> float:
    """Return the inches of a pixel for images that are ``cell`` inches high or wide."""
    return cell / max(images.shape[-2:])


def _middle(row: float, height: int) -> float:
    """Return the middle of a row of images of this height."""
    return (height + GAP) * row + (height - 1) / 2


def _draw(
    ax: Axes | None,
    picture: np.ndarray,
    scale: float,
    places: Sequence[tuple[str, float]] = (),
    title: str = "",
    beside: float = 0.0,
    below: float = 0.0,
) -> Axes:
    """Show a picture, with names at places beside it, in axes or in a new figure of that size."""
    names = [name for name, _ in places]
    beside += 0.3 + (0.1 + 0.1 * max(8, *map(len, names)) if names else 0.0)
    height, width = picture.shape[:2]
    drawn = panel(ax, width * scale + beside, height * scale + below + 0.3 + 0.3 * bool(title), "compressed")
    drawn.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    drawn.spines[:].set_visible(False)
    drawn.set_yticks([place for _, place in places], names)
    drawn.set_xticks([])
    drawn.tick_params(length=0, pad=6)
    drawn.set_title(title, fontsize="medium")
    return drawn


def _channels(images: Tensor) -> int:
    """Return how many pictures show an image: one, or one per channel if it is neither grey nor RGB."""
    return 1 if images.shape[2] in (1, 3) else images.shape[2]


def _ticks(names: Sequence[str], rows: int, channels: int) -> dict[str, float]:
    """Return the labels beside the rows of pictures and their rows: names, channels or both."""
    if channels == 1:
        return {name: row for row, name in enumerate(names)}
    if not names:
        return {f"channel {i + 1}": i * rows + (rows - 1) / 2 for i in range(channels)}
    return {f"{name}, channel {i + 1}": i * rows + row for i in range(channels) for row, name in enumerate(names)}
