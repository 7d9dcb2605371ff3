"""The short table does not mislead."""

import pytest

from pyro_vae.runs import reporting


@pytest.mark.parametrize(
    ("active", "rates", "says", "warns"),
    [
        (0, 0.01, "0 of 2 (variance of the code above 0.01)", "collapsed: 2 of 2 latent dimensions"),
        (0, 8.67, "0 of 2 (variance of the code above 0.01)", None),
        (0, [4.1, 4.57], "0 of 2 (variance of the code above 0.01); rate per unit 4.57, 4.10 nats", None),
        (2, [1.5, 1.4], "2 of 2 (variance of the code above 0.01); rate per unit 1.50, 1.40 nats", None),
        (1, [0.001, 2.0], "rate per unit 2.00, 0.00 nats, 1 below 0.05", "collapsed: 1 of 2 latent dimensions"),
        (0, [0.001, 0.0], "rate per unit 0.00, 0.00 nats, 2 below 0.05", "collapsed: 2 of 2 latent dimensions"),
        (
            3,
            [2.0] * 3 + [0.0] * 27,
            "3 of 30 (variance of the code above 0.01); rate per unit 2.00 to 0.00 nats, 27 below",
            None,
        ),
        (0, [0.0] * 30, "30 below 0.05", "collapsed: 30 of 30 latent dimensions"),
    ],
)
def test_active_units_do_not_mislead(active, rates, says, warns):
    """A number instead of the rates: that of all units together, where the KL has no closed form."""
    alone = isinstance(rates, float)
    settings = {"latent": 2 if alone else len(rates), "activation": "relu"}
    rows = list(
        reporting.unit_rows(
            {
                "active_units": active,
                "rate_per_dimension": None if alone else rates,
                "test": {"rate": rates},
                "settings": settings,
            }
        )
    )
    assert rows[0][0] == "active units" and says in rows[0][1]
    assert len(rows) == 1 + bool(warns) and (not warns or (rows[1][0] == "WARNING" and warns in rows[1][1]))
