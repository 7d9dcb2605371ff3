"""fit and evaluate: what they improve, keep, restore and refuse."""

import copy
import itertools
import signal

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import nn

from pyro_vae import VAE, evaluate, fit, guides, likelihoods, load, networks, priors
from pyro_vae.data.sets import Data
from pyro_vae.training import loop as training
from pyro_vae.training.loop import NonFiniteLoss, check_program, fixed_x, warm_cosine

DIGITS = load("digits")
FEW = Data("few", DIGITS.train[:200], DIGITS.valid[:100], DIGITS.test[:100])


def small_vae(seed=0, latent=2):
    torch.manual_seed(seed)
    return VAE(
        priors.StandardNormal(latent),
        likelihoods.Bernoulli(networks.MLPDecoder(latent, DIGITS.shape, maps=1, hidden=(16,))),
        guides.MeanField(networks.MLPEncoder(DIGITS.shape, hidden=(16,)), latent),
    )


def quick(vae, data=FEW, estimator=None, **settings):
    step = {} if "optimizer" in settings else {"lr": 1e-2}
    return fit(vae, data, estimator, **{"epochs": 2, "batch_size": 50, "progress": False, **step, **settings})


@pytest.mark.parametrize("estimator", [Trace_ELBO(), TraceMeanField_ELBO(), Trace_ELBO(3, vectorize_particles=True)])
def test_every_bound_improves_on_training_and_validation_images(estimator):
    vae = small_vae()
    rows = quick(vae, estimator=estimator, epochs=5).rows
    for split in ("train", "valid"):
        assert rows[-1][f"{split}_bound"] > rows[0][f"{split}_bound"] + 1
        for row in rows:
            assert row[f"{split}_bound"] == pytest.approx(-row[f"{split}_rate"] - row[f"{split}_distortion"])


def test_same_seed_same_result_and_the_callers_random_numbers_go_on():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    first, second, other = (small_vae() for _ in range(3))
    torch.manual_seed(3)
    histories = [quick(first), quick(second)]
    assert torch.equal(torch.rand(2), expected)
    quick(other, seed=1)
    times = ("seconds", "images_per_second")
    one, two = ([{k: v for k, v in row.items() if k not in times} for row in h.rows] for h in histories)
    assert one == two
    for a, b, c in zip(first.parameters(), second.parameters(), other.parameters()):
        assert torch.equal(a, b) and not torch.equal(a, c)


def test_the_parameters_best_on_the_validation_images_are_kept():
    vae = small_vae()

    def ruin(optimizer, steps):
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 if step < steps / 2 else 300.0)

    history = quick(vae, epochs=6, schedule=ruin)  # the last epochs are not the best
    bounds = [row["valid_bound"] for row in history.rows]
    assert history.best_epoch == 1 + bounds.index(max(bounds)) < 6
    kept = evaluate(vae, fixed_x(vae, FEW.valid.images)).bound.mean().item()
    assert kept == pytest.approx(max(bounds), abs=1e-9)


def test_the_schedule_moves_the_step_of_every_step():
    seen = []

    class Watched(torch.optim.SGD):
        def step(self, *args, **kwargs):
            seen.append(self.param_groups[0]["lr"])
            return super().step(*args, **kwargs)

    quick(small_vae(), epochs=5, optimizer=lambda parameters: Watched(parameters, lr=1e-3), schedule=warm_cosine)
    assert len(seen) == 20 and seen[:3] == pytest.approx([5e-4, 1e-3, 1e-3])
    assert all(later < earlier for earlier, later in itertools.pairwise(seen[2:])) and seen[-1] < 2e-5


@pytest.mark.parametrize("enabled", [True, False])
def test_the_validation_setting_is_left_alone(enabled):
    with pyro.validation_enabled(enabled):
        quick(small_vae(), epochs=1)
        assert pyro.infer.util.is_validation_enabled() == enabled
        assert torch.distributions.Distribution._validate_args == enabled


def test_the_first_batch_is_validated_even_where_validation_is_off():
    vae = small_vae()
    vae.likelihood.observe = lambda pixels, generator=None: pixels / 255
    with pyro.validation_enabled(False), pytest.raises(ValueError, match="outside the support of Bernoulli"):
        quick(vae)


