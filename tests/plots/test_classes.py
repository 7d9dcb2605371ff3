"""Labels of points: any labels have a look of their own, unknown ones another, and all are explained."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

from pyro_vae import plots
from pyro_vae.plots.classes import Classes
from pyro_vae.plots.style import COLOURS, UNKNOWN


def legend_of(figure):
    legend = figure.axes[0].get_legend()
    marks = [(mark.get_marker(), to_hex(mark.get_color())) for mark in legend.legend_handles]
    return dict(zip([text.get_text() for text in legend.get_texts()], marks))


def test_unknown_labels_are_drawn_apart_and_below():
    labels = torch.tensor([-1, 0, 1, -1, 1])
    codes = torch.randn(5, 2)
    figure = plots.latent_plane(codes, labels, classes=("cat", "dog"))
    below, above = figure.axes[0].collections
    assert np.allclose(below.get_offsets(), codes[labels == -1]) and np.allclose(
        above.get_offsets(), codes[labels >= 0]
    )
    expected = {"cat": COLOURS[0], "dog": COLOURS[1], "unknown": UNKNOWN}
    assert {name: colour for name, (_, colour) in legend_of(figure).items()} == {
        name: colour.lower() for name, colour in expected.items()
    }
    assert all(legend_of(plots.latent_plane(codes, torch.full((5,), -1))))


def test_a_class_keeps_its_colour_where_others_are_absent():
    names = tuple("abcdefghijklm")
    everything = legend_of(plots.latent_plane(torch.randn(13, 2), torch.arange(13), classes=names))
    part = legend_of(plots.latent_plane(torch.randn(3, 2), torch.tensor([2, 7, 12]), classes=names))
    assert part == {name: everything[name] for name in "chm"}


def test_of_many_classes_neighbours_differ_in_colour_and_mark():
    looks = list(legend_of(plots.latent_plane(torch.randn(62, 2), torch.arange(62) % 31)).values())
    assert len(set(looks)) == 31
    assert all(mark != other for (mark, _), (other, _) in pairwise(looks))


def test_words_are_labels():
    figure = plots.latent_plane(torch.randn(4, 2), np.array(["dog", "cat", "dog", "emu"]), legend="animal")
    assert list(legend_of(figure)) == ["cat", "dog", "emu"]
    assert figure.axes[0].get_legend().get_title().get_text() == "animal"


def test_every_row_is_drawn_once():
    for labels in (np.arange(40) % 3, np.arange(40) % 13 - 1, np.full(40, -1)):
        groups = Classes(labels, 40)
        assert sum(rows.astype(int) for *_, rows in groups.together()).tolist() == [1] * 40
        assert sum(rows.astype(int) for _, rows in groups.each()).tolist() == [1] * 40


def test_labels_that_the_classes_do_not_name():
    for labels, got in (([0, 2], "2"), ([-2, 0], "-2")):
        with pytest.raises(ValueError, match=rf"wanted −1 \(unknown\) or 0 to 1, .* got {got}"):
            Classes(labels, 2, ("cat", "dog"))
    with pytest.raises(ValueError, match="as the labels are words already"):
        Classes(["a", "b"], 2, ("cat", "dog"))


@pytest.mark.parametrize("classes", [("$x$", "$\\nothing{$"), ("$5 to $10", "_b")])
def test_names_of_classes_are_shown_as_they_are(classes):
    """Between two signs of dollar matplotlib reads mathematics, and fails on what is none."""
    figure = plots.latent_plane(torch.randn(6, 2), [0, 1] * 3, classes=classes)
    legend = figure.axes[0].get_legend()
    assert legend is not None
    figure.canvas.draw()
    assert [text.get_text().replace("\\$", "$") for text in legend.get_texts()] == list(classes)


def test_too_many_labels_for_a_legend_have_a_colour_bar_from_the_first_to_the_last():
    labels = np.arange(200) + 5
    figure = plots.latent_plane(torch.randn(200, 2), labels, legend="age")
    bar = figure.axes[1]
    names = [text.get_text() for text in bar.get_yticklabels()]
    assert len(names) == 9 and (names[0], names[-1]) == ("5", "204") and bar.get_ylabel() == "age"
    assert Classes(labels, 200).columns == 1 and figure.axes[0].get_legend() is None
    unknown = plots.latent_plane(torch.randn(200, 2), np.where(labels == 7, -1, labels), legend="age")
    assert unknown.axes[1].get_ylabel() == "age, × unknown"


@pytest.mark.parametrize("count", [4, 6])
def test_as_many_labels_as_codes(count):
    with pytest.raises(ValueError, match=rf"labels: wanted \({count},\), one for each code, got \(5,\)"):
        Classes(np.zeros(5, int), count)
    with pytest.raises(ValueError, match="wanted whole numbers or words"):
        Classes(np.zeros(count), count)
