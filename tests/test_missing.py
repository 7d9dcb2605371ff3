"""Programs that score what was seen: what is missing changes nothing, and the marginals of a Gaussian are exact."""

import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch
from monte_carlo import assert_evidence_is
from programs import DIGITS, linear_gaussian, needs_compiler, same_bits, small_vae
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import nn
from torch.distributions import MultivariateNormal

from pyro_vae import (
    VAE,
    annealed_evidence,
    compiled,
    evaluate,
    fit,
    guides,
    likelihoods,
    log_evidence,
    networks,
    priors,
)
from pyro_vae.augmentation import Augmented
from pyro_vae.data import Data, Split
from pyro_vae.distributions.pixels import BinCentres, InteriorBeta, LogisticLevels
from pyro_vae.estimators import (
    DoublyReparameterized,
    ImportanceWeighted,
    ScoreFunction,
    StickingTheLanding,
    WakeSleep,
)
from pyro_vae.handlers import FreeBits, KLWeighted
from pyro_vae.linear_gaussian import LinearGaussian, LinearPosterior
from pyro_vae.missing import Masked, SeenElements, allowed_value, check_mask, masked, without_missing
from pyro_vae.sites import parameter_sites

ESTIMATORS = {
    "L^A": Trace_ELBO(),
    "L^B": TraceMeanField_ELBO(),
    "path": StickingTheLanding(2),
    "importance": ImportanceWeighted(3, M=2),
    "double": DoublyReparameterized(3),
    "score": ScoreFunction(3, "leave-one-out"),
    "wake-sleep": WakeSleep(),
    "free bits": FreeBits(0.1),
}
FAMILIES = {
    "Bernoulli": (likelihoods.Bernoulli, 1),
    "ContinuousBernoulli": (likelihoods.ContinuousBernoulli, 1),
    "Normal": (likelihoods.Normal, 2),
    "Beta": (likelihoods.Beta, 2),
    "Categorical": (likelihoods.Categorical, 16),
    "DiscretizedLogistic": (likelihoods.DiscretizedLogistic, 2),
}
HOLES = torch.nan, torch.inf, -1e30, 0.5


class Table(nn.Module):
    """Rows (B, D) with one distribution for all columns, z of two dimensions."""

    def __init__(self, family=dist.Normal, columns=4, inputs=None):
        super().__init__()
        torch.manual_seed(1)
        self.family, self.decoder = family, nn.Linear(2, columns)
        self.encoder = nn.Linear(inputs or columns, 4)

    def model(self, x):
        parameter_sites(self)
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", self.family(self.decoder(z).exp(), 0.7).to_event(1), obs=x)

    def observe(self, batch, generator=None):
        return batch.table

    def guide(self, x):
        parameter_sites(self)
        with pyro.plate("rows", len(x)):
            loc, raw = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))


def half(shape, seed=0):
    """A mask by which about half was seen, the first row whole and the last not at all."""
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    mask[0], mask[-1] = True, False
    return mask


def picture_case(name="Bernoulli"):
    family, maps = FAMILIES[name]
    vae = small_vae(family=family, maps=maps)
    x = vae.observe(DIGITS.train.images[:5], torch.Generator().manual_seed(0))
    return Masked(vae), x, half(x.shape)


def table_case(family=dist.Normal):
    x = dist.LogNormal(0.0, 1.0).sample((5, 4))
    return Masked(Table(family)), x, half(x.shape)


def holed(x, mask, hole):
    return torch.where(mask, x, torch.full_like(x, hole))


def outcome(program, elbo, *args):
    """Value and gradients by one seed."""
    program.zero_grad()
    torch.manual_seed(7)
    loss = elbo.differentiable_loss(program.model, program.guide, *args)
    loss.backward()
    return loss.detach(), [p.grad.clone() for p in program.parameters() if p.grad is not None]


