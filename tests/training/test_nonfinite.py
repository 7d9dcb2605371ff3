"""What is said of a loss that is not finite: the first site, or the parameters, where it came from."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import Breaks, quick, small_vae
from pyro.infer import RenyiELBO, Trace_ELBO, TraceGraph_ELBO
from small_trainings import train
from torch import nn

from pyro_vae import parameter_sites
from pyro_vae.estimators import ImportanceWeighted
from pyro_vae.observation import arguments
from pyro_vae.training import NonFiniteLoss
from pyro_vae.training.nonfinite import culprit

PIXELS = torch.ones(4, 3)


class Small(nn.Module):
    """x ~ N(loc, scale²) with z ~ N(0, 1), whose numbers can be spoilt; ``root`` has an infinite slope at zero."""

    def __init__(self):
        super().__init__()
        self.loc, self.root = nn.Parameter(torch.zeros(())), nn.Parameter(torch.ones(()))
        self.prior, self.scale, self.factor = 0.0, 1.0, 1.0

    def observe(self, pixels):
        return pixels * self.factor

    def model(self, x):
        parameter_sites(self)
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(self.prior, 1.0))
            p = dist.Normal(self.loc + z[..., None] + self.root.sqrt(), self.scale).expand([*z.shape, 3]).to_event(1)
            pyro.sample("x", p, obs=x)

    def guide(self, x):
        parameter_sites(self)
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(self.loc, 1.0))


def spoilt(**values):
    program = Small()
    for name, value in values.items():
        if isinstance(getattr(program, name), nn.Parameter):
            getattr(program, name).data.fill_(value)
        else:
            setattr(program, name, value)
    return program


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"factor": math.inf}, "x itself holds 12 values that are not finite"),
        ({"loc": math.nan}, "that of site 'z' of the guide; loc (1 parameters in all) are not finite either"),
        ({"prior": math.inf}, "that of site 'z' of the model"),
        ({"scale": math.nan}, "that of site 'x' of the model"),
        ({"root": 0.0}, "every log-probability is finite, the gradient of root is not (1 in all)"),
        ({}, "the same batch with the parameters as they are now gives finite numbers"),
    ],
)
@pytest.mark.parametrize("estimator", [Trace_ELBO(), ImportanceWeighted(3), RenyiELBO(num_particles=2)])
def test_the_first_place_is_named(values, words, estimator):
    program = spoilt(**values)
    said = culprit(program, estimator, *arguments(program, PIXELS))
    assert said.endswith(words)


def test_a_loss_that_is_not_finite_by_itself():
    class Infinite(Trace_ELBO):
        def differentiable_loss(self, model, guide, x):
            return super().differentiable_loss(model, guide, x) * math.inf

    assert culprit(Small(), Infinite(), PIXELS) == "the log-probability of every site is finite, the loss is not"


def test_the_search_leaves_parameters_and_settings_as_they_are():
    program = spoilt(scale=math.nan)
    before = {name: value.clone() for name, value in program.state_dict().items()}
    with pyro.validation_enabled(True), torch.no_grad():
        culprit(program, Trace_ELBO(), *arguments(program, PIXELS))
        assert pyro.infer.util.is_validation_enabled() and not torch.is_grad_enabled()
    assert all(torch.equal(value, before[name]) for name, value in program.state_dict().items())


@pytest.mark.slow
def test_the_numbers_that_a_step_met_are_met_again():
    """Restored random numbers lead to the very draw that fails."""

    class Rare(Small):
        def model(self, x):
            with pyro.plate("rows", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))[..., None]
                pyro.sample("x", dist.Normal(z / (z < 1.5), 1.0).expand([len(x), 3]).to_event(1), obs=x)

    program, found = Rare(), set()
    for seed in [*range(20)] * 2:
        torch.manual_seed(seed)
        found.add((seed, "site 'x' of the model" in culprit(program, Trace_ELBO(), *arguments(program, PIXELS))))
    assert len(found) == 20 and {fails for _, fails in found} == {True, False}


@pytest.mark.filterwarnings("ignore:Encountered NaN:UserWarning")
@pytest.mark.parametrize(
    ("part", "site"), [("posterior.head", "site 'z' of the guide"), ("likelihood.network", "site 'x' of the model")]
)
def test_the_site_that_went_first_is_named(part, site):
    vae = small_vae()

    def ruin(count, x):
        if count == 5:
            for name, parameter in vae.named_parameters():
                if name.startswith(part):
                    parameter.data.fill_(torch.nan)
        return x

    with pytest.raises(NonFiniteLoss, match=f"epoch 1, step 4.*the log-probability that went first is that of {site}"):
        train(Breaks(vae, ruin))


def test_a_gradient_that_is_not_finite_is_named_and_never_applied():
    vae = small_vae()
    vae.extra = torch.nn.Parameter(torch.zeros(()))
    model = vae.model
    vae.model = lambda x: model(x + 0 * vae.extra.sqrt().nan_to_num())  # d sqrt(0) is infinite, times zero: NaN
    with pytest.raises(NonFiniteLoss, match=r"log-probability is finite, the gradient of extra is not \(1 in all"):
        train(vae, estimator=Trace_ELBO())
    assert vae.extra == 0


@pytest.mark.filterwarnings("ignore:Encountered NaN:UserWarning")
def test_a_non_finite_loss_of_such_an_estimator_names_its_site():
    vae = small_vae()

    def ruin(count, x):
        if count == 5:
            vae.posterior.head.bias.data.fill_(torch.nan)
        return x

    with pytest.raises(NonFiniteLoss, match=r"under TraceGraph_ELBO: .* went first is that of site 'z' of the guide"):
        quick(Breaks(vae, ruin), estimator=TraceGraph_ELBO())
