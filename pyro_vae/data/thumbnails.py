"""A few pictures of a data set as one small PNG inside HTML, for notebooks."""

import base64
import io

import numpy as np
from torch import Tensor

SIDE = 64  # pixels of a thumbnail, at most: larger images are thinned out
FEW = 10


def thumbnails(images: Tensor) -> str:
    """Return an HTML picture of the first ten images (N, C, H, W), uint8; nothing where Pillow is not installed.

    >>> import torch
    >>> thumbnails(torch.zeros(3, 1, 8, 8, dtype=torch.uint8))[:34]
    '<div><img alt="the first 3 images"'
    """
    try:
        from PIL import Image
    except ImportError:
        return ""
    shown = images[:FEW, :, :: _step(images.shape[2]), :: _step(images.shape[3])]
    rows = shown.detach().cpu().movedim(1, -1).numpy()
    rows = rows if rows.shape[-1] == 3 else rows[..., 0]
    white = [(0, 0), (1, 1), (1, 1), (0, 0)][: rows.ndim]
    picture = np.concatenate(list(np.pad(rows, white, constant_values=255)), axis=1)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="PNG")
    source = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    style = f"height: {SIDE * 3 // 4}px; max-width: 100%; image-rendering: pixelated"
    return f'<div><img alt="the first {len(rows)} images" style="{style}" src="{source}"></div>'


def _step(pixels: int) -> int:
    return max(1, -(-pixels // SIDE))