def assert_nothing_changes(of):
    """Values in the holes change neither value nor gradient, not by a bit, and all are finite."""
    (loss, gradients), *others = map(of, HOLES)
    assert loss.isfinite() and gradients and all(gradient.isfinite().all() for gradient in gradients)
    for other, of_other in others:
        assert torch.equal(loss, other)
        assert all(map(torch.equal, gradients, of_other))


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("case", [picture_case, table_case])
def test_what_is_missing_changes_no_bound_and_no_gradient(case, name):
    program, x, mask = case()
    assert_nothing_changes(lambda hole: outcome(program, ESTIMATORS[name], holed(x, mask, hole), mask))


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("case", [picture_case, table_case])
def test_what_is_missing_changes_nothing_when_compiled(case, quick_compiler):
    program, x, mask = case()
    elbo = ImportanceWeighted(3)
    loss = compiled(elbo, program.model, program.guide, holed(x, mask, 0.5), mask)

    def graph(hole, seen=mask):
        program.zero_grad()
        torch.manual_seed(7)
        value = loss(holed(x, seen, hole), seen)
        value.backward()
        return value.detach(), [p.grad.clone() for p in program.parameters()]

    assert_nothing_changes(graph)
    other = half(x.shape, seed=1)  # the mask is an argument of the graph, not a constant
    for seen in mask, other:
        torch.testing.assert_close(graph(0.5, seen), outcome(program, elbo, holed(x, seen, torch.nan), seen))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_likelihood_scores_the_seen_pixels_alone(name):
    """The density of the seen pixels is the sum of theirs, whatever the family takes for x, with K codes in front."""
    program, x, mask = picture_case(name)
    z = torch.randn(3, 5, 2)
    p = program.program.likelihood(z)
    expected = (p.base_dist.log_prob(x) * mask).flatten(2).sum(-1)
    torch.testing.assert_close(masked(p, mask).log_prob(x), expected)
    assert_nothing_changes(lambda hole: outcome(program, ImportanceWeighted(3), holed(x, mask, hole), mask))


@pytest.mark.parametrize("family", [dist.Gamma, dist.LogNormal, dist.NegativeBinomial, dist.Laplace, dist.Weibull])
def test_any_support(family):
    """Zero lies outside some supports, or has an infinite gradient there."""
    program, x, mask = table_case(family if family is not dist.NegativeBinomial else lambda a, b: family(a, logits=b))
    x = x.round() if family is dist.NegativeBinomial else x
    with pyro.validation_enabled(True):
        assert_nothing_changes(lambda hole: outcome(program, Trace_ELBO(), holed(x, mask, hole), mask))


@pytest.mark.slow
def test_evidence_is_that_of_the_marginal():
    program = linear_gaussian()
    program.posterior = LinearPosterior(*(torch.zeros(n).double() for n in ((2, 5), 2)), log_scale=torch.zeros(2))
    x = program.simulate(6)
    mask = half(x.shape)
    found = log_evidence(Masked(program), (holed(x, mask, torch.nan), mask), 20_000)
    covariance = (program.weight @ program.weight.T + program.variance() * torch.eye(5)).detach()
    expected = []
    for row, seen in enumerate(mask):
        marginal = MultivariateNormal(program.bias[seen], covariance[seen][:, seen]) if seen.any() else None
        expected.append(marginal.log_prob(x[row, seen]).item() if marginal else 0.0)
    assert_evidence_is(found, expected, sees=0.5)
    again = log_evidence(Masked(program), (holed(x, mask, 3.0), mask), 20_000)
    assert torch.equal(found.log_px, again.log_px)
    settings = {"num_temperatures": 60, "chains": 40, "leapfrog": 5, "progress": False}
    annealed = annealed_evidence(Masked(program), (holed(x, mask, torch.nan), mask), **settings)
    assert_evidence_is(annealed, expected, sees=2.0, rounding=0.02)


@pytest.mark.slow
@needs_compiler
def test_evidence_compiled(quick_compiler):
    """By far more slices than are eager; the mask is an argument of the graph."""
    program, x, mask = picture_case()
    args = holed(x, mask, torch.nan), mask
    eager, graph = (log_evidence(program, args, 100, chunk=20, engine=name) for name in ("eager", "compiled"))
    torch.testing.assert_close(graph.log_px, eager.log_px)
    assert graph.log_px[-1].abs() <= 4 * graph.standard_error[-1] + 1e-6  # nothing was seen


