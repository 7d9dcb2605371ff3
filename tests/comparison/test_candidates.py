"""The estimators that are raced where none are given."""

import pytest

from pyro_vae.comparison import candidates
from pyro_vae.comparison.racing import target_of


def test_each_number_of_particles_has_its_own_bound_and_the_elbo_all():
    found = candidates([1, 2, 3])
    assert {target_of(elbo) for elbo in found.values()} == {None, "ELBO", "L_2", "L_3"}
    assert "DisARM, K = 2" in found and "DisARM, K = 3" not in found
    assert all(found[f"{kind}, K = 3"].num_particles == 3 for kind in ("STL", "IWAE", "DReG", "GDReG", "OVIS"))


def test_by_default_they_have_1_4_and_16_particles():
    assert {elbo.num_particles for elbo in candidates().values()} == {1, 4, 16}


def test_biased_ones_claim_no_gradient():
    found = candidates()
    assert {name for name, elbo in found.items() if target_of(elbo) is None} == {"straight-through", "ReinMax"}


def test_particles_are_whole_numbers():
    with pytest.raises(ValueError, match="particles: wanted a whole number"):
        candidates([1.5])
