"""Figures of images in rows and grids."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pyro_vae.plots.style import DPI


def manifold(images: Tensor, title: str = "") -> Figure:
    """Draw images on a grid of the latent plane, (side, side, C, H, W): z_1 grows along rows, z_2 from last to first.

    >>> manifold(torch.rand(4, 4, 1, 8, 8)).axes[0].get_xlabel()
    '$z_1$ →'
    """
    _wanted("images", images, 5)
    figure = _canvas(images[None], cell=0.34, gap=0, title=title)
    figure.axes[0].set_xlabel("$z_1$ →")
    figure.axes[0].set_ylabel("$z_2$ →")
    return figure


def samples(images: Tensor, columns: int = 10, title: str = "") -> Figure:
    """Draw images (N, C, H, W) in rows of ``columns``.

    >>> samples(torch.rand(12, 1, 8, 8), columns=6).axes[0].images[0].get_array().shape
    (18, 58)
    """
    _wanted("images", images, 4)
    return _canvas(_in_rows(images, columns)[None], title=title)


def interpolation(images: Tensor, title: str = "") -> Figure:
    """Draw paths from one image to another, (paths, steps, C, H, W), each in a row.

    >>> interpolation(torch.rand(3, 9, 1, 8, 8)).axes[0].images[0].get_array().shape
    (28, 88)
    """
    _wanted("images", images, 5)
    return _canvas(images[None], title=title)


def reconstructions(x: Tensor, pictures: Tensor, columns: int = 10, title: str = "") -> Figure:
    """Draw originals (N, C, H, W) above their reconstructions.

    >>> figure = reconstructions(torch.rand(4, 1, 8, 8), torch.rand(4, 1, 8, 8))
    >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
    ['original', 'reconstruction']
    """
    return image_rows({"original": x, "reconstruction": pictures}, columns, title)


def image_rows(rows: Mapping[str, Tensor], columns: int = 10, title: str = "") -> Figure:
    """Draw named rows of images (N, C, H, W), one below the other; after ``columns`` images a new block begins.

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


def tiled(images: Tensor, gap: int = 2) -> np.ndarray:
    """Return one picture of images (rows, columns, C, H, W) that are ``gap`` white pixels apart.

    Its shape is (H', W', 3) for C = 3, else (H', W'). For C other than 1 and 3 all rows of the first channel come
    first, then those of the next.

    >>> tiled(torch.zeros(1, 2, 1, 1, 2), gap=1)
    array([[0., 0., 1., 0., 0.]], dtype=float32)
    """
    images = torch.cat(images.split(1, dim=2)) if _channels(images) > 1 else images
    rows, columns, channels, height, width = images.shape
    padded = torch.nn.functional.pad(images.detach().cpu().float(), (0, gap, 0, gap), value=1.0)
    picture = padded.permute(0, 3, 1, 4, 2).reshape(rows * (height + gap), columns * (width + gap), channels)
    picture = picture[: picture.shape[0] - gap, : picture.shape[1] - gap].clamp(0, 1).numpy()
    return picture[..., 0] if channels == 1 else picture


def _wanted(name: str, images: Tensor, dims: int) -> None:
    if images.dim() != dims or not images.is_floating_point():
        wanted = "(N, C, H, W)" if dims == 4 else "(rows, columns, C, H, W)"
        raise ValueError(f"{name}: wanted float images {wanted}, got {images.dtype} of shape {tuple(images.shape)}")


def _in_rows(images: Tensor, columns: int) -> Tensor:
    """Reshape (N, C, H, W) to (rows, columns, C, H, W); fill the last row with white."""
    columns = min(columns, len(images))
    blank = images.new_ones(-len(images) % columns, *images.shape[1:])
    return torch.cat([images, blank]).unflatten(0, (-1, columns))


def _canvas(blocks: Tensor, cell: float = 0.62, gap: int = 2, names: Iterable[str] = (), title: str = "") -> Figure:
    """Return a figure of blocks (blocks, rows, columns, C, H, W) below each other, ``cell`` inches per image."""
    count, rows, columns, _, height, width = blocks.shape
    channels = _channels(blocks[0])
    ticks = _ticks(list(names), rows, channels)
    beside, high = (0.4 + 0.1 * max(8, *map(len, ticks)) if ticks else 0.3), channels * rows * cell + 0.2
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
    """Return how many pictures show an image: one, or one per channel if it is neither grey nor RGB."""
    return 1 if images.shape[2] in (1, 3) else images.shape[2]


def _ticks(names: Sequence[str], rows: int, channels: int) -> dict[str, float]:
    """Return the labels beside the rows of pictures and their rows: names, channels or both."""
    if channels == 1:
        return {name: row for row, name in enumerate(names)}
    if not names:
        return {f"channel {i + 1}": i * rows + (rows - 1) / 2 for i in range(channels)}
    return {f"{name}, channel {i + 1}": i * rows + row for i in range(channels) for row, name in enumerate(names)}