def test_the_bound_of_a_row_without_anything_seen_is_minus_its_rate():
    program = linear_gaussian()
    x, mask = program.simulate(1), torch.zeros(1, 5, dtype=torch.bool)
    q = program.posterior(torch.zeros_like(x))
    rate = torch.distributions.kl_divergence(q, MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double()))
    many = x.expand(20_000, -1), mask.expand(20_000, -1)
    torch.manual_seed(0)
    loss = Trace_ELBO().loss(Masked(program).model, Masked(program).guide, *many) / 20_000
    assert loss == pytest.approx(rate.item(), rel=0.02)


def test_gradient_of_what_is_seen_against_the_closed_form():
    """All rows miss the same columns: then the program is that of the other columns alone."""
    torch.manual_seed(0)
    whole = linear_gaussian()
    q = LinearPosterior(torch.randn(2, 5).double(), torch.zeros(2).double(), log_scale=torch.zeros(2).double())
    whole.posterior = q
    seen = torch.tensor([True, False, True, True, False])
    part = LinearGaussian(whole.weight[seen].detach(), whole.bias[seen].detach(), scale=0.7)
    part.posterior = LinearPosterior(
        q.loc_weight[:, seen].detach(), q.loc_bias.detach(), log_scale=q.log_scale.detach()
    )
    x = whole.simulate(4)
    part.elbo(x[:, seen]).sum().backward()
    program, rounds = Masked(whole), 20_000
    many = holed(x, seen.expand(x.shape), torch.nan).repeat(rounds, 1)
    torch.manual_seed(1)
    loss = TraceMeanField_ELBO().differentiable_loss(program.model, program.guide, many, ~many.isnan()) / rounds
    loss.backward()
    torch.testing.assert_close(-whole.bias.grad[seen], part.bias.grad, rtol=0.02, atol=0.02)
    torch.testing.assert_close(-whole.weight.grad[seen], part.weight.grad, rtol=0.02, atol=0.05)
    torch.testing.assert_close(-q.loc_bias.grad, part.posterior.loc_bias.grad, rtol=0.02, atol=0.05)
    assert not whole.bias.grad[~seen].any() and not whole.weight.grad[~seen].any()


def test_the_guide_sees_zeros_and_the_mask_if_it_asks_for_it():
    x, mask = torch.full((2, 4), torch.nan), torch.zeros(2, 4, dtype=torch.bool)
    x[0, 1], mask[0, 1] = 3.0, True
    program, seen = Table(inputs=8), []
    program.encoder.register_forward_hook(lambda module, args, out: seen.append(args[0]))
    Masked(program, mask_as_input=True).guide(x, mask)
    assert seen[0].tolist() == [[0, 3, 0, 0, 0, 1, 0, 0], [0] * 8]
    posterior = guides.MeanField(networks.MLPEncoder((2, 8, 8), hidden=(8,)), 2)
    vae = VAE(priors.StandardNormal(2), small_vae().likelihood, posterior)
    pixels = torch.rand(3, 1, 8, 8).round()
    loss = ImportanceWeighted(2)(*(lambda p: (p.model, p.guide))(Masked(vae, mask_as_input=True)))
    assert loss(pixels, half(pixels.shape)).isfinite()


