"""The densities of a path and their gradients, eager and compiled, and programs along which there is no path."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from evidence_programs import COUNTS, EAGER, PROGRAMS, images, program, programs, rough

from pyro_vae.compiling import Graphs
from pyro_vae.evidence import LocalProposal, annealed_evidence, log_evidence
from pyro_vae.evidence.path import AnnealingPath

SETTING = {"num_temperatures": 60, "leapfrog": 3, "chains": 40, "seed": 0, **EAGER}


def test_densities_of_the_path_and_their_gradients():
    program = rough()
    x = images(program, 3)
    path = AnnealingPath(program.model, program.guide, (x,))
    point = path(path.draw(4))
    z = point.z.clone().requires_grad_()
    joint = program.prior().log_prob(z) + program.likelihood(z).log_prob(x)
    start = program.posterior(x).log_prob(z)
    target = 0.7 * start + 0.3 * joint
    torch.testing.assert_close(point.log_density(0.3), target.detach())
    torch.testing.assert_close(point.gradient(0.3), torch.autograd.grad(target.sum(), z)[0])


def test_densities_are_those_of_the_unconstrained_variable():
    """log f_0 of u = log z is log p(z) + u, and Δ is the likelihood; gradients by autograd."""
    latent, likelihood, proposal, x, _ = PROGRAMS["positive"]
    model, guide = program(latent, likelihood, proposal)
    for start, first in ((None, latent(x)), (guide, proposal(x))):
        path = AnnealingPath(model, start, (x,))
        point = path(path.draw(5))
        u = point.z[..., 0].clone().requires_grad_()
        joint = latent(x).log_prob(u.exp()) + likelihood(u.exp()).log_prob(x) + u
        f_0 = first.log_prob(u.exp()) + u
        torch.testing.assert_close(point.log_density(0.3), (0.7 * f_0 + 0.3 * joint).detach())
        gradient = torch.autograd.grad((0.7 * f_0 + 0.3 * joint).sum(), u)[0]
        torch.testing.assert_close(point.gradient(0.3)[..., 0], gradient)


def test_bounds_that_depend_on_another_latent_are_refused():
    def model(x):
        with pyro.plate("rows", len(x)):
            high = pyro.sample("high", dist.LogNormal(0.0, 1.0))
            z = pyro.sample("z", dist.Uniform(0.0, high))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(ValueError, match=r"site 'z' has the support .* depend on another latent site"):
        annealed_evidence(model, None, COUNTS, **SETTING)


@pytest.mark.parametrize("infer", [{}, {"enumerate": "parallel"}])
def test_discrete_latents_are_refused(infer):
    def model(x):
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.3), infer=infer)
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    words = r"'z' is discrete, with the support Boolean\(\)" + (" and is to be enumerated" if infer else "")
    with pytest.raises(ValueError, match=words + ", but Hamiltonian .* sum a discrete variable out"):
        annealed_evidence(model, None, COUNTS, **SETTING)


def test_no_latent_at_all():
    def model(x):
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    with pytest.raises(ValueError, match="no latent site"):
        annealed_evidence(model, None, COUNTS, **SETTING)


@pytest.mark.slow
@pytest.mark.parametrize(
    "model, guide, x, from_guide",
    [(*program, i == 0) for i, program in enumerate(programs())],
    ids=["conv, from the guide", "two layers, from the prior"],
)
def test_compiled_densities_and_gradients_are_the_eager_ones(monkeypatch, quick_compiler, model, guide, x, from_guide):
    monkeypatch.setattr("pyro_vae.evidence.path.WORTH", 0)
    monkeypatch.setattr("pyro_vae.evidence.path.equal_parts", lambda chains: 2)  # on two cores
    args = x if isinstance(x, tuple) else (x,)
    graphs = Graphs(True, 0, "cpu")
    with torch.no_grad():
        for batch in (args, tuple(arg.flip(0) for arg in args)):  # one graph, other arguments
            eager, compiled = (
                AnnealingPath(model, guide if from_guide else None, batch, graphs=of) for of in (None, graphs)
            )
            z = eager.draw(4)
            for one, other in zip(eager(z), compiled(z)):
                torch.testing.assert_close(other, one, atol=1e-5, rtol=1e-5)
    assert len(graphs._graphs) == 1


def of_rows(x, upper, weight):
    """z ~ U(0, upper) and x ~ N(z, 1), with a bound and a weight of each row."""
    with pyro.plate("rows", len(x)), pyro.poutine.scale(scale=weight):
        z = pyro.sample("z", dist.Uniform(torch.zeros_like(upper), upper))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


@pytest.mark.slow
@pytest.mark.parametrize("measure", ["annealed", "local"])
def test_batches_share_a_graph_but_not_the_bounds_and_weights_of_their_rows(quick_compiler, measure):
    x, upper, weight = (torch.linspace(*ends, 8).double() for ends in ((-1, 2), (0.5, 4), (1, 3)))
    found = []
    for engine in ("eager", "compiled"):
        settings = {"chunk": 8, "engine": engine, "progress": False}
        if measure == "annealed":
            result = annealed_evidence(of_rows, None, (x, upper, weight), num_temperatures=30, chains=4, **settings)
        else:
            proposal = LocalProposal(rounds=3, draws=8)
            result = log_evidence(of_rows, None, (x, upper, weight), 500, proposal=proposal, **settings)
        found.append(result.log_px)
    torch.testing.assert_close(found[1], found[0])
    normal = torch.distributions.Normal(0.0, 1.0)
    exact = ((normal.cdf(upper - x) - normal.cdf(-x)) / upper).log()
    assert (found[1] - exact).abs().max() < 0.3


@pytest.mark.parametrize(("draw", "no"), [(lambda n: torch.zeros(n), "latent site"), (lambda n: pyro.sample(
    "z", dist.Normal(torch.zeros(n, 0), 1.0).to_event(1)).sum(-1), "dimension in its latent sites")])  # fmt: skip
def test_a_model_without_anything_latent_is_told_that_nothing_is_to_be_estimated(draw, no):
    def model(x):
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(draw(len(x)), 1.0), obs=x)

    with pytest.raises(ValueError, match=f"the model has no {no}, so that log p"):
        annealed_evidence(model, None, torch.zeros(3), num_temperatures=3)
