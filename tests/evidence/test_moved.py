"""Chains and fitted proposals that start from guides whose values are made of auxiliary draws, as Pyro's are."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from evidence_programs import COUNTS, EAGER, PROGRAMS, RECORDED, check, program
from pyro import poutine
from pyro.distributions.transforms import Permute
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoGuideList,
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from torch.distributions import transforms

from pyro_vae.evidence import LocalProposal, annealed_evidence, bidirectional, certify, log_evidence
from pyro_vae.evidence.path import AnnealingPath

pytestmark = pytest.mark.filterwarnings("ignore::pyro_vae.evidence.UntrustedEvidence")
SETTING = {"num_temperatures": 60, "leapfrog": 3, "chains": 40, "seed": 0, **EAGER}
JOINT = [AutoDiagonalNormal, AutoMultivariateNormal, AutoLowRankMultivariateNormal]  # one draw for all rows
POSITIVE = program(*PROGRAMS["positive"][:3])[0]


def two(x):
    """w ~ N(0, 1) and s ~ Γ(3, 2), of all rows; x | w, s ~ N(w, s)."""
    w, s = pyro.sample("w", dist.Normal(0.0, 1.0)), pyro.sample("s", dist.Gamma(3.0, 2.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(w, s), obs=x)


def by_quadrature(x):
    """The exact log p(x) of ``two``."""
    w, s = torch.linspace(-5, 5, 801).double()[:, None], torch.linspace(0.0125, 12, 960).double()
    log_p = dist.Normal(0.0, 1.0).log_prob(w) + dist.Gamma(3.0, 2.0).log_prob(s)
    log_p = log_p + sum(dist.Normal(w, s).log_prob(number) for number in x.double())
    return (log_p.logsumexp((0, 1)) + torch.tensor(10 / 800 * 0.0125).double().log()).reshape(1)


@pytest.mark.parametrize("of", [AutoNormal, AutoDiagonalNormal])
def test_densities_are_those_of_the_draws(of):
    """u ~ N(m, s) and z = exp u: log f_0 is that of u, and the target log p(x, z) + u."""
    guide = of(POSITIVE, init_scale=0.7)
    path = AnnealingPath(POSITIVE, guide, (COUNTS,))
    point = path(path.draw(5))
    u = point.z.squeeze(1) if of is AutoDiagonalNormal else point.z[..., 0]
    u = u.clone().requires_grad_()
    loc = guide.loc if of is AutoDiagonalNormal else guide.locs.z
    start = dist.Normal(loc, 0.7).log_prob(u)
    joint = dist.Gamma(2.0, 0.5).log_prob(u.exp()) + dist.Poisson(u.exp()).log_prob(COUNTS) + u
    wanted = (0.7 * start + 0.3 * joint).detach()
    torch.testing.assert_close(point.log_density(0.3), wanted.sum(-1, True) if of is AutoDiagonalNormal else wanted)
    gradient = torch.autograd.grad((0.7 * start + 0.3 * joint).sum(), u)[0]
    torch.testing.assert_close(point.gradient(0.3).reshape(gradient.shape), gradient)
    torch.testing.assert_close(path.log_guide(point.z), start.detach().sum(-1, True) if path.plate is None else start)


@pytest.mark.parametrize("name", PROGRAMS)
def test_latents_of_any_support(name):
    latent, likelihood, proposal, x, exact = PROGRAMS[name]
    model, _ = program(latent, likelihood, proposal)
    guide = AutoNormal(model, init_scale=0.8)
    check(log_evidence(model, guide, x, 1000, proposal=LocalProposal(draws=16), **EAGER), exact(x).double())
    check(annealed_evidence(model, guide, x, **SETTING), exact(x).double(), sees=1.0)


@pytest.mark.parametrize("of", [AutoNormal, *JOINT])
def test_latents_of_all_rows(of):
    x = torch.tensor([0.3, 1.4, -0.2, 0.9])
    guide = of(two, init_scale=0.5)
    evidence = log_evidence(two, guide, x, 2000, proposal=LocalProposal(), **EAGER)
    assert evidence.joint and evidence.trusted.all()
    check(evidence, by_quadrature(x))
    if of in (AutoNormal, AutoMultivariateNormal):
        check(annealed_evidence(two, guide, x, **SETTING), by_quadrature(x), sees=1.0)


def test_draws_beside_sites_of_the_guides_own():
    """w is drawn by a function, and s is made of an auxiliary draw."""

    def own(x):
        pyro.sample("w", dist.Normal(x.mean(), 0.5))

    guide = AutoGuideList(two)
    guide.append(own)
    guide.append(AutoNormal(poutine.block(two, expose=["s"]), init_scale=0.3))
    x = torch.tensor([0.3, 1.4, -0.2, 0.9])
    path = AnnealingPath(two, guide, (x,))
    assert sorted(path.shapes) == ["s_unconstrained", "w"] and path.points == ["s"]
    check(annealed_evidence(two, guide, x, **SETTING), by_quadrature(x), sees=1.0)


def test_bounds_of_one_site_beside_draws_of_another():
    """A bound that is a tensor is compared in a second run of the model, which has no auxiliary draws."""

    def model(x):
        u = pyro.sample("u", dist.Uniform(torch.tensor(-1.0), torch.tensor(3.0)))
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(u + w, 1.0), obs=x)

    def own(x):
        return {"u": pyro.sample("u", dist.Uniform(torch.tensor(-1.0), torch.tensor(3.0)))}

    guide = AutoGuideList(model)
    guide.append(own)
    guide.append(AutoNormal(poutine.block(model, expose=["w"]), init_scale=0.5))
    x, u = torch.tensor([0.3, 1.4]), torch.linspace(-1, 3, 2001).double()
    joint = dist.MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double() + 1)
    exact = torch.trapezoid(joint.log_prob(x.double() - u[:, None]).exp() / 4, u).log().reshape(1)
    check(log_evidence(model, guide, x, 2000, proposal=LocalProposal(), **EAGER), exact)


def test_points_that_are_made_of_points_are_refused():
    guide = AutoGuideList(two)
    guide.append(AutoLaplaceApproximation(poutine.block(two, expose=["w"])))
    guide.append(AutoNormal(poutine.block(two, expose=["s"])))
    with pytest.raises(ValueError, match=r"makes 2 numbers .* of 1 that it draws"):
        annealed_evidence(two, guide, torch.randn(4), **SETTING)


def test_compiled_is_eager(quick_compiler):
    guide = AutoNormal(POSITIVE)
    for measure in (
        lambda how: annealed_evidence(POSITIVE, guide, COUNTS, num_temperatures=4, chains=2, leapfrog=2, **how),
        lambda how: log_evidence(POSITIVE, guide, COUNTS, 50, proposal=LocalProposal(rounds=2, draws=4), **how),
    ):
        torch.testing.assert_close(measure(RECORDED).log_px, measure(EAGER).log_px, rtol=1e-5, atol=1e-5)


def test_parts_that_are_single_points_are_refused():
    guide = AutoGuideList(two)
    guide.append(AutoNormal(poutine.block(two, expose=["w"])))
    guide.append(AutoDelta(poutine.block(two, expose=["s"])))
    with pytest.raises(ValueError, match=r"makes 2 numbers \(sites \['w', 's'\]\) of 1 that it draws .* guide=None"):
        annealed_evidence(two, guide, torch.randn(4), **SETTING)


def test_a_point_beside_a_draw_that_makes_nothing_is_refused():
    def guide(x):
        w, _ = (pyro.sample(name, dist.Normal(0.0, 1.0), infer={"is_auxiliary": True}) for name in ("u", "v"))
        pyro.sample("w", dist.Delta(w))
        pyro.sample("s", dist.Delta(torch.tensor(1.5)))

    with pytest.raises(ValueError, match=r"single points at the sites \['w', 's'\]"):
        annealed_evidence(two, guide, torch.randn(4), **SETTING)


def test_auxiliary_draws_without_a_density_are_refused():
    def guide(x):
        with poutine.mask(mask=False):
            u = pyro.sample("u", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        pyro.sample("w", dist.Normal(u, 1.0))
        pyro.sample("s", dist.Gamma(3.0, 2.0))

    with pytest.raises(ValueError, match=r"masks its auxiliary draws \['u'\], so that q\(z \| x\) is unknown; start"):
        annealed_evidence(two, guide, torch.randn(4), **SETTING)


@pytest.mark.parametrize(
    "measure",
    [
        lambda guide: bidirectional(POSITIVE, guide, COUNTS, num_temperatures=4, **EAGER),
        lambda guide: certify(POSITIVE, guide, COUNTS, 20, proposal=LocalProposal(rounds=1), **EAGER),
    ],
    ids=["bidirectional", "certify"],
)
def test_upper_bounds_start_from_the_prior(measure):
    with pytest.raises(ValueError, match=r"of \['z'\] from auxiliary draws, .*; start from the prior, with guide=None"):
        measure(AutoNormal(POSITIVE))
    assert measure(None).upper.isfinite().all()


def angle(x, guide=False):
    """z ~ VonMises(0, ½), and x | z ~ N(z, 1)."""
    with pyro.plate("rows", len(x)):
        if guide:
            pyro.sample("z", dist.VonMises(torch.zeros(len(x)), 0.6))
        else:
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.VonMises(0.0, 0.5)), 1.0), obs=x)


@pytest.mark.parametrize("guide", [None, lambda x: angle(x, guide=True)], ids=["prior", "guide"])
def test_angles_make_one_turn(guide):
    """Their density repeats itself, so that over all real numbers it has an infinite integral."""
    x, z = torch.tensor([0.0, 2.5, 3.5, -4.0]).double(), torch.linspace(-torch.pi, torch.pi, 20_001).double()
    log_p = dist.VonMises(0.0, 0.5).log_prob(z) + dist.Normal(z, 1.0).log_prob(x[:, None])
    exact = torch.trapezoid(log_p.exp(), z).log()
    check(log_evidence(angle, guide, x.float(), 2000, proposal=LocalProposal(), **EAGER), exact)
    check(annealed_evidence(angle, guide, x.float(), **SETTING), exact, sees=1.0)


SHIFTED = {  # a prior whose base has bounds, and what they are
    "from an end": (dist.Exponential(1.0), transforms.AffineTransform(1.0, 1.0), (1.0, 30.0)),
    "to an end": (dist.Exponential(1.0), transforms.AffineTransform(1.0, -2.0), (-50.0, 1.0)),
    "between ends": (dist.Uniform(0.0, 2.0), transforms.AffineTransform(torch.tensor(1.0), 2.0), (1.0, 5.0)),
    "an angle": (dist.VonMises(0.0, 0.5), transforms.AffineTransform(1.0, 0.5), (1 - torch.pi / 2, 1 + torch.pi / 2)),
}


def mixture(x):
    """z ~ 1 + Exponential(1) or 1 + Exponential(½), by equal shares, and x | z ~ N(z, 1)."""
    with pyro.plate("rows", len(x)):
        rates = torch.tensor([1.0, 0.5]).expand(len(x), 2)
        parts = dist.TransformedDistribution(dist.Exponential(rates), [transforms.AffineTransform(1.0, 1.0)])
        z = pyro.sample("z", dist.MixtureSameFamily(dist.Categorical(torch.ones(len(x), 2)), parts))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def test_bounds_of_a_mixture_are_those_of_its_parts():
    x, z = torch.tensor([0.0, 2.5, -3.0]), torch.linspace(1, 50, 100_001).double()
    log_p = torch.logaddexp(1 - z, (1 - z) / 2 + torch.tensor(0.5).log()) - torch.tensor(2.0).log()
    exact = torch.trapezoid((log_p + dist.Normal(z, 1.0).log_prob(x.double()[:, None])).exp(), z).log()
    check(log_evidence(mixture, None, x, 2000, proposal=LocalProposal(), **EAGER), exact)


def test_ends_in_some_rows_only_are_refused():
    signs = transforms.AffineTransform(torch.zeros(4), torch.tensor([1.0, -1.0, 1.0, -1.0]))
    with pytest.raises(ValueError, match="site 'z': where the values of its TransformedDistribution lie is unknown"):
        annealed_evidence(moved_prior(dist.Exponential(1.0), signs), None, COUNTS, **SETTING)


def moved_prior(base, *transform):
    """z ~ a transformed distribution, and x | z ~ N(z, 1)."""

    def model(x):
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.TransformedDistribution(base.expand([len(x)]), [*transform]))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    return model


@pytest.mark.parametrize("name", SHIFTED)
def test_bounds_of_a_transformed_prior_are_those_of_its_base(name):
    """torch declares the codomain of the transform, all real numbers."""
    base, transform, ends = SHIFTED[name]
    model, x, z = moved_prior(base, transform), torch.tensor([0.0, 2.5, -3.0]), torch.linspace(*ends, 100_001).double()
    log_p = dist.TransformedDistribution(base, [transform], validate_args=False).log_prob(z.float()).double()
    log_p = torch.where(log_p.isnan(), -torch.inf, log_p) + dist.Normal(z, 1.0).log_prob(x.double()[:, None])
    exact = torch.trapezoid(log_p.exp(), z).log()
    check(log_evidence(model, None, x, 2000, proposal=LocalProposal(), **EAGER), exact)
    check(annealed_evidence(model, None, x, **SETTING), exact, sees=1.0)
    with pytest.raises(ValueError, match=r"the guide makes \['z'\] of draws .*; the model's values lie in"):
        log_evidence(model, AutoNormal(model), x, 10, **EAGER)


def test_a_support_that_is_unknown_is_refused():
    def model(x):
        with pyro.plate("rows", len(x)):
            base = dist.Gamma(torch.ones(2), 1.0).expand([len(x), 2])
            z = pyro.sample("z", dist.TransformedDistribution(base, [Permute(torch.tensor([1, 0]))]))
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)

    with pytest.raises(ValueError, match="site 'z': where the values of its TransformedDistribution lie is unknown"):
        annealed_evidence(model, None, COUNTS, **SETTING)


@pytest.mark.parametrize("measure", [annealed_evidence, bidirectional])
def test_a_prior_that_is_drawn_otherwise_than_scored_is_refused(measure):
    def model(x):
        with pyro.plate("rows", len(x)):
            L = pyro.sample("L", dist.LKJCholesky(3, 1.0))
            pyro.sample("x", dist.Normal(L[..., 2, 0], 1.0), obs=x)

    with pytest.raises(ValueError, match="torch draws an LKJCholesky"):
        measure(model, None, COUNTS, num_temperatures=4, **EAGER)
