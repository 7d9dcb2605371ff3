"""Estimators by their words: each has a record, and takes its options and no others."""

import argparse
import inspect

import pytest
from pyro.infer import ELBO

from pyro_vae import estimators
from pyro_vae.config import ESTIMATOR, ESTIMATORS, PARTICLES, build_estimator
from pyro_vae.records import taken_by


def test_every_estimator_has_a_record():
    settings = argparse.Namespace(particles=2, free_bits=0.3, alpha=0.25, temperature=0.5, elbo_share=0.5)
    made = {type(build_estimator(argparse.Namespace(estimator=word), particles=2)) for word in ESTIMATORS}
    defined = {
        value
        for _, value in inspect.getmembers(estimators, inspect.isclass)
        if issubclass(value, ELBO) and value.__module__.startswith("pyro_vae") and not inspect.isabstract(value)
    }
    of_own_loops = {value for value in defined if getattr(value, "keeps_state", False)}
    assert defined - of_own_loops <= made and len(of_own_loops) == 1
    for word, part in ESTIMATORS.items():
        takes = word in taken_by(ESTIMATOR)["particles"]["estimator"]
        assert takes == (PARTICLES in part.options)
        assert not takes or part(settings).num_particles == 2
    with pytest.raises(ValueError, match="--particles: wanted at least 1, got 0"):
        build_estimator(argparse.Namespace(estimator="trace", particles=0))
    with pytest.raises(ValueError, match=r"--estimator disarm, whose K is --particles: K: wanted an even .*got 1"):
        build_estimator(argparse.Namespace(estimator="disarm"))


def test_free_bits():
    assert build_estimator(argparse.Namespace(estimator="free-bits", free_bits=0.3, particles=4)).nats == 0.3
    assert build_estimator(argparse.Namespace(estimator="free-bits")).nats == 0.5
    with pytest.raises(ValueError, match=r"nats: got -1\.0, wanted a number of at least zero"):
        build_estimator(argparse.Namespace(estimator="free-bits", free_bits=-1.0))
