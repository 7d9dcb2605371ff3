"""Figures show themselves in notebooks, once, and pyplot does not know them."""

import builtins
import importlib
import sys

import matplotlib.pyplot as plt
import pytest
import torch

from pyro_vae import plots
from pyro_vae.plots.figures import Figure, figure_of, new_figure, panel, panels


def formatter(inline):
    """Return IPython's formatter of results, as ``%matplotlib inline`` prepares it if asked."""
    core = pytest.importorskip("IPython.core.formatters")
    formatting = core.DisplayFormatter()
    if inline:
        tools = importlib.import_module("IPython.core.pylabtools")

        class Shell:
            display_formatter = formatting

        tools.select_figure_formats(Shell(), {"png"})
    return formatting


@pytest.mark.parametrize("inline", [False, True])
def test_a_notebook_shows_a_figure_once(inline):
    before = plt.get_fignums()
    figure = plots.samples(torch.rand(4, 1, 8, 8))
    data, sizes = formatter(inline).format(figure)
    assert set(data) == {"text/plain", "image/png"}
    assert inline or sizes["image/png"]["width"] == round(figure.get_figwidth() * 96)
    assert plt.get_fignums() == before  # pyplot shows what it knows at the end of a cell


def test_all_plots_make_this_figure():
    images, codes = torch.rand(4, 1, 8, 8), torch.randn(9, 2)
    for figure in (
        plots.samples(images),
        plots.reconstructions(images, images),
        plots.interpolation(images),
        plots.manifold(images[None]),
        plots.latent_plane(codes),
        plots.aggregate_posterior(codes, codes),
    ):
        assert type(figure) is Figure and figure._repr_png_()[0].startswith(b"\x89PNG")


def test_without_matplotlib_the_error_names_the_extra(monkeypatch):
    for name in [name for name in sys.modules if name.startswith(("pyro_vae.plots.", "matplotlib"))]:
        monkeypatch.delitem(sys.modules, name)
    imported = builtins.__import__

    def without(name, *args, **kwargs):
        if name.partition(".")[0] == "matplotlib":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    for name in ("samples", "latent_plane", "learning_curves"):
        with pytest.raises(
            ModuleNotFoundError, match=r"needs matplotlib.*; install it by pip install 'pyro_vae\[plots\]'"
        ):
            getattr(plots, name)
    importlib.import_module("pyro_vae.comparison.results")


def test_panels_are_a_row_of_a_new_figure_or_those_that_are_given():
    made = panels(None, 3, 6.0, 2.0)
    figure = figure_of(made[0])
    assert figure.axes == made and figure.get_size_inches().tolist() == [6.0, 2.0]
    assert panels(figure.axes, 3, 6.0, 2.0) == made and panels(made[1], 1, 6.0, 2.0) == [made[1]]
    for wrong, got in ((made[:2], 2), ([*made[:2], None], 3)):
        with pytest.raises(ValueError, match=f"axes: wanted 3 axes of matplotlib, one for each panel, got {got}"):
            panels(wrong, 3, 6.0, 2.0)


def test_axes_of_a_part_of_a_figure_belong_to_the_whole():
    whole = new_figure(4.0, 3.0)
    _, right = whole.subfigures(1, 2)
    ax = right.subplots()
    assert figure_of(ax) is whole and panel(ax, 1.0, 1.0) is ax
    assert figure_of(panel(None, 5.0, 4.0)).get_size_inches().tolist() == [5.0, 4.0]
