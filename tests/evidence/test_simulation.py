"""Images that the model draws, with the z that made them."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from evidence_programs import D, P, oracle
from scipy import stats

from pyro_vae.arguments import ProgramArguments
from pyro_vae.evidence.plan import MeasurementPlan
from pyro_vae.evidence.simulation import simulated, values_of


def test_x_and_z_are_drawn_together():
    """(x − W z − b) / 0.7 and z are independent standard normals, and arguments beside x are kept."""
    given, template = oracle(), torch.zeros(2000, P).double()
    torch.manual_seed(0)
    plan = MeasurementPlan.of(given.model, given.guide, ProgramArguments.of((template,)), 1500, 1500)
    batches = list(simulated(given.model, plan))
    assert [len(x) for _, _, x in batches] == [1500, 500] and all(batch.args[0] is x for batch, _, x in batches)
    x = torch.cat([x for _, _, x in batches])
    z = torch.cat([values_of(latent)["z"][0] for _, latent, _ in batches])
    assert z.shape == (2000, D)
    noise = ((x - z @ given.weight.T - given.bias) / given.log_scale.exp()).detach()
    assert stats.kstest(noise.flatten().numpy(), "norm").pvalue > 1e-3
    assert stats.kstest(z.flatten().numpy(), "norm").pvalue > 1e-3


def test_no_images_from_a_model_of_two_observations():
    def model(x):
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
            pyro.sample("y", dist.Normal(z, 1.0), obs=x)

    plan = MeasurementPlan.of(model, None, ProgramArguments.of((torch.zeros(3),)), None, 3)
    with pytest.raises(ValueError, match="wanted one that observes the first argument"):
        list(simulated(model, plan))
