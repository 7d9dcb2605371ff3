"""The pictures of a run: which there are, what is drawn when, and what cannot be drawn."""

from dataclasses import replace

import pytest
from programs import FEW, small_vae

from pyro_vae import plots
from pyro_vae.runs import drawing
from pyro_vae.training import History
from pyro_vae.training.history import ROW

pytestmark = pytest.mark.usefixtures("rendered")


def names(latent):
    return [name.removesuffix(".png") for name in drawing.pictures(small_vae(latent), FEW, History())]


def test_only_a_plane_has_a_manifold():
    assert names(2) == list(drawing.PICTURES) and names(3) == [name for name in names(2) if name != "manifold"]


def test_each_is_drawn_when_it_is_called_for(monkeypatch):
    drawn, curves = [], plots.learning_curves
    monkeypatch.setattr(plots, "learning_curves", lambda given: drawn.append(given) or curves(given))
    history = History([dict.fromkeys(ROW, 1.0)])
    pictures = drawing.pictures(small_vae(), FEW, history)
    assert not drawn
    assert pictures["learning_curves.png"]().startswith(b"\x89PNG") and drawn == [history]


def test_no_path_leads_from_a_single_image_to_another():
    data = replace(FEW, test=FEW.test[:1])
    with pytest.raises(ValueError, match="it needs two test images, got one"):
        drawing.pictures(small_vae(), data, History())["interpolation.png"]()
