"""The latent plane shows its data: points, labels, axes."""

import numpy as np
import pytest
import torch

from pyro_vae import plots


def points_of(axes):
    """Return the number of points of an axes."""
    scattered = [np.asarray(collection.get_offsets()) for collection in axes.collections]
    return sum(len(offsets) for offsets in scattered if offsets.shape[-1] == 2)


def texts(figure):
    legends = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    return legends + [text.get_text() for axes in figure.axes for text in axes.texts]


def test_latent_plane_shows_every_code_and_a_legend_of_all_labels():
    codes, labels = torch.randn(100, 2), torch.arange(100) % 10
    figure = plots.latent_plane(codes, labels)
    (axes,) = figure.axes
    drawn = np.concatenate([np.asarray(collection.get_offsets()) for collection in axes.collections])
    assert np.allclose(sorted(drawn.tolist()), sorted(codes.tolist()))
    assert texts(figure) == [str(digit) for digit in range(10)]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("$z_1$", "$z_2$")
    colours = np.concatenate([collection.get_facecolor() for collection in axes.collections])
    assert len(np.unique(colours, axis=0)) == 10


@pytest.mark.parametrize(
    "labels",
    [
        range(1, 27),
        range(47),
        [-1, 0, 1],
        [3, 500, 10**6],
        range(9, 20),
        [0, 9],
        range(100),
        range(300),
    ],
    ids=lambda labels: f"{len(labels)} labels from {labels[0]}",
)
@pytest.mark.parametrize("dims", [1, 2])
def test_any_labels_have_a_colour_each_and_are_explained(labels, dims):
    labels = torch.tensor(list(labels))
    codes = torch.randn(2 * len(labels), dims)
    twice = labels.repeat(2)
    for figure in (plots.latent_plane(codes, twice), plots.aggregate_posterior(codes, codes, twice)):
        axes = figure.axes[0]
        if dims == 2:
            colours = axes.collections[0].get_facecolor()
            assert np.array_equal(colours[: len(labels)], colours[len(labels) :])  # the same label, the same colour
        else:
            colours = np.array([line.get_edgecolor() for line in axes.patches])
        assert len(np.unique(colours, axis=0)) == min(len(labels), 256)  # a colour map has 256
        if len(labels) <= 60:
            assert texts(figure) == [str(int(label)) for label in labels]
        else:  # read off a colour bar
            shown = [int(text.get_text()) for text in figure.axes[-1].get_yticklabels()]
            assert (shown[0], shown[-1]) == (labels[0], labels[-1]) and shown == sorted(shown)


def test_a_legend_of_many_labels_lies_beside_the_points_and_in_the_figure():
    torch.manual_seed(0)
    for count in (26, 60):
        figure = plots.latent_plane(torch.randn(count, 2), torch.arange(count))
        figure.draw_without_rendering()
        box, axes = figure.legends[0].get_window_extent(), figure.axes[0].get_window_extent()
        assert box.x0 >= axes.x1 and figure.bbox.x1 >= box.x1 and box.y0 >= 0 and box.y1 <= figure.bbox.y1
        assert axes.width > 0.5 * figure.bbox.width


def test_codes_that_are_all_the_same_are_drawn():
    for dims in (1, 2, 5):
        assert plots.latent_plane(torch.ones(4, dims), torch.tensor([3, 3, 1, 1])).axes


def test_codes_of_many_dimensions_are_shown_by_their_principal_components():
    codes = torch.randn(200, 5) * torch.tensor([5.0, 3.0, 0.1, 0.1, 0.1])
    (axes,) = plots.latent_plane(codes).axes
    assert axes.get_xlabel() == "first principal component" and "%" in axes.get_title()
    spread = np.asarray(axes.collections[0].get_offsets()).std(0)
    assert spread == pytest.approx(codes[:, :2].std(0, correction=0).numpy(), rel=0.05)


def test_aggregate_posterior_and_prior_share_their_axes():
    figure = plots.aggregate_posterior(torch.randn(50, 2), torch.randn(60, 2) * 3)
    first, second = figure.axes[:2]
    assert first.get_xlim() == second.get_xlim() and first.get_ylim() == second.get_ylim()
    assert points_of(second) >= 60


def test_codes_and_labels_that_cannot_be_drawn():
    with pytest.raises(ValueError, match="one number of dimensions, got 2 and 3"):
        plots.aggregate_posterior(torch.zeros(3, 2), torch.zeros(3, 3))
    with pytest.raises(ValueError, match="codes"):
        plots.latent_plane(torch.zeros(3, 2), torch.zeros(4))
    with pytest.raises(ValueError, match=r"labels: wanted whole numbers, got torch.float32; write labels.long\(\)"):
        plots.latent_plane(torch.zeros(3, 2), torch.zeros(3))
