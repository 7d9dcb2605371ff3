"""Enumerated sites: weights, rates and distortions against sums over all values by hand, in float64."""

import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, config_enumerate
from torch import tensor

from pyro_vae.tracing.enumeration import Enumeration, row_terms
from pyro_vae.tracing.messages import sample_sites

pytestmark = pytest.mark.usefixtures("float64")
X = tensor([0.5, -1.0, 2.0, 0.3], dtype=torch.float64)
PARALLEL = {"enumerate": "parallel"}
WEIGHTS, CENTRES = torch.tensor([0.2, 0.5, 0.3]).double(), torch.tensor([-1.0, 0.5, 2.0]).double()


def of_the_model(y):
    """s and z | s of the model, x | z, s; the guide draws z alone."""

    def model(x):
        with pyro.plate("rows", len(x)):
            s = y()
            z = pyro.sample("z", dist.Normal(CENTRES[s], 1.5))
            pyro.sample("x", dist.Normal(z + 0.1 * s, 0.7), obs=x)

    def guide(x):
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(0.6 * x, 0.8))

    return model, guide


def semi_supervised(x, y_logits, mark=PARALLEL):
    """y and z | x, y in the guide, as in M2."""

    def model(x):
        with pyro.plate("rows", len(x)):
            y = pyro.sample("y", dist.Categorical(WEIGHTS), infer=mark)
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1) + CENTRES[y], 0.7), obs=x)

    def guide(x):
        with pyro.plate("rows", len(x)):
            y = pyro.sample("y", dist.Categorical(logits=y_logits), infer=mark)
            loc = (0.3 * x + 0.1 * y).unsqueeze(-1).expand(*y.shape[:-1], len(x), 2)
            pyro.sample("z", dist.Normal(loc, 0.8).to_event(1))

    return model, guide


def terms(model, guide, x=X, particles=1, seed=0):
    """The traces of an enumerated run, and its terms."""
    pyro.set_rng_seed(seed)
    program = Enumeration.of(model, guide, (x,), particles=particles)
    (traces,) = program.traces((x,), particles=particles)
    (plate,) = (frame for frame in sample_sites(traces[0])["x"]["cond_indep_stack"] if frame.name == "rows")
    return traces, row_terms(*traces, plate=plate)


@pytest.mark.parametrize("particles", [1, 5])
def test_a_site_of_the_model_alone_is_summed_out_as_in_a_mixture(particles):
    model, guide = of_the_model(lambda: pyro.sample("s", dist.Categorical(WEIGHTS), infer=PARALLEL))
    (_, guide_trace), found = terms(model, guide, particles=particles)
    z = guide_trace.nodes["z"]["value"].reshape(particles, 4)
    prior = dist.MixtureSameFamily(dist.Categorical(WEIGHTS), dist.Normal(CENTRES, 1.5)).log_prob(z)
    s = torch.arange(3)
    parts = WEIGHTS.log() + dist.Normal(CENTRES, 1.5).log_prob(z[..., None])
    joint = (parts + dist.Normal(z[..., None] + 0.1 * s, 0.7).log_prob(X[:, None])).logsumexp(-1)
    log_q = dist.Normal(0.6 * X, 0.8).log_prob(z)
    assert torch.allclose(found.log_w, joint - log_q)
    assert torch.allclose(found.rate, log_q - prior)
    assert torch.allclose(found.distortion, prior - joint)


@pytest.mark.parametrize("particles", [1, 5])
@pytest.mark.parametrize("rows", [1, 4])
def test_a_site_of_the_guide_is_summed_with_its_own_probabilities(particles, rows):
    logits = torch.randn(rows, 3)
    traces, found = terms(*semi_supervised(X, logits), x=X[:rows], particles=particles)
    z = traces[1].nodes["z"]["value"].reshape(3, particles, rows, 2)
    y = torch.arange(3).view(3, 1, 1)
    log_q_z = dist.Normal((0.3 * X[:rows] + 0.1 * y)[..., None], 0.8).log_prob(z).sum(-1)
    log_p_z = dist.Normal(0.0, 1.0).log_prob(z).sum(-1)
    log_p_x = dist.Normal(z.sum(-1) + CENTRES[y], 0.7).log_prob(X[:rows])
    log_q_y, log_p_y = logits.log_softmax(-1).T.unsqueeze(1), WEIGHTS.log().view(3, 1, 1)
    assert torch.allclose(found.log_w, (log_p_y + log_p_z + log_p_x - log_q_z).logsumexp(0))
    assert torch.allclose(found.rate, (log_q_y.exp() * (log_q_y + log_q_z - log_p_y - log_p_z)).sum(0))
    assert torch.allclose(found.distortion, -(log_q_y.exp() * log_p_x).sum(0))