def test_further_arguments_follow_the_mask_and_a_kl_weight_goes_around_or_inside():
    class Shifted(Table):
        def model(self, x, shift):
            super().model(x + shift)

        def guide(self, x, shift):
            super().guide(x + shift)

    program, x, mask = Masked(Shifted()), torch.zeros(5, 4), half((5, 4))
    torch.manual_seed(0)
    loss = Trace_ELBO().loss(program.model, program.guide, x, mask, torch.ones(()))
    plain, other = Masked(Table()), KLWeighted(Masked(Table()), beta=1.0)
    for variant in plain, other, Masked(KLWeighted(Table(), beta=1.0)):
        torch.manual_seed(0)
        assert Trace_ELBO().loss(variant.model, variant.guide, x + 1, mask) != loss  # zeros, then shifted, or zeros
        torch.manual_seed(0)
        first = Trace_ELBO().loss(plain.model, plain.guide, x + 1, mask)
        torch.manual_seed(0)
        assert Trace_ELBO().loss(variant.model, variant.guide, x + 1, mask) == first


@pytest.mark.parametrize(
    "fn",
    [
        dist.Normal(5.0, 1.0),
        dist.Gamma(2.0, 3.0),
        dist.Uniform(2.0, 5.0),
        dist.Beta(0.5, 0.5),
        InteriorBeta(torch.tensor(2.0), torch.tensor(3.0)),
        dist.Bernoulli(0.3),
        dist.Poisson(3.0),
        dist.ZeroInflatedPoisson(torch.tensor(2.0), gate=torch.tensor(0.3)),
        dist.Binomial(5, 0.3),
        dist.Categorical(torch.ones(3)),
        BinCentres(torch.zeros(16)),
        LogisticLevels(torch.tensor(0.5), torch.tensor(0.0)),
        dist.StudentT(3.0),
        dist.VonMises(0.0, 1.0),
        dist.Exponential(2.0),
    ],
    ids=lambda fn: type(fn).__name__,
)
def test_a_stand_in_lies_in_the_support(fn):
    value = torch.as_tensor(allowed_value(fn), dtype=torch.float32)
    assert fn.support.check(value).all() and fn.log_prob(value).isfinite().all()


def test_batches_lose_what_is_missing_before_they_are_observed():
    """Pixels that are missing change neither x nor the random numbers of its binarisation."""
    images = DIGITS.train.images[:5]
    mask = half(images.shape)
    program = Masked(small_vae())
    noise = torch.randint(256, images.shape, dtype=torch.uint8)
    batches = [Split(torch.where(mask, images, other), mask=mask) for other in (torch.zeros_like(images), noise)]
    first, second = (without_missing(batch)[0].images for batch in batches)
    assert torch.equal(first, second) and torch.equal(first[mask], images[mask])
    table = torch.tensor([[torch.nan, 2.0, torch.nan], [1.0, torch.nan, torch.nan]])
    mask = torch.tensor([[True, False, True], [True, True, True]])
    batch, seen = without_missing(Split(table=table, mask=mask))
    assert seen.tolist() == [[False, False, False], [True, False, False]]
    assert batch.table.tolist() == [[1, 0, 0], [1, 0, 0]]
    counts = Split(counts=torch.tensor([[3, 9]]), mask=torch.tensor([[True, False]]), size=torch.ones(1))
    assert without_missing(counts)[0].counts.tolist() == [[3, 0]]
    assert program.state_dict().keys() == {f"program.{name}" for name in program.program.state_dict()}


def trained(program, split, engine="eager"):
    """The bound on the split after two epochs of two steps, and the history."""
    torch.manual_seed(0)
    data, settings = Data("holes", split, split, split), {"epochs": 2, "batch_size": 20, "progress": False}
    history = fit(program, data, ImportanceWeighted(3), engine=engine, **settings)
    return evaluate(program, data.test).bound, history


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["eager", pytest.param("compiled", marks=needs_compiler)])
def test_fit_learns_the_same_whatever_the_missing_pixels_are(engine, quick_compiler):
    images = DIGITS.train.images[:40]
    mask, programs = half(images.shape), [Masked(small_vae()) for _ in range(2)]
    for program, hole in zip(programs, (torch.zeros_like(images), DIGITS.train.images[40:80])):
        bound, history = trained(program, Split(torch.where(mask, images, hole), mask=mask), engine)
        assert bound.isfinite().all() and bound[-1] < 0 and history.engine == engine
    assert same_bits(*programs)