def test_modes_are_restored():
    vae = small_vae()
    vae.posterior.eval()
    quick(vae, epochs=1)
    assert vae.training and not vae.posterior.training and not vae.posterior.head.training


def test_ctrl_c_ends_after_a_whole_step(request):
    def interrupt(count, x):
        if count == 4:
            signal.raise_signal(signal.SIGINT)
        return x

    program, steps = Breaks(small_vae(), interrupt), []
    # A process started in the background ignores Ctrl-C; this test wants Python's usual handler.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))

    class Counted(torch.optim.SGD):
        def step(self, *args, **kwargs):
            steps.append(1)
            return super().step(*args, **kwargs)

    assert quick(program, optimizer=lambda parameters: Counted(parameters, lr=1e-4)).interrupted
    assert len(steps) == 3  # the first batch checks the program, the fourth is the third step's, which is finished
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


class Breaks(nn.Module):
    """A program whose x is made by ``on_batch(number of the batch, x)``."""

    def __init__(self, vae, on_batch):
        super().__init__()
        self.vae, self.on_batch, self.count = vae, on_batch, 0
        self.model, self.guide = vae.model, vae.guide

    def observe(self, pixels, generator=None):
        x = self.vae.observe(pixels, generator)
        if generator is None:
            self.count += 1
            x = self.on_batch(self.count, x)
        return x


@pytest.mark.filterwarnings("ignore:Encountered NaN")
def test_a_non_finite_loss_names_the_step_and_restores_the_last_good_parameters():
    good = small_vae()
    quick(good, epochs=1)
    # batch 1 checks the program; four steps an epoch: batch 8 is step 3 of epoch 2
    program = Breaks(small_vae(), lambda count, x: x * torch.nan if count == 8 else x)
    with pytest.raises(NonFiniteLoss, match=r"became nan in epoch 2, step 3, under Trace_ELBO.*smaller lr"):
        quick(program)
    for mine, theirs in zip(program.vae.parameters(), good.parameters()):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(("at", "like_epochs"), [(8, 1), (13, 2)])
def test_ctrl_c_keeps_the_best_parameters_so_far(at, like_epochs):
    def interrupt(count, x):
        if count == at:
            raise KeyboardInterrupt
        return x

    good, program = small_vae(), Breaks(small_vae(), interrupt)
    quick(good, epochs=like_epochs)
    history = quick(program, epochs=4)
    assert history.interrupted and len(history.rows) == like_epochs
    for mine, theirs in zip(program.vae.parameters(), good.parameters()):
        assert torch.equal(mine, theirs)


def test_ctrl_c_before_the_first_epoch_ends_keeps_the_steps_taken():
    def interrupt(count, x):
        if count == 4:
            raise KeyboardInterrupt
        return x

    program, start = Breaks(small_vae(), interrupt), small_vae().state_dict()
    history = quick(program)
    assert history.interrupted and not history.rows and history.best_epoch is None
    assert not any(torch.equal(value, start[name]) for name, value in program.vae.named_parameters())


def test_evaluate_is_the_mean_log_weight_of_every_image():
    vae = small_vae()
    x = fixed_x(vae, FEW.test.images)
    evaluation = evaluate(vae, x, particles=400, batch_size=33)
    with torch.no_grad():
        q = vae.posterior(x)
        rate = torch.distributions.kl_divergence(q, vae.prior().expand(q.batch_shape))
        z = q.sample((4000,))
        distortion = -vae.likelihood(z).log_prob(x).mean(0)
    assert evaluation.bound.shape == (100,) and evaluation.bound.dtype == torch.float64
    assert torch.allclose(evaluation.rate.float(), rate, atol=0.2)
    assert torch.allclose(evaluation.distortion.float(), distortion, atol=0.2)
    assert evaluation.rate.mean().item() == pytest.approx(rate.mean().item(), abs=0.01)
    assert evaluation.distortion.mean().item() == pytest.approx(distortion.mean().item(), abs=0.02)


