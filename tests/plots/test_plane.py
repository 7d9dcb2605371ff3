"""The latent plane shows its data: points, labels, axes."""

import numpy as np
import pytest
import torch
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from sklearn.decomposition import PCA

from pyro_vae import plots
from pyro_vae.plots import COLOURS, GREY, UNKNOWN


def points_of(axes):
    """Return the number of points of an axes."""
    scattered = [np.asarray(collection.get_offsets()) for collection in axes.collections]
    return sum(len(offsets) for offsets in scattered if offsets.shape[-1] == 2)


def texts(figure):
    legends = [axes.get_legend() for axes in figure.axes if axes.get_legend()]
    return [text.get_text() for legend in legends for text in legend.get_texts()]


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
        [2, 0, 1],
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
            marks = [drawn for drawn in axes.collections if isinstance(drawn, PathCollection)]
            halves = [np.split(mark.get_facecolor(), 2) for mark in marks]
            assert all(np.array_equal(*half) for half in halves)  # the same label, the same colour
            colours = np.concatenate([mark.get_facecolor() for mark in marks])
        else:
            colours = np.array([line.get_edgecolor() for line in axes.patches])
        assert len(np.unique(colours, axis=0)) == min(len(labels), 256)  # a colour map has 256
        if len(labels) <= 60:
            assert texts(figure) == [str(int(label)) for label in sorted(labels)]
        else:  # read off a colour bar
            shown = [int(text.get_text()) for text in figure.axes[-1].get_yticklabels()]
            assert (shown[0], shown[-1]) == (labels[0], labels[-1]) and shown == sorted(shown)


def test_a_legend_of_many_labels_lies_beside_the_points_and_in_the_figure():
    torch.manual_seed(0)
    for count in (26, 60):
        figure = plots.latent_plane(torch.randn(count, 2), torch.arange(count))
        figure.draw_without_rendering()
        (axes,) = figure.axes
        box, axes = axes.get_legend().get_window_extent(), axes.get_window_extent()
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
    for codes in (torch.zeros(3), torch.zeros(3, 2, 2), np.zeros((1, 2)), torch.full((3, 2), torch.nan)):
        with pytest.raises(ValueError, match="codes"):
            plots.latent_plane(codes)
    with pytest.raises(ValueError, match=r"labels: wanted \(3,\), one for each code, got \(4,\)"):
        plots.latent_plane(torch.zeros(3, 2), torch.zeros(4))
    with pytest.raises(ValueError, match=r"whole numbers or words, got torch.float32; write labels.long\(\)"):
        plots.latent_plane(torch.zeros(3, 2), torch.zeros(3))


@pytest.mark.slow
def test_the_plane_is_that_of_scikit_learn():
    codes = np.random.default_rng(0).normal(size=(60, 4)) * [3.0, 2.0, 1.0, 0.5]
    (axes,) = plots.latent_plane(codes).axes
    expected = PCA(2, svd_solver="full").fit(codes)
    np.testing.assert_allclose(axes.collections[0].get_offsets(), expected.transform(codes), atol=1e-9)
    first, second = (f"{100 * share:.0f} %" for share in expected.explained_variance_ratio_)
    assert f"{first} + {second} of the variance" in axes.get_title()


def test_arrays_are_drawn_as_tensors_are():
    codes, labels = torch.randn(30, 2), torch.arange(30) % 3
    drawn = [plots.latent_plane(*given).axes[0] for given in ((codes, labels), (codes.numpy(), labels.tolist()))]
    (first,), (second,) = (axes.collections for axes in drawn)
    assert np.array_equal(first.get_offsets(), second.get_offsets())
    assert np.array_equal(first.get_facecolor(), second.get_facecolor())


def test_axes_that_are_given_are_drawn_in_and_returned():
    codes, labels = torch.randn(30, 2), torch.arange(30) % 3
    figure = Figure()
    first, *two = figure.subplots(1, 3)
    assert plots.latent_plane(codes, labels, "title", ax=first) is first and first.get_title() == "title"
    assert plots.aggregate_posterior(codes, 5 * codes, labels, axes=two) == two
    assert two[0].get_xlim() == two[1].get_xlim() and two[0].get_ylim() == two[1].get_ylim()
    assert [bool(ax.get_legend()) for ax in figure.axes] == [True, False, True]
    with pytest.raises(ValueError, match="ax: wanted one axes of matplotlib, got a list"):
        plots.latent_plane(codes, ax=two)
    with pytest.raises(ValueError, match="axes: wanted 2 axes of matplotlib, one for each panel, got 1"):
        plots.aggregate_posterior(codes, codes, axes=first)


def test_the_prior_has_a_grey_that_no_class_has():
    colours = {to_hex(colour) for colour in COLOURS}
    figure = plots.aggregate_posterior(torch.randn(50, 2), torch.randn(60, 2), torch.arange(50) % 10)
    prior = {to_hex(colour) for colour in figure.axes[1].collections[0].get_facecolor()}
    assert prior == {GREY} and len(colours | {GREY, UNKNOWN.lower()}) == 12


def test_points_of_the_prior_on_a_line_have_no_outline():
    line = torch.linspace(-1, 1, 20)[:, None].expand(20, 2)
    assert len(plots.aggregate_posterior(torch.randn(9, 2), line).axes[1].collections) == 1