def test_rate_and_distortion_are_the_loss_of_traceenum_elbo():
    for program in (
        semi_supervised(X, torch.randn(4, 3)),
        of_the_model(lambda: pyro.sample("s", dist.Categorical(WEIGHTS), infer=PARALLEL)),
        nested(),
    ):
        _, found = terms(*program)
        pyro.set_rng_seed(0)
        loss = TraceEnum_ELBO(max_plate_nesting=2).loss(*program, X)
        assert abs((found.rate + found.distortion).sum() - loss) < 1e-9


def nested():
    """y of each of three parts of a row in the guide, s of each part in the model alone."""

    def of_parts(x):
        with pyro.plate("rows", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 1), 1.0))
            with pyro.plate("parts", 3, dim=-1):
                y = pyro.sample("y", dist.Bernoulli(0.3), infer=PARALLEL)
                s = pyro.sample("s", dist.Categorical(WEIGHTS), infer=PARALLEL)
                pyro.sample("x", dist.Normal(z + CENTRES[s] * y + s, 0.9), obs=x.unsqueeze(-1).expand(-1, 3))

    def guide(x):
        with pyro.plate("rows", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(0.3 * x.unsqueeze(-1), 0.8))
            with pyro.plate("parts", 3, dim=-1):
                pyro.sample("y", dist.Bernoulli((z + torch.arange(3)).sigmoid()), infer=PARALLEL)

    return of_parts, guide


def test_sums_are_taken_inside_nested_plates():
    traces, found = terms(*nested())
    z = traces[1].nodes["z"]["value"].reshape(4, 1)
    log_q, log_p = dist.Normal(0.3 * X, 0.8).log_prob(z[:, 0]), dist.Normal(0.0, 1.0).log_prob(z[:, 0])
    log_w, distortion, rate = log_p - log_q, 0.0, log_q - log_p
    for part in range(3):
        of_y = []
        for y in (0.0, 1.0):
            of_s = [WEIGHTS[s].log() + dist.Normal(z[:, 0] + CENTRES[s] * y + s, 0.9).log_prob(X) for s in range(3)]
            of_y.append(torch.stack(of_s).logsumexp(0))
        p, q = dist.Bernoulli(tensor(0.3).double()), dist.Bernoulli((z[:, 0] + part).sigmoid())
        log_w = log_w + torch.stack([of_y[y] + p.log_prob(tensor(float(y))) for y in (0, 1)]).logsumexp(0)
        for y in (0, 1):
            value = tensor(float(y))
            distortion = distortion - q.log_prob(value).exp() * of_y[y]
            rate = rate + q.log_prob(value).exp() * (q.log_prob(value) - p.log_prob(value))
    for ours, expected in zip(found, (log_w, rate, distortion)):
        assert torch.allclose(ours[0], expected)


def test_weights_are_those_of_all_combinations_of_a_chain():
    """y1 → y2 → z in the guide, and a site of the model alone below y2, each depending on the one before."""
    table = torch.randn(3, 3).softmax(-1)

    def model(x):
        with pyro.plate("rows", len(x)):
            a = pyro.sample("a", dist.Categorical(WEIGHTS), infer=PARALLEL)
            b = pyro.sample("b", dist.Categorical(table[a]), infer=PARALLEL)
            z = pyro.sample("z", dist.Normal(CENTRES[b], 1.0))
            c = pyro.sample("c", dist.Categorical(table[b]), infer=PARALLEL)
            pyro.sample("x", dist.Normal(z + CENTRES[c], 0.7), obs=x)

    def guide(x):
        with pyro.plate("rows", len(x)):
            a = pyro.sample("a", dist.Categorical(table[0]), infer=PARALLEL)
            b = pyro.sample("b", dist.Categorical(table[a].flip(-1)), infer=PARALLEL)
            pyro.sample("z", dist.Normal(0.3 * x + b, 0.8))

    traces, found = terms(model, guide)
    z = traces[1].nodes["z"]["value"].reshape(3, 4)  # of each b
    weights, rate, distortion = [], 0.0, 0.0
    for a, b in itertools.product(range(3), repeat=2):
        log_q = table[0, a].log() + table[a].flip(-1)[b].log()
        of_z, log_p = dist.Normal(0.3 * X + b, 0.8).log_prob(z[b]), WEIGHTS[a].log() + table[a, b].log()
        prior = log_p + dist.Normal(CENTRES[b], 1.0).log_prob(z[b])
        log_px = torch.stack([table[b, c].log() + dist.Normal(z[b] + CENTRES[c], 0.7).log_prob(X) for c in range(3)])
        weights.append(prior - of_z + log_px.logsumexp(0))
        rate = rate + log_q.exp() * (log_q + of_z - prior)
        distortion = distortion - log_q.exp() * log_px.logsumexp(0)
    for ours, expected in zip(found, (torch.stack(weights).logsumexp(0), rate, distortion)):
        assert torch.allclose(ours[0], expected)


