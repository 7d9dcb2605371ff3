"""Numbers in [0, 1] become the nearest grey level, and 0 and 1 stay what they are."""

import numpy as np
import pytest
import torch

from pyro_vae.data.levels import channels_first, grey_levels, recognised, rounded


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_every_level_comes_back(dtype):
    levels = np.arange(256)
    assert np.array_equal(rounded((levels / 255).astype(dtype)), levels)
    values = np.linspace(0, 1, 10_001)
    assert np.abs(rounded(values) - 255 * values).max() <= 0.5 + 1e-9


def test_binary_images_stay_binary():
    images = grey_levels({"train": np.eye(4)[None]})["train"]
    assert images.unique().tolist() == [0, 255] and images.shape == (1, 1, 4, 4)


def test_uint8_is_not_copied():
    images = torch.zeros(3, 1, 4, 4, dtype=torch.uint8)
    images[0] = 200
    assert grey_levels({"train": images})["train"].data_ptr() == images.data_ptr()


@pytest.mark.parametrize(
    ("shape", "layout"),
    [((9, 28, 28, 1), "NHWC"), ((9, 218, 178, 3), "NHWC"), ((9, 1, 28, 28), "NCHW"), ((9, 4, 8, 8), "NCHW")],
)
def test_layouts(shape, layout):
    assert recognised(shape) == layout
    rows = torch.zeros(shape)
    assert channels_first(rows, layout).shape[1] == (shape[-1] if layout == "NHWC" else shape[1])


@pytest.mark.parametrize("shape", [(9, 16, 16, 20), (9, 9, 8, 2), (9, 4, 8, 3)])
def test_layouts_that_are_asked_about(shape):
    with pytest.raises(ValueError, match=r"images of shape .*: are they"):
        recognised(shape)
