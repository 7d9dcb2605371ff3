"""Losses that are sums over rows, and those whose parts do not add up to the loss of the batch."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import FEW, quick, small_vae
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, config_enumerate
from torch import nn

from pyro_vae.estimators import Description, WakeSleep
from pyro_vae.training import TrainingWarning
from pyro_vae.training.sums import check_sum_over_rows

X = torch.arange(6.0)


class Rows(nn.Module):
    """A program whose plate may be a part of more rows, and whose model or guide may have a term of no row."""

    def __init__(self, total=None, factor=None):
        super().__init__()
        self.loc, self.total, self.factor = nn.Parameter(torch.zeros(())), total, factor

    def observe(self, pixels, generator=None):
        return pixels.flatten(1).float().mean(1)

    def plate(self, x):
        return pyro.plate("rows", self.total or len(x), subsample_size=len(x))

    def penalty(self, where):
        if self.factor == where and self.training:
            pyro.factor("penalty", -self.loc.square(), has_rsample=where == "guide" or None)

    def model(self, x):
        self.penalty("model")
        with self.plate(x):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x):
        self.penalty("guide")
        with self.plate(x):
            pyro.sample("z", dist.Normal(self.loc, 1.0))


def loss_of(program, x):
    """The loss at z = loc, which has no noise."""
    at = {"z": program.loc.expand(x.shape)}
    guide = pyro.poutine.trace(pyro.poutine.condition(program.guide, at)).get_trace(x)
    model = pyro.poutine.trace(pyro.poutine.condition(program.model, at)).get_trace(x)
    return (guide.log_prob_sum() - model.log_prob_sum()).item()


@pytest.mark.parametrize(
    ("program", "match"),
    [
        (Rows(), None),
        (Rows(total=100), r"scale of site 'z' depends on the number of rows: it is 16.67 for 6 and 33.33 for 3"),
        (Rows(factor="model"), "do not share a plate"),
        (Rows(factor="guide"), "the guide has factors: penalty"),
    ],
)
def test_what_is_refused_does_not_add_up(program, match):
    nn.init.ones_(program.loc)
    parts = loss_of(program, X[:3]) + loss_of(program, X[3:])
    assert (parts == pytest.approx(loss_of(program, X), rel=1e-5)) == (match is None)
    if match is None:
        check_sum_over_rows(Trace_ELBO(), program.model, program.guide, (X,), 6)
    else:
        with pytest.raises(ValueError, match=match):
            check_sum_over_rows(Trace_ELBO(), program.model, program.guide, (X,), 6)


def test_sites_that_are_summed_out_are_rows_too():
    def guide(x):
        pass

    @config_enumerate
    def model(x):
        with pyro.plate("rows", len(x)):
            y = pyro.sample("y", dist.Bernoulli(0.25))
            pyro.sample("x", dist.Normal(y, 1.0), obs=x)

    check_sum_over_rows(TraceEnum_ELBO(max_plate_nesting=1), model, guide, (X,), 6)


class Penalised(Trace_ELBO):
    """An estimator with a penalty on the parameters."""

    def differentiable_loss(self, model, guide, *args, **kwargs):
        penalty = sum(p.square().sum() for p in model.__self__.parameters())
        return super().differentiable_loss(model, guide, *args, **kwargs) + penalty


class Claimed(Penalised):
    description = Description.unbiased("ELBO")


@pytest.mark.slow
def test_parts_of_a_batch_are_summed_only_where_that_is_its_loss():
    settings = {"batch_size": 50, "engine": "eager"}
    for program in Rows(total=200), Rows(factor="model"):
        quick(program, **settings)
        with pytest.raises(ValueError, match=r"losses of 2 parts .* are summed \(accumulate=2\).*count 2 times"):
            quick(program, accumulate=2, **settings)
    quick(small_vae(), estimator=Penalised(), **settings)
    with pytest.warns(TrainingWarning, match="nothing says that that of Penalised is a sum over rows"):
        quick(small_vae(), estimator=Penalised(), accumulate=2, **settings)
    for estimator in Claimed(), WakeSleep(), TraceEnum_ELBO():
        quick(small_vae(), estimator=estimator, accumulate=2, **settings)
    assert len(FEW.train) % 50 == 0
