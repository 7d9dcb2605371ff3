"""Programs from words: every part has a record, takes its settings, and no others."""

import pytest
import torch
from saved_programs import CHOSEN, PIXELS

from pyro_vae.config import (
    SETTINGS,
    TAKEN_BY,
    PartSettings,
    build_vae,
)
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