def test_weights_do_not_underflow_where_two_observations_disagree():
    def model(x):
        with pyro.plate("rows", len(x)):
            s = pyro.sample("s", dist.Bernoulli(0.5), infer=PARALLEL)
            pyro.sample("x", dist.Normal(100 * s, 1.0), obs=x)
            pyro.sample("x2", dist.Normal(100 - 100 * s, 1.0), obs=x)

    _, found = terms(model, lambda x: None, x=torch.zeros(2))
    expected = 2 * dist.Normal(tensor(0.0).double(), 1.0).log_prob(tensor(0.0)) - 5000
    assert torch.allclose(found.log_w, expected.expand(1, 2))


def test_a_known_value_is_a_point_of_q_without_nan():
    """Rows whose y is known: q is one-hot, and the other values count for nothing in rate and distortion."""
    logits = torch.where(torch.tensor([True, False, False]), 0.0, -torch.inf).expand(4, 3)
    traces, found = terms(*semi_supervised(X, logits))
    z = traces[1].nodes["z"]["value"].reshape(3, 4, 2)[0]
    expected = -dist.Normal(z.sum(-1) + CENTRES[0], 0.7).log_prob(X)
    assert torch.allclose(found.distortion[0], expected)
    assert found.rate.isfinite().all()


def partly_known(x, known, label):
    """M2 by ``obs_mask``: y is observed in some rows, and enumerated in the others."""

    def model(x):
        with pyro.plate("rows", len(x)):
            y = pyro.sample("y", dist.Categorical(WEIGHTS), obs=label, obs_mask=known)
            pyro.sample("x", dist.Normal(CENTRES[y], 0.7), obs=x)

    def guide(x):
        with pyro.plate("rows", len(x)), poutine.mask(mask=~known):
            pyro.sample("y_unobserved", dist.Categorical(logits=CENTRES), infer=PARALLEL)

    return model, guide


@pytest.mark.parametrize("of_guide", [True, False])
def test_rows_whose_value_is_known_count_once(of_guide):
    known, label = torch.tensor([True, False, True, False]), torch.tensor([0, 0, 2, 0])
    model, guide = partly_known(X, known, label)
    model, guide = (model, guide) if of_guide else (config_enumerate(model), lambda x: None)
    _, found = terms(model, guide)
    of_value = WEIGHTS.log() + dist.Normal(CENTRES, 0.7).log_prob(X[:, None])
    log_px, of_label, q = of_value.logsumexp(-1), of_value[range(4), label], CENTRES.softmax(-1)
    assert torch.allclose(found.log_w[0], torch.where(known, of_label, log_px))
    bound = (q * (of_value - q.log())).sum(-1) if of_guide else log_px
    assert torch.allclose(-(found.rate + found.distortion)[0], torch.where(known, of_label, bound))
    loss = TraceEnum_ELBO(max_plate_nesting=1).loss(model, guide, X)
    assert abs((found.rate + found.distortion).sum() - loss) < 1e-9


def test_a_row_that_is_masked_everywhere_counts_for_nothing():
    seen = poutine.mask(mask=torch.tensor([False, True, True, True]))
    _, found = terms(*map(seen, semi_supervised(X, torch.randn(4, 3))))
    assert found.log_w[0, 0].abs() < 1e-12 and found.rate[0, 0] == found.distortion[0, 0] == 0
    assert (found.log_w[0, 1:] != 0).all()


@pytest.mark.parametrize("particles", [1, 3])
def test_a_one_hot_site_is_a_site_of_its_classes(particles):
    def one_hot():
        s = pyro.sample("s", dist.OneHotCategorical(WEIGHTS), infer=PARALLEL)
        return (s * torch.arange(3)).sum(-1).long()

    classes = of_the_model(lambda: pyro.sample("s", dist.Categorical(WEIGHTS), infer=PARALLEL))
    expected = terms(*classes, particles=particles)[1]
    for ours, theirs in zip(terms(*of_the_model(one_hot), particles=particles)[1], expected):
        assert torch.allclose(ours, theirs)


@pytest.mark.parametrize("mark", [{"enumerate": "sequential"}, {"enumerate": "parallel", "num_samples": 5}])
def test_other_kinds_of_enumeration_are_refused(mark):
    with pytest.raises(ValueError, match=r"\['y'\] are not summed over all their values at once"):
        Enumeration.of(*semi_supervised(X, torch.randn(4, 3), mark), (X,))


def test_a_program_without_marks_has_no_enumeration():
    assert Enumeration.of(*semi_supervised(X, torch.randn(4, 3), {}), (X,)) is None


def test_another_site_that_the_guide_leaves_out_is_refused():
    model, _ = semi_supervised(X, torch.randn(4, 3))
    with pytest.raises(ValueError, match=r"only in the model: \['z'\]"):
        Enumeration.of(model, lambda x: None, (X,))
