"""Programs from words: every part has a record, takes its settings and no others, and settings are checked."""

import argparse
import inspect

import pytest
import torch
from pyro.infer import ELBO
from saved_programs import CHOSEN, PIXELS

from pyro_vae import estimators
from pyro_vae.config import (
    ESTIMATOR,
    ESTIMATORS,
    PARTICLES,
    SETTINGS,
    SLOTS,
    TAKEN_BY,
    PartSettings,
    build_estimator,
    build_vae,
    hidden,
)
from pyro_vae.records import MOST_LAYERS, taken_by
from pyro_vae.training import fixed_x


def another(option):
    """A value that is neither the option's default nor what the test's settings have."""
    if option.choices:
        return next(word for word in option.choices if word != option.default)
    values = {"components": 3, "scale": "0.3", "channels": (2, 3), "flow_width": 9}
    return values[option.name] if option.name in values else option.type(option.default + 1)


@pytest.mark.parametrize(("slot", "word"), CHOSEN)
def test_a_part_takes_a_setting_if_and_only_if_another_value_makes_another_program(slot, word):
    def program(**settings):
        torch.manual_seed(0)
        vae = build_vae(
            PartSettings(**{"net": "mlp", "hidden": (16,), "components": 5, "latent": 3, slot: word, **settings}),
            PIXELS,
        )
        x = fixed_x(vae, PIXELS)
        with torch.no_grad():
            return [*vae.state_dict().values(), x, vae.likelihood(torch.ones(len(x), 3)).log_prob(x)]

    usual = program()
    for setting in TAKEN_BY:
        other = program(**{setting: another(SETTINGS[setting])})
        same = len(usual) == len(other) and all(torch.equal(a, b) for a, b in zip(usual, other))
        # The settings here have a Bernoulli, a standard normal, a mean-field guide and an MLP in the other slots.
        taken = word in TAKEN_BY[setting].get(slot, ()) or (setting == "binarize" and slot != "lik")
        assert same != taken, setting


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
        ({"temperature": 1}, "settings: wanted some of lik, .*, latent, got temperature"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        PartSettings(**settings)


def test_every_estimator_has_a_record():
    settings = argparse.Namespace(particles=2)
    made = {type(build_estimator(argparse.Namespace(estimator=word), particles=2)) for word in ESTIMATORS}
    defined = {
        value
        for _, value in inspect.getmembers(estimators, inspect.isclass)
        if issubclass(value, ELBO) and value.__module__.startswith("pyro_vae") and not inspect.isabstract(value)
    }
    assert defined <= made
    for word, part in ESTIMATORS.items():
        takes = word in taken_by(ESTIMATOR)["particles"]["estimator"]
        assert takes == (PARTICLES in part.options)
        assert not takes or part(settings).num_particles == 2
    with pytest.raises(ValueError, match="--particles: wanted at least 1, got 0"):
        build_estimator(argparse.Namespace(estimator="trace", particles=0))


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
