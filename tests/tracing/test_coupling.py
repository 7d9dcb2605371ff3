"""Coupled noise: opposite, or even, uniform for each particle, and the same in a plate as one after the other."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae.tracing.coupling import Drawn, Run, antithetic, coupled, quasi_random
from pyro_vae.tracing.messages import PARTICLES
from pyro_vae.tracing.paths import Detached, GatedPaths

pytestmark = pytest.mark.usefixtures("float64")
LIKE = torch.zeros((), dtype=torch.float64)


@pytest.mark.parametrize("uniforms", [antithetic, quasi_random])
def test_each_particle_is_uniform_and_elements_are_independent(uniforms):
    u = uniforms(3, (20_000, 2), (2,), LIKE, Run())
    assert u.shape == (3, 20_000, 2, 2)
    columns = u.movedim(1, 0).flatten(1)
    assert (columns.mean(0) - 1 / 2).abs().max() < 0.01 and (columns.var(0) - 1 / 12).abs().max() < 0.003
    for k in range(3):
        correlation = torch.corrcoef(u[k].flatten(1).mT) - torch.eye(4)
        assert correlation.abs().max() < 0.04


def test_pairs_are_opposite_and_an_odd_one_is_alone():
    u = antithetic(5, (4,), (), LIKE, Run())
    torch.testing.assert_close(u[0] + u[1], torch.ones(4))
    torch.testing.assert_close(u[2] + u[3], torch.ones(4))


def test_points_fill_the_square_of_two_sites_and_not_only_their_sides():
    run = Run()
    first, second = (quasi_random(16, (3,), (), LIKE, run) for _ in range(2))
    cells = (4 * first).floor() * 4 + (4 * second).floor()
    assert (cells.sort(0).values == torch.arange(16.0)[:, None]).all()
    for part in (first, second):
        assert ((16 * part).floor().sort(0).values == torch.arange(16.0)[:, None]).all()


def test_parts_of_a_batch_are_paired_at_random():
    """With the points in one order their product would not fall with the number of points."""
    u = quasi_random(64, (4000, 2), (), LIKE, Run()) - 0.5
    product = (u[..., 0] * u[..., 1]).mean(0)
    assert product.var().item() == pytest.approx(1 / 144 / 64, rel=0.15)


def test_more_dimensions_than_the_sequence_has_are_refused():
    with pytest.raises(ValueError, match=r"have 21,202 dimensions.*at most 21,201; take Antithetic"):
        quasi_random(2, (), (21_202,), LIKE, Run())


@pytest.mark.parametrize("draws", [Drawn, Detached, GatedPaths])
def test_sites_are_drawn_from_the_noise_of_their_base(draws):
    step = dist.transforms.affine_autoregressive(2, [8])
    loc = torch.tensor([0.5, -1.0], requires_grad=True)

    def guide():
        with pyro.plate(PARTICLES, 2, dim=-2), pyro.plate("rows", 3):
            plain = pyro.sample("plain", dist.Normal(loc, 2.0).to_event(1))
            flow = pyro.sample("flow", dist.TransformedDistribution(dist.Normal(loc, 1.0).to_event(1), [step]))
        return plain, step.inv(flow)

    plain, base = coupled(antithetic, 2, draws())(guide)()
    torch.testing.assert_close(plain.sum(0), (2 * loc).expand(3, 2))
    torch.testing.assert_close(base.sum(0), (2 * loc).expand(3, 2))


def test_particles_one_after_the_other_share_their_noise():
    def guide():
        return pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))

    one_by_one = coupled(antithetic, 2, Drawn())(guide)
    values = [one_by_one() for _ in range(4)]
    torch.testing.assert_close(values[0], -values[1])
    torch.testing.assert_close(values[2], -values[3])
    assert not torch.allclose(values[0], values[2])
