"""Masked latent values: which coordinates they are, and programs that use them all the same."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn
from torch.distributions import biject_to

from pyro_vae import annealed_evidence, log_evidence
from pyro_vae.evidence import LocalProposal
from pyro_vae.program import check_program
from pyro_vae.tracing.messages import sample_sites
from pyro_vae.tracing.unscored import check_unused, rerun, scored_values

SEEN = torch.tensor([True, False, True])
X = torch.tensor([0.5, -1.0, 2.0])


class Padded(nn.Module):
    """x ~ N(z, 0.5), z ~ N(0, 1) masked in row 1; x is masked there, or its mean is 0, or neither."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.loc = kind, nn.Parameter(torch.zeros(()))

    def model(self, x):
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([len(x)]).mask(SEEN))
            z = torch.where(SEEN, z, 0.0) if self.kind == "constant" else z
            with poutine.mask(mask=SEEN if self.kind == "masked" else torch.tensor(True)):
                pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(self, x):
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(self.loc + 0.8 * x, 0.45).mask(SEEN))


def latent(model):
    return sample_sites(poutine.trace(model).get_trace(), observed=False)


def test_which_unconstrained_values_are_scored():
    def model():
        with pyro.plate("rows", 3):
            with poutine.mask(mask=SEEN):
                pyro.sample("shares", dist.Dirichlet(torch.ones(4)))
                pyro.sample("pair", dist.Normal(0.0, torch.ones(2)).mask(torch.tensor([True, False])).to_event(1))
            pyro.sample("scale", dist.LogNormal(0.0, 1.0))

    sites = latent(model)
    found = scored_values(sites, {name: biject_to(site["fn"].support) for name, site in sites.items()})
    assert found["shares"].shape == (3, 3) and found["shares"].tolist() == [[seen] * 3 for seen in SEEN.tolist()]
    assert found["pair"].tolist() == [[seen, False] for seen in SEEN.tolist()]
    assert found["scale"].tolist() == [True] * 3
    assert scored_values({"scale": sites["scale"]}, {"scale": biject_to(dist.constraints.positive)}) is None


@pytest.mark.parametrize("kind", ["masked", "constant"])
def test_masked_values_that_are_not_used_pass(kind):
    program, numbers = Padded(kind), torch.get_rng_state()
    trace = poutine.trace(program.model).get_trace(X)
    torch.set_rng_state(numbers)
    check_unused(lambda values: rerun(program.model, values, (X,)), trace)
    assert torch.equal(numbers, torch.get_rng_state())
    check_program(program, X)
    exact = dist.Normal(0.0, 1.25**0.5).log_prob(X)
    exact[1] = 0.0 if kind == "masked" else dist.Normal(0.0, 0.5).log_prob(X[1])
    settings = {"engine": "eager", "progress": False}
    found = [
        log_evidence(program.model, program.guide, X, 2000, proposal=p, **settings) for p in (None, LocalProposal())
    ]
    found.append(annealed_evidence(program.model, program.guide, X, num_temperatures=20, chains=64, **settings))
    for evidence in found:
        assert (evidence.log_px - exact).abs().max() < 0.1


@pytest.mark.parametrize(
    "measure",
    [
        lambda p: check_program(p, X),
        lambda p: log_evidence(p.model, p.guide, X, 10, progress=False),
        lambda p: log_evidence(p.model, p.guide, X, 10, proposal=LocalProposal(), progress=False),
        lambda p: annealed_evidence(p.model, p.guide, X, num_temperatures=2, chains=2, progress=False),
    ],
    ids=["check_program", "importance", "local", "annealed"],
)
def test_a_density_of_masked_values_is_refused(measure):
    with pytest.raises(ValueError, match=r"site 'x' depends on values of z that are masked.* torch\.where\(mask, z, 0"):
        measure(Padded("used"))
