"""Thumbnails hold the first images, small, whatever their shape."""

import base64
import io
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from pyro_vae.data.thumbnails import SIDE, thumbnails


def picture(html):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(html.split("base64,")[1].split('"')[0]))))


def test_images_stand_side_by_side():
    images = torch.randint(256, (12, 1, 6, 5), dtype=torch.uint8)
    shown = picture(thumbnails(images))
    assert shown.shape == (8, 70)
    for number in range(10):
        assert np.array_equal(shown[1:7, 7 * number + 1 : 7 * number + 6], images[number, 0])


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_any_number_of_channels(channels):
    images = torch.randint(256, (2, channels, 6, 5), dtype=torch.uint8)
    shown = picture(thumbnails(images))
    assert np.array_equal(shown[1:7, 1:6], images[0].movedim(0, -1) if channels == 3 else images[0, 0])


def test_large_images_are_thinned_out():
    html = thumbnails(torch.randint(256, (20, 3, 500, 300), dtype=torch.uint8))
    assert max(picture(html).shape[0], picture(html).shape[1] // 10) <= SIDE + 2


def test_without_pillow_there_are_none(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert thumbnails(torch.zeros(1, 1, 2, 2, dtype=torch.uint8)) == ""
