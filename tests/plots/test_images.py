"""Figures of images hold the images that they were given."""

import itertools

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from pyro_vae import plots


def test_pictures_hold_the_images_that_were_given():
    images = torch.rand(6, 1, 8, 8)
    shown = np.asarray(plots.samples(images, columns=3).axes[0].images[0].get_array())
    for number, image in enumerate(images):
        row, column = divmod(number, 3)
        block = shown[row * 10 : row * 10 + 8, column * 10 : column * 10 + 8]
        assert np.allclose(block, image[0])


@pytest.mark.parametrize("channels", [2, 4, 5])
def test_channels_that_are_no_colours_are_drawn_one_under_the_other(channels):
    images = torch.rand(6, channels, 8, 8)

    def block(shown, row, column, gap=2):
        return shown[row * (8 + gap) : row * (8 + gap) + 8, column * (8 + gap) : column * (8 + gap) + 8]

    (axes,) = plots.samples(images, columns=3).axes  # two rows
    shown = np.asarray(axes.images[0].get_array())
    for (number, image), channel in itertools.product(enumerate(images), range(channels)):
        assert np.allclose(block(shown, 2 * channel + number // 3, number % 3), image[channel])
    (axes,) = plots.reconstructions(images, 1 - images, columns=6).axes
    shown, names = np.asarray(axes.images[0].get_array()), [label.get_text() for label in axes.get_yticklabels()]
    for row, place in enumerate(axes.get_yticks()):
        name, channel = names[row].split(", channel ")
        expected = images[4, int(channel) - 1]
        assert np.allclose(block(shown, row, 4), expected if name == "original" else 1 - expected)
        assert row * 10 < place < row * 10 + 8
    grid = images.reshape(2, 3, channels, 8, 8)
    shown = np.asarray(plots.manifold(grid).axes[0].images[0].get_array())
    assert np.allclose(block(shown, 2 * (channels - 1) + 1, 2, gap=0), images[5, -1])
    plots.interpolation(grid).draw_without_rendering()


def test_colours_are_drawn_as_colours():
    images = torch.rand(2, 3, 8, 8)
    shown = np.asarray(plots.samples(images).axes[0].images[0].get_array())
    assert np.allclose(shown[:, :8], images[0].movedim(0, -1))


def test_reconstructions_stand_under_their_originals():
    x, pictures = torch.rand(4, 1, 8, 8), torch.rand(4, 1, 8, 8)
    figure = plots.reconstructions(x, pictures)
    shown = np.concatenate([np.asarray(axes.images[0].get_array()) for axes in figure.axes if axes.images])
    original, picture = (
        [row for row in range(len(shown)) if np.allclose(shown[row, :8], image[0, 0])] for image in (x[0], pictures[0])
    )
    assert len(original) == len(picture) == 1 and original < picture


def test_manifold_and_interpolation_are_figures_that_can_be_saved(tmp_path):
    for name, figure in {
        "manifold": plots.manifold(torch.rand(4, 4, 1, 8, 8)),
        "interpolation": plots.interpolation(torch.rand(2, 5, 1, 8, 8)),
        "rows": plots.image_rows({"a": torch.rand(3, 1, 8, 8), "b": torch.rand(3, 1, 8, 8)}),
    }.items():
        assert isinstance(figure, Figure)
        figure.savefig(tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 1000


def test_what_is_no_image():
    with pytest.raises(ValueError, match="wanted float images"):
        plots.samples(torch.zeros(3, 1, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match="rows: wanted images of one shape in every row"):
        plots.image_rows({"a": torch.rand(3, 1, 8, 8), "b": torch.rand(2, 1, 8, 8)})
