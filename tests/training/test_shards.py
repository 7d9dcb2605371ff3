"""Rows shared out among the cores: the sum of the shares is the batch, or the rows are not shared out."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from engine_trainings import BATCHES, Training, assert_same_training, normalised
from programs import conv_vae, small_vae
from pyro.infer import Trace_ELBO
from pyro.poutine import scale
from torch import nn

from pyro_vae.estimators import ImportanceWeighted
from pyro_vae.training import shards
from pyro_vae.training.compiled import CompiledEngine
from pyro_vae.training.eager import EagerEngine

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_compiler")]
BATCH = BATCHES[0][:48]


@pytest.fixture(autouse=True)
def three_cores(monkeypatch):
    monkeypatch.setattr("pyro_vae.parallel.cores", lambda: 3)
    monkeypatch.setattr(shards, "WORTH", 0)  # programs of tests are small


def engine(program, estimator=None):
    optimizer = torch.optim.Adam(program.parameters(), fused=True)
    return CompiledEngine(program, estimator or Trace_ELBO(), optimizer)


def steps_of(program, estimator=None):
    """The graph after two steps, the first of which is eager."""
    step = engine(program, estimator)
    step(BATCH), step(BATCH)
    assert step.name == "compiled"
    return step.graph


def test_a_compiled_training_on_shares_is_the_eager_one():
    fast, eager = Training(CompiledEngine, batches=BATCHES[:8]), Training(EagerEngine, batches=BATCHES[:8])
    assert fast.step.name == "compiled" and fast.step.graph.shards.count == 2  # a batch has 50 rows
    assert_same_training(fast, eager)


@pytest.mark.parametrize(
    ("make", "estimator"),
    [(small_vae, Trace_ELBO()), (conv_vae, Trace_ELBO()), (small_vae, ImportanceWeighted(3, 2))],
)
def test_shares_add_up_to_the_batch(make, estimator):
    graph = steps_of(make(), estimator)
    assert graph.shards.count == 3 and all(len(rows) == 16 for rows in graph.shards.rows)
    loss, gradients, norm = graph(BATCH)
    assert loss > 0 and norm == pytest.approx(torch.cat([g.flatten() for g in gradients]).norm().item(), rel=1e-5)


class Shared(nn.Module):
    """A program with a latent variable of all rows together, or weights that depend on their number."""

    def __init__(self, shared=False, rows=None):
        super().__init__()
        self.loc, self.shared, self.rows = nn.Parameter(torch.zeros(2)), shared, rows

    def observe(self, pixels, generator=None):
        return pixels.flatten(1)[:, :2] / 16

    def model(self, x):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0)) if self.shared else 0.0
        with scale(scale=self.rows / len(x) if self.rows else 1.0), pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z + mean, 1.0).to_event(1), obs=x)

    def guide(self, x):
        if self.shared:
            pyro.sample("mean", dist.Normal(self.loc[0], 1.0))
        with scale(scale=self.rows / len(x) if self.rows else 1.0), pyro.plate("images", len(x)):
            pyro.sample("z", dist.Normal(self.loc, 1.0).expand([len(x), 2]).to_event(1))


class Binarised(Shared):
    """A program that draws x from probabilities."""

    def observe(self, pixels, generator=None):
        return torch.bernoulli(pixels.flatten(1)[:, :2] / 255)


def test_rows_without_anything_in_common_are_shared_out():
    assert steps_of(Shared()).shards.count == 3


class Interleaved(Shared):
    """A program whose noise of a row lies in two places of one draw, too small to be seen in a comparison of losses."""

    def model(self, x):
        noise = 1e-6 * torch.randn(2 * len(x), 2)
        super().model(x + noise[: len(x)] + noise[len(x) :])


def test_several_numbers_of_a_row_in_one_dimension_are_not_shared_out():
    assert steps_of(Interleaved()).shards is None


class Decaying(Shared):
    """A program with a prior of its parameters, which is far below the rounding of the loss."""

    def model(self, x):
        pyro.factor("decay", -1e-6 * self.loc.square().sum())
        super().model(x)


class Penalised(Trace_ELBO):
    """An estimator with a penalty of the parameters."""

    def differentiable_loss(self, model, guide, *args, **kwargs):
        penalty = 1e-6 * sum(p.square().sum() for p in model.__self__.parameters())
        return super().differentiable_loss(model, guide, *args, **kwargs) + penalty


def test_a_small_term_that_no_row_owns_is_not_counted_by_each_share():
    assert steps_of(Decaying()).shards is None
    assert steps_of(Shared(), Penalised()).shards is None


@pytest.mark.parametrize(
    "make", [lambda: Shared(shared=True), lambda: Shared(rows=1000), Binarised, normalised], ids=lambda make: "program"
)
def test_a_loss_that_is_no_sum_over_rows_is_computed_whole(make):
    program = make()
    assert steps_of(program).shards is None


def test_no_equal_shares():
    loss = engine(small_vae()).eager.loss
    assert shards.Shards.of(loss, [BATCH[:47]]) is None
    assert shards.Shards.of(loss, [BATCH[:2]]).count == 2


def test_little_work_is_not_shared_out(monkeypatch):
    loss = engine(small_vae()).eager.loss
    work = 48 * sum(parameter.numel() for parameter in loss.parameters())
    monkeypatch.setattr(shards, "WORTH", work)
    assert shards.Shards.of(loss, [BATCH]).count == 3
    monkeypatch.setattr(shards, "WORTH", work + 1)
    assert shards.Shards.of(loss, [BATCH]) is None


def test_gradients_that_share_memory_are_summed_once():
    """Of w and v in w·x + v·x the gradient is the same, and may be the same tensor, even that of x."""
    x = torch.ones(2)
    for results, given in [([x, x], []), ([x, torch.ones(2)], [x]), ([x, x.view(2)], [])]:
        own = shards._own(results, given)
        sums, norm = shards._sums([own, [torch.ones(2), torch.ones(2)]], [0, 1])
        assert all(torch.equal(tensor, torch.full((2,), 2.0)) for tensor in sums) and torch.equal(x, torch.ones(2))
        assert float(norm) == pytest.approx(4.0)
