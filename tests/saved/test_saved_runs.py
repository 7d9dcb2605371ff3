"""What a run keeps of its model: settings in words, and the program itself."""

import json

import pytest
import torch
from saved_programs import CHOSEN, PIXELS, saved

from pyro_vae import evaluate, load_vae
from pyro_vae.config import PartSettings, build_vae
from pyro_vae.saved import METRICS, PARAMETERS, describe_model
from pyro_vae.training import fixed_x

VARIED = [("scale", "shared"), ("scale", "0.3"), ("binarize", "intensity"), ("activation", "silu"), ("classes", 3)]


@pytest.mark.parametrize(("slot", "name"), CHOSEN + VARIED)
def test_what_was_saved_is_loaded(tmp_path, slot, name):
    settings = {slot: name} | ({"lik": "normal"} if slot == "scale" else {})
    vae, state = saved(tmp_path, **settings), torch.get_rng_state()
    again = load_vae(tmp_path)
    assert torch.equal(state, torch.get_rng_state()) and type(again) is type(vae)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in vae.state_dict().items())
    if slot != "classes":
        x = fixed_x(vae, PIXELS)
        assert torch.equal(evaluate(vae, x).bound, evaluate(again, fixed_x(again, PIXELS)).bound)


@pytest.mark.parametrize("layers", [{}, {"channels": (2, 6), "activation": "tanh"}])
def test_conv_networks_with_their_layers(tmp_path, layers):
    settings = PartSettings(latent=7, **layers)
    vae = build_vae(settings, PIXELS)
    metrics, parameters = describe_model(vae, settings, (1, 8, 8))
    (tmp_path / PARAMETERS).write_bytes(parameters)
    (tmp_path / METRICS).write_text(json.dumps(metrics))
    assert metrics["model"]["parts"]["hidden"] == (400,)
    maps = [layer.out_channels for layer in vae.posterior.network.layers if isinstance(layer, torch.nn.Conv2d)]
    back = [layer.in_channels for layer in vae.likelihood.network.layers if isinstance(layer, torch.nn.ConvTranspose2d)]
    assert tuple(maps) == tuple(back[::-1]) == layers.get("channels", (32, 64))
    kinds = {type(layer).__name__ for network in (vae.posterior, vae.likelihood) for layer in network.network.layers}
    assert kinds & {"ReLU", "Tanh", "SiLU"} == {"Tanh" if layers else "ReLU"}
    assert torch.equal(
        load_vae(tmp_path).state_dict()["likelihood.network.layers.0.weight"],
        vae.state_dict()["likelihood.network.layers.0.weight"],
    )
