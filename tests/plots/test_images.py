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
    with pytest.raises(
        ValueError, match=r"images: wanted float images in \[0, 1\] or uint8, \(N, C, H, W\), got int64"
    ):
        plots.samples(torch.zeros(3, 1, 8, 8, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"got float32 of shape \(3, 8, 8\); give images\[:, None\]"):
        plots.samples(torch.zeros(3, 8, 8))
    with pytest.raises(ValueError, match=r"got whole numbers to 255; write images / 255"):
        plots.samples(255 * torch.eye(8).expand(3, 1, 8, 8))
    with pytest.raises(ValueError, match="wanted finite values, got 192 that are not"):
        plots.samples(torch.full((3, 1, 8, 8), torch.nan))
    with pytest.raises(
        ValueError, match=r"originals: wanted two, .* \(2, 1, 8, 8\), got \(3, 1, 8, 8\) and \(2, 1, 8, 8\)"
    ):
        plots.interpolation(torch.rand(2, 5, 1, 8, 8), (torch.rand(3, 1, 8, 8), torch.rand(2, 1, 8, 8)))
    with pytest.raises(ValueError, match="rows: wanted images of one shape in every row, got no rows"):
        plots.image_rows({})
    with pytest.raises(ValueError, match="rows: wanted images of one shape in every row"):
        plots.image_rows({"a": torch.rand(3, 1, 8, 8), "b": torch.rand(2, 1, 8, 8)})


def test_grey_levels_and_arrays_are_drawn_as_what_they_mean():
    levels = torch.randint(256, (4, 1, 8, 8), dtype=torch.uint8)
    for images in (levels, levels.numpy(), levels / 255, (levels / 255).double().numpy()):
        shown = np.asarray(plots.samples(images).axes[0].images[0].get_array())
        assert np.allclose(shown[:, :8], levels[0, 0] / 255)


def test_both_ends_of_paths_are_framed_and_originals_stand_beside_them():
    first, last, paths = torch.rand(2, 1, 8, 8), torch.rand(2, 1, 8, 8), torch.rand(2, 7, 1, 8, 8)
    (axes,) = plots.interpolation(paths, (first, last)).axes
    shown = np.asarray(axes.images[0].get_array())
    frames = [(round(frame.get_x() + 1), round(frame.get_y() + 1)) for frame in axes.patches]
    framed = [shown[y : y + 8, x : x + 8] for x, y in frames]
    assert np.allclose(framed, torch.cat([first, last])[:, 0])
    names = [label.get_text() for label in axes.get_xticklabels()]
    assert names == ["original", "7 steps between their codes", "original"]
    (axes,) = plots.interpolation(paths[0]).axes
    shown = np.asarray(axes.images[0].get_array())
    frames = [(round(frame.get_x() + 1), round(frame.get_y() + 1)) for frame in axes.patches]
    assert np.allclose([shown[y : y + 8, x : x + 8] for x, y in frames], paths[0, [0, -1], 0])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["first", "last"]
    one = plots.interpolation(paths[0], (first[0], last[0]))  # as analysis.interpolate takes and returns single images
    assert len(one.axes[0].patches) == 2


def test_images_are_drawn_into_axes_that_are_given():
    figure, images = Figure(), torch.rand(6, 1, 8, 8)
    drawn = figure.subplots(2, 2).ravel().tolist()
    assert plots.samples(images, ax=drawn[0]) is drawn[0]
    assert plots.reconstructions(images, images, 3, "title", ax=drawn[1]) is drawn[1]
    assert plots.interpolation(images, ax=drawn[2]) is drawn[2]
    assert plots.manifold(images.reshape(2, 3, 1, 8, 8), ax=drawn[3]) is drawn[3]
    assert all(len(ax.images) == 1 for ax in drawn) and drawn[1].get_title() == "title"
    assert len(drawn[1].get_yticklabels()) == 4  # two blocks of an original and its reconstruction


def test_names_of_rows_lie_in_the_figure():
    rows = {"a row of a rather long name": torch.rand(12, 1, 8, 8), "b": torch.rand(12, 1, 8, 8)}
    for columns in (3, 12):
        figure = plots.image_rows(rows, columns)
        figure.draw_without_rendering()
        boxes = [label.get_window_extent() for label in figure.axes[0].get_yticklabels()]
        assert min(box.x0 for box in boxes) >= 0
        assert max(box.x1 for box in boxes) <= figure.axes[0].get_window_extent().x0


@pytest.mark.parametrize("columns", [0, -1])
def test_rows_of_no_images(columns):
    with pytest.raises(ValueError, match="columns: wanted a whole number of at least 1"):
        plots.samples(torch.rand(4, 1, 8, 8), columns=columns)
