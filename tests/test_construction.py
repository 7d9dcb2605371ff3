"""What parts remember of their arguments."""

import copy
import functools
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from pyro_vae import guides, likelihoods, networks, priors
from pyro_vae.construction import Constructed, Partial, Placeholder, Unknown, arguments_of, signature_of


def encoder(**arguments):
    return networks.MLPEncoder((1, 8, 8), **arguments)


def test_defaults_are_included_and_numbers_of_numpy_become_those_of_python():
    assert arguments_of(priors.Flow(np.int64(2), depth=3)) == {
        "latent": 2,
        "steps": priors.autoregressive,
        "depth": 3,
        "width": None,
    }
    assert type(arguments_of(priors.Mixture(np.int64(2), 5))["latent"]) is int


def test_the_arguments_are_those_of_the_class_that_was_made_not_of_its_base():
    assert list(arguments_of(encoder(hidden=[4]))) == ["shape", "hidden", "activation", "scaling"]
    assert arguments_of(encoder(hidden=[4]))["hidden"] == (4,)
    assert arguments_of(networks.Log1p()) == {}


def test_a_module_that_took_the_place_of_another_is_the_argument():
    likelihood = likelihoods.Bernoulli(networks.MLPDecoder(2, (1, 8, 8), maps=1))
    likelihood.network = nn.Identity()
    assert arguments_of(likelihood)["network"] is likelihood.network


def test_a_tensor_is_not_kept_alive():
    guide = guides.MeanField(encoder(hidden=(4,)), 2)
    arguments = arguments_of(priors.Vamp(guide, torch.rand(3, 1, 8, 8)))
    assert arguments["posterior"] is guide and arguments["pseudo_inputs"] == Placeholder(
        (3, 1, 8, 8), torch.float32, False
    )
    learned = likelihoods.Normal(nn.Identity(), nn.Parameter(torch.zeros(())))
    assert arguments_of(learned)["log_scale"] == Placeholder((), torch.float32, True)


def test_functions_without_a_name_are_noted_and_partial_ones_taken_apart():
    assert arguments_of(encoder(activation=lambda: nn.ReLU()))["activation"] == Unknown(
        "the function test_functions_without_a_name_are_noted_and_partial_ones_taken_apart.<locals>.<lambda>"
    )
    arguments = arguments_of(encoder(activation=functools.partial(nn.LeakyReLU, 0.3)))
    assert arguments["activation"] == Partial(nn.LeakyReLU, (0.3,), {})


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda part: pickle.loads(pickle.dumps(part))])
def test_a_copy_remembers_the_same(copied):
    part = encoder(hidden=(4,), activation=lambda: nn.ReLU())
    again = copied(part)
    assert arguments_of(again) == arguments_of(part) and torch.equal(
        again(torch.ones(1, 1, 8, 8)), part(torch.ones(1, 1, 8, 8))
    )


def test_signatures_and_errors_are_those_of_the_class():
    class Own(Constructed):
        def __init__(self, width: int, *layers: nn.Module):
            """Make it."""
            super().__init__()

    assert str(signature_of(Own)) == "(width: int, *layers: torch.nn.modules.module.Module)"
    assert Own.__init__.__doc__ == "Make it." and arguments_of(Own(3)) == {"width": 3, "layers": ()}
    with pytest.raises(TypeError, match=r"__init__\(\) missing 1 required positional argument: 'width'"):
        Own()