@pytest.mark.slow
def test_fit_learns_the_same_from_nan_and_from_a_mask():
    table, programs = torch.randn(40, 4), [Masked(Table()) for _ in range(2)]
    seen = half(table.shape)
    first, history = trained(programs[0], Split(table=holed(table, seen, torch.nan)))
    second, _ = trained(programs[1], Split(table=holed(table, seen, 1e9), mask=seen))
    assert same_bits(*programs) and torch.equal(first, second)
    assert history.rows[-1]["valid_bound"] > history.rows[0]["valid_bound"]


def test_bad_masks():
    program, x, mask = picture_case()
    for wrong, message in [
        (mask.float(), r"wanted torch.bool, True where a value was seen, got torch.float32; write mask.bool\(\)"),
        (mask[0], r"shape \(5, 1, 8, 8\), got \(1, 8, 8\); write mask.expand\(x.shape\)"),
        (None, "wanted a bool tensor of the shape of x, got NoneType"),
    ]:
        for function in program.model, program.guide:
            with pytest.raises(ValueError, match=message):
                function(x, wrong)
    check_mask(x, mask[0].expand(x.shape))  # the cure
    with pytest.raises(ValueError, match=r"batch: wanted a Split with a field mask, .* got a Split of images; write"):
        program.observe(Split(DIGITS.train.images[:3]))
    with pytest.raises(ValueError, match=r"batch: wanted a Split with a field mask, .* got Tensor"):
        program.observe(DIGITS.train.images[:3])
    with pytest.raises(ValueError, match=r"its events are \(4,\), the mask is \(2, 3\)"):
        Masked(Table()).model(torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool))


def test_seen_values_are_checked_still():
    program, x, mask = picture_case("Beta")
    with pyro.validation_enabled(True):
        program.model(holed(x, mask, torch.nan), mask)
        with pytest.raises(ValueError, match="x: outside the support of InteriorBeta"):
            program.model(torch.where(mask, 0.0, x), mask)


def test_sites_that_cannot_be_masked():
    x, mask = torch.zeros(3, 2), torch.ones(3, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="the model has no observed site 'y'"):
        Masked(Table(columns=2), site="y").model(x, mask)
    with (
        pytest.raises(ValueError, match="the elements of its MultivariateNormal are not independent"),
        SeenElements(mask),
    ):
        pyro.sample("x", MultivariateNormal(torch.zeros(2), torch.eye(2)), obs=x)


def test_masks_and_plates_of_the_program_are_kept():
    """Elements in a plate in place of an event, half of the rows masked by the program itself."""
    rows = torch.tensor([True, False, True, False])[:, None]

    def model(x):
        with pyro.plate("rows", 4, dim=-2), pyro.plate("columns", 3, dim=-1):
            pyro.sample("x", dist.Normal(torch.zeros(4, 3), 1.0).mask(rows), obs=x)

    x, mask = torch.randn(4, 3), half((4, 3))
    with SeenElements(mask):
        trace = pyro.poutine.trace(model).get_trace(holed(x, mask, torch.nan))
    expected = dist.Normal(0.0, 1.0).log_prob(x)[mask & rows].sum()
    torch.testing.assert_close(trace.log_prob_sum(), expected)


def test_every_pair_of_estimator_and_mask_as_input():
    x, mask = torch.randn(5, 4), half((5, 4))
    for elbo, asked in itertools.product((Trace_ELBO(), ImportanceWeighted(2)), (False, True)):
        program = Masked(Table(inputs=8 if asked else 4), mask_as_input=asked)
        assert_nothing_changes(lambda hole, p=program, e=elbo: outcome(p, e, holed(x, mask, hole), mask))


@pytest.mark.parametrize("wrap", [lambda program: program, lambda program: KLWeighted(program, 0.5)])
def test_images_that_move_without_their_mask_are_refused(wrap):
    with pytest.raises(ValueError, match="wanted one whose images stay as they are, got Augmented"):
        Masked(wrap(Augmented(small_vae(), lambda images: images.flip(-1))))