def test_evaluate_changes_nothing_and_raises_on_nan():
    vae = small_vae()
    before, x = copy.deepcopy(vae.state_dict()), fixed_x(vae, FEW.test.images)
    state = torch.get_rng_state()
    assert torch.equal(evaluate(vae, x).bound, evaluate(vae, x).bound)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())
    assert all(parameter.grad is None for parameter in vae.parameters())
    vae.likelihood.network.layers[-2].bias.data[5] = torch.nan
    with pyro.validation_enabled(False), pytest.raises(FloatingPointError, match="100 of 100 images is not finite"):
        evaluate(vae, x)


def test_x_of_held_out_images_is_drawn_once():
    vae = small_vae()
    assert torch.equal(fixed_x(vae, FEW.test.images), fixed_x(vae, FEW.test.images))
    assert not torch.equal(vae.observe(FEW.test.images), vae.observe(FEW.test.images))


class TwoLayers(nn.Module):
    """Another structure: x <- z1 <- z2, written by hand."""

    def __init__(self):
        super().__init__()
        self.up = nn.ModuleList([networks.MLPEncoder(DIGITS.shape, (8,)), nn.Linear(8, 4), nn.Linear(2, 4)])
        decoder = networks.MLPDecoder(2, DIGITS.shape, 1, (8,))
        self.down = nn.ModuleList([nn.Linear(2, 4), likelihoods.Bernoulli(decoder)])
        self.observe = self.down[1].observe

    def model(self, x):
        with pyro.plate("images", len(x)):
            z2 = pyro.sample("z2", dist.Normal(torch.zeros(2), 1).to_event(1))
            loc, log_scale = self.down[0](z2).chunk(2, -1)
            z1 = pyro.sample("z1", dist.Normal(loc, log_scale.exp()).to_event(1))
            pyro.sample("x", self.down[1](z1), obs=x)

    def guide(self, x):
        with pyro.plate("images", len(x)):
            loc, log_scale = self.up[1](self.up[0](x)).chunk(2, -1)
            z1 = pyro.sample("z1", dist.Normal(loc, log_scale.exp()).to_event(1))
            loc, log_scale = self.up[2](z1).chunk(2, -1)
            pyro.sample("z2", dist.Normal(loc, log_scale.exp()).to_event(1))


def test_a_program_of_another_structure_is_trained_and_evaluated_unchanged():
    torch.manual_seed(0)
    program = TwoLayers()
    rows = quick(program, epochs=5).rows
    assert rows[-1]["valid_bound"] > rows[0]["valid_bound"] + 1


def test_site_names_that_differ_are_an_error():
    program = TwoLayers()
    program.guide = small_vae().guide
    with pytest.raises(ValueError, match=r"only in the model: \['z1', 'z2'\], only in the guide: \['z'\]"):
        check_program(program, fixed_x(program, FEW.test.images))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs: wanted a whole number of at least 1, got 0"),
        ({"batch_size": 201}, r"batch_size: wanted 1 to 200 \(the training images\), got 201"),
        ({"batch_size": 0}, "batch_size"),
        ({"lr": -1e-3}, "lr: wanted a positive number, got -0.001"),
        ({"lr": float("nan")}, "lr"),
        ({"estimator": "trace"}, r"estimator: wanted a pyro\.infer\.ELBO"),
        ({"estimator": RenyiELBO(num_particles=2), "engine": "eager"}, 'RenyiELBO .* only engine="svi" trains by it'),
    ],
)
def test_bad_settings_are_refused_before_anything_is_trained(settings, message):
    vae = small_vae()
    before = copy.deepcopy(vae.state_dict())
    with pytest.raises(ValueError, match=message):
        quick(vae, **settings)
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())


def test_programs_without_parameters_or_methods_are_refused():
    with pytest.raises(ValueError, match="no trainable parameter"):
        quick(small_vae().requires_grad_(False))
    with pytest.raises(ValueError, match=r"wanted an nn\.Module with model, guide and observe, got Linear"):
        quick(nn.Linear(2, 2))


def test_a_bound_that_is_not_finite_names_the_epoch_and_the_cures(monkeypatch):
    def broken(*args, **kwargs):
        raise FloatingPointError("the bound of 3 of 50 images is not finite")

    monkeypatch.setattr(training, "evaluate", broken)
    with pytest.raises(NonFiniteLoss, match=r"after epoch 1 under Trace_ELBO: the bound of 3 .* Try a smaller lr"):
        fit(small_vae(), FEW, epochs=2, batch_size=50, progress=False)
