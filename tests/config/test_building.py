"""Settings of programs are checked, and describe one program each, with or without classes."""

import pytest
import torch
from saved_programs import PIXELS

from pyro_vae import VAE
from pyro_vae.conditional import Conditional
from pyro_vae.config import SLOTS, PartSettings, build_vae, hidden
from pyro_vae.records import MOST_LAYERS


@pytest.mark.parametrize("slot", SLOTS, ids=lambda slot: slot.name)
def test_a_word_without_a_record_is_no_other_part(slot):
    settings = PartSettings(net="mlp", hidden=(16,))
    setattr(settings, slot.name, "forgotten")
    with pytest.raises(KeyError, match="forgotten"):
        build_vae(settings, PIXELS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guide": ["planar"]}, "guide: wanted one of meanfield"),
        ({"scale": 3}, "scale: wanted a word, got 3"),
        ({"latent": None}, "latent: wanted a whole number from 1 to 1048576, got None"),
        ({"flow_depth": 1001}, "flow_depth: wanted a whole number from 1 to 1000"),
        ({"channels": (1, 2.0)}, "channels: wanted a whole number"),
        ({"hidden": (1,) * (MOST_LAYERS + 1)}, "hidden: wanted a tuple of at most 100 numbers"),
        ({"hidden": 5}, "hidden: wanted a tuple"),
        ({"temperature": 1}, "settings: wanted some of lik, .*, classes, got temperature"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        PartSettings(**settings)


@pytest.mark.parametrize(
    "net, latent, given, widths",
    [
        ("conv", 2, None, (256, 256)),
        ("conv", 6, None, (400,)),
        ("mlp", 2, None, (400,)),
        ("conv", 2, (), ()),
        ("mlp", 6, (7, 5), (7, 5)),
    ],
)
def test_dense_layers(net, latent, given, widths):
    assert hidden(PartSettings(net=net, latent=latent, hidden=given)) == widths


@pytest.mark.parametrize("net", ["conv", "mlp"])
def test_classes_make_a_program_of_images_and_classes(net):
    settings = {"net": net, "latent": 5, "channels": (2, 3)}
    program, usual = build_vae(PartSettings(classes=3, **settings), PIXELS), build_vae(PartSettings(**settings), PIXELS)
    assert type(program) is Conditional and type(usual) is VAE and program.classes == 3
    y = torch.tensor([0, 2])
    assert program.model(None, y).shape == (2, *PIXELS.shape[1:])
    assert program.guide(torch.rand(2, *PIXELS.shape[1:]), y).shape == (2, 5)
    widths = [[len(p) for p in part.likelihood.parameters()] for part in (program, usual)]
    assert widths[0] == widths[1]  # those of 5 latent dimensions, whatever the number of classes
    with pytest.raises(ValueError, match="--prior vamp: its pseudo-inputs have no class; with --conditional choose"):
        build_vae(PartSettings(classes=3, prior="vamp", components=2, **settings), PIXELS)
