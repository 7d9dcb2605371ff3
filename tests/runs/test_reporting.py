"""The short table does not mislead."""

import re
from pathlib import Path

import pytest

import pyro_vae as pv
from pyro_vae.evidence import Evidence
from pyro_vae.runs import evidence, reporting
from pyro_vae.runs.arguments import parse_arguments

REPEATED = {"bound": -160.001, "sd_over_draws": 0.0631, "draws": 10, "images": 1666}
METRICS = {
    "dataset": {"note": ""},
    "interrupted": False,
    "settings": {"latent": 2, "activation": "relu", "guide": "meanfield", "conditional": False},
    "engine": "eager",
    "kept_epoch": 2,
    "kept_because": "the best of epochs 1 to 2 on the validation images by the objective of Trace_ELBO with 1 particle",
    "test": {
        "bound": -160.12,
        "standard_error": 0.48,
        "rate": 5.1,
        "distortion": 155.02,
        "images": 10_000,
        "bits_per_dim": 3.2112,
        "bits_per_dim_standard_error": 0.004,
    },
    "evidence": {
        "log_px": -158.4,
        "standard_error": 1.13,
        "images": 1666,
        "num_particles": 50,
        "share_pareto_k_above_0.7": 0.251,
    },
    "estimators": {"Trace_ELBO": REPEATED, "TraceMeanField_ELBO": REPEATED},
    "active_units": 2,
    "rate_per_dimension": [2.6, 2.5],
    "knn_accuracy": 0.612,
    "seconds": {"training": 48.0, "measuring": 22.0, "whole_command": 80.0},
}


def words_of(metrics=METRICS):
    return " ".join(reporting.report(metrics, Path("figures/run")).split())


def test_the_table_fits_a_hundred_columns_and_explains_its_words():
    lines = reporting.report(METRICS, Path("figures/run")).splitlines()
    assert max(map(len, lines)) <= 100 and lines[0].startswith("test bound           -160.12 ± 0.48 nats per image")
    words = words_of()
    for word in ("nats", "rate", "distortion", "particles", "importance sampling", "k̂ measures", "latent dimensions"):
        assert word in words, word
    assert "1666 images of 10000, evenly spread" in words and "1.60 above Trace_ELBO on the same images" in words


def test_a_table_of_an_earlier_version():
    """Its repeated bounds do not say how many images they are of, and its seconds not how long it measured."""
    old = {name: value for name, value in REPEATED.items() if name != "images"}
    seconds = {"training": 48.0, "whole_command": 80.0}
    words = words_of({**METRICS, "estimators": {"Trace_ELBO": old}, "seconds": seconds})
    assert "above Trace_ELBO" not in words and "48 training (eager), 80 in all" in words


def test_the_advice_names_commands_and_calls_that_exist():
    words = words_of()
    assert "Pareto k̂ > 0.7 for 25.1%" in words and Evidence.ADVICE in words
    for call in (pv.annealed_evidence, pv.refit_guide):
        assert call.__name__ in Evidence.ADVICE
    guides = re.findall(r"--guide ([\w-]+)", words)
    assert guides and all(parse_arguments(["--guide", guide]).guide == guide for guide in guides)
    folder = re.search(r"evidence --run (\S+)", words).group(1)
    assert evidence.parse_arguments(["--run", folder]).run == Path("figures/run")


def test_the_advice_does_not_name_what_the_run_has_or_cannot_have():
    settings = {**METRICS["settings"], "guide": "inverse-autoregressive", "conditional": True}
    words = words_of({**METRICS, "settings": settings})
    assert "--guide inverse" not in words and "--guide full-rank" in words and "evidence --run" not in words


@pytest.mark.parametrize(
    ("active", "rates", "says", "warns"),
    [
        (0, 0.01, "0 of 2 USED", "collapsed: 2 of 2 latent dimensions"),
        (0, 8.67, "0 of 2 USED", None),
        (0, [4.1, 4.57], "0 of 2 USED; rate of each 4.57, 4.10 nats", None),
        (2, [1.5, 1.4], "2 of 2 USED; rate of each 1.50, 1.40 nats", None),
        (1, [0.001, 2.0], "rate of each 2.00, 0.00 nats, 1 below 0.05", "collapsed: 1 of 2 latent dimensions"),
        (0, [0.001, 0.0], "rate of each 0.00, 0.00 nats, 2 below 0.05", "collapsed: 2 of 2 latent dimensions"),
        (
            3,
            [2.0] * 3 + [0.0] * 27,
            "3 of 30 USED; rate of each 2.00 to 0.00 nats, 27 below",
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
    used = "latent dimensions are used: their codes differ between images (variance above 0.01)"
    assert rows[0][0] == "active units" and says.replace("USED", used) in rows[0][1]
    assert len(rows) == 1 + bool(warns) and (not warns or (rows[1][0] == "WARNING" and warns in rows[1][1]))
