"""What would fail in the middle of a training fails before it."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from monte_carlo import assert_evidence_is
from programs import DIGITS, FEW, copy_of, quick, same, small_vae
from pyro.infer import SVI, Trace_ELBO
from torch import nn

from pyro_vae import VAE, compare_estimators, evaluate, guides, likelihoods, log_evidence, networks, priors
from pyro_vae.estimators import StickingTheLanding
from pyro_vae.handlers import KLWeight, KLWeighted
from pyro_vae.training import check_program
from pyro_vae.training.rehearsal import last_batch


def refused(program, match, **settings):
    before = copy_of(program)
    with pytest.raises(ValueError, match=match) as caught:
        quick(program, **settings)
    assert same(program, before)
    return str(caught.value)


def normalised():
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Flatten(-3), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU())
    decoder = likelihoods.Bernoulli(networks.MLPDecoder(2, DIGITS.shape, 1, hidden=(8,)))
    return VAE(priors.StandardNormal(2), decoder, guides.MeanField(encoder, 2, features=16))


@pytest.mark.slow
def test_a_last_batch_of_one_image_under_batchnorm_is_refused_with_a_cure_that_works():
    message = refused(
        normalised(),
        "batch_size: of 200 images in batches of 199 the last batch of an epoch has 1, .*"
        "Expected more than 1 value per channel when training",
        batch_size=199,
    )
    assert quick(normalised(), batch_size=int(message.rpartition("batch_size=")[2])).rows
    assert quick(normalised(), batch_size=198).rows and quick(small_vae(), batch_size=199).rows


def test_the_error_of_the_program_itself_goes_first():
    def loss(x):
        if len(x) < 4:
            raise RuntimeError("three are too few\nat all")

    cure = r"of 10 images in batches of 7 .* has 3, .*\(three are too few\).* such as batch_size=6$"
    with pytest.raises(ValueError, match=cure):
        last_batch(loss, torch.zeros(7, 1), 10, 7)
    last_batch(loss, torch.zeros(6, 1), 10, 6)
    last_batch(loss, torch.zeros(5, 1), 10, 5)
    with pytest.raises(RuntimeError, match="three are too few"):
        last_batch(loss, torch.zeros(3, 1), 10, 3)


@pytest.mark.slow
def test_a_rehearsal_leaves_the_training_as_it_is(monkeypatch):
    rehearsed, plain = normalised(), normalised()
    first = quick(rehearsed, batch_size=60)
    monkeypatch.setattr("pyro_vae.training.rehearsal.rehearse", lambda *_: None)
    second = quick(plain, batch_size=60)
    assert same(rehearsed, copy_of(plain))
    assert [row["valid_bound"] for row in first.rows] == [row["valid_bound"] for row in second.rows]


class Observed(nn.Module):
    """A Normal likelihood of whatever ``observe`` makes, without checks of its own."""

    def __init__(self, observe):
        super().__init__()
        self.loc, self.observe = nn.Parameter(torch.zeros(1, 8, 8)), lambda pixels, generator=None: observe(pixels)

    def model(self, x):
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.loc + z[..., None, None], 1.0).to_event(3), obs=x)

    def guide(self, x):
        with pyro.plate("images", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))


def spoilt(pixels):
    x = pixels / 255
    x[[3, 7]] = torch.nan
    return x


def test_nan_in_x_is_named_without_a_page_of_numbers():
    message = refused(Observed(spoilt), "x: 128 of its values are NaN or infinite, in the rows 3, 7; take these")
    assert "tensor(" not in message and len(message) < 500
    with pyro.validation_enabled(), pytest.raises(ValueError, match=r"x: 128 of its values .* rows 3, 7; ") as caught:
        evaluate(Observed(spoilt), spoilt(FEW.valid.images[:50]))
    assert "tensor(" not in str(caught.value)


@pytest.mark.parametrize("missing", [False, True])
def test_an_error_that_nan_did_not_cause_is_left_as_it_is(missing):
    class Incomplete(Observed):
        """Its model takes NaN for missing, and its guide is masked otherwise, or draws the site by another name."""

        def model(self, x):
            with pyro.plate("images", len(x)):
                known = ~x.isnan().flatten(1).any(1)
                z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1).mask(known))
                p = dist.Normal(self.loc + z[..., None, None], 1.0).to_event(3).mask(known)
                pyro.sample("x", p, obs=x.nan_to_num())

        def guide(self, x):
            with pyro.plate("images", len(x)):
                pyro.sample("Z" if missing else "z", dist.Normal(torch.zeros(1), 1.0).to_event(1))

    program, x = Incomplete(spoilt), spoilt(FEW.valid.images[:50])
    words = "only in the model: " if missing else "site 'z': its mask in the model is not that in the guide"
    refused(program, f"^(?!x:).*{words}")
    for call in (lambda: evaluate(program, x), lambda: log_evidence(program.model, program.guide, x, 5)):
        with pytest.raises(ValueError, match=f"^(?!x:).*{words}"):
            call()


@pytest.mark.slow
def test_infinite_x_is_named_without_a_page_of_numbers():
    class Encoded(Observed):
        def guide(self, x):
            with pyro.plate("images", len(x)):
                pyro.sample("z", dist.Normal(x.flatten(1).mean(1, keepdim=True), 1.0).to_event(1))

    program, x, one = Encoded(spoilt), torch.zeros(5, 1, 8, 8), {"a": Trace_ELBO()}
    x[4, 0, 0, :2] = torch.tensor([torch.inf, -torch.inf])
    with pyro.validation_enabled():
        for call in (
            lambda: evaluate(program, x),
            lambda: check_program(program, x),
            lambda: log_evidence(program.model, program.guide, x, 5),
            lambda: compare_estimators(program.model, program.guide, x, draws=2, progress=False, estimators=one),
        ):
            with pytest.raises(ValueError, match="x: 2 of its values are NaN or infinite, in the rows 4; ") as caught:
                call()
            assert "tensor(" not in str(caught.value) and "Trace Shapes" not in str(caught.value)
        evaluate(program, x.nan_to_num(0, 0, 0))


class Labelled(Observed):
    """What a label adds to the mean of an image."""

    def __init__(self):
        super().__init__(lambda pixels: pixels / 255)

    def model(self, x, y):
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            loc = self.loc + z[..., None, None] + y[:, None, None, None]
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(3), obs=x)


class LabelledByName(Labelled):
    def model(self, x, *, y):
        super().model(x, y)


class LabelledGuide(Observed):
    def __init__(self):
        super().__init__(lambda pixels: pixels / 255)

    def guide(self, x, y):
        super().guide(x)


@pytest.mark.parametrize("make", [Labelled, LabelledByName, LabelledGuide, lambda: KLWeighted(LabelledGuide())])
def test_a_program_that_wants_a_label_is_refused_in_our_words(make):
    refused(make(), r"program: observe must return all arguments of model and guide.*such as \(x, batch.labels\).* 'y'")
    for call in (evaluate, check_program):
        with pytest.raises(ValueError, match="observe must return all arguments"):
            call(make(), torch.zeros(5, 1, 8, 8))


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({"x": torch.zeros(5)}, "observe: wanted a tensor x, or a tuple of tensors, got a dict; return x, or a tuple"),
        (("x", 3), "observe: wanted .*, got a tuple of str, int; return x"),
        ((), "observe: wanted .*, got an empty tuple"),
        ((torch.zeros(3), torch.zeros(5)), r"observe: wanted an x of \d+ rows, as many as the batch has, got shape"),
    ],
)
def test_what_observe_may_not_return(made, message):
    program = Labelled()
    program.observe = lambda batch, generator=None: made
    refused(program, message)


def test_a_label_in_one_more_channel_is_measured_as_one_that_is_an_argument():
    class Packed(Labelled):
        def model(self, x):
            super().model(x[:, :1], x[:, 1, 0, 0])

    x, y = torch.rand(5, 1, 8, 8), torch.arange(5.0)
    given, packed = Labelled(), Packed()
    packed_x = torch.cat([x, y[:, None, None, None].expand(5, 1, 8, 8)], 1)
    expected = log_evidence(given.model, lambda x, y: given.guide(x), (x, y), 5, seed=0).log_px
    assert torch.equal(log_evidence(packed.model, packed.guide, packed_x, 5, seed=0).log_px, expected)
    check_program(packed, packed_x)


def test_a_type_error_of_the_program_itself_goes_on():
    class Wrong(Observed):
        def model(self, x):
            return x + "one"

    with pytest.raises(TypeError, match="unsupported operand"):
        quick(Wrong(spoilt))


class ByPosition(Observed):
    """A body that softens along dimension 1, as is right for one particle."""

    def __init__(self):
        super().__init__(lambda pixels: pixels / 255)

    def model(self, x):
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.loc + z.softmax(1)[..., :1, None, None], 1.0).to_event(3), obs=x)

    def guide(self, x):
        with pyro.plate("images", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x), 3), 1.0).to_event(1))


@pytest.mark.slow
def test_particles_of_pyros_elbos_are_drawn_together_only_where_that_changes_nothing():
    together = Trace_ELBO(2, vectorize_particles=True, max_plate_nesting=1)
    message = refused(ByPosition(), "estimator: Trace_ELBO draws its particles in one plate", estimator=together)
    names = {"Trace_ELBO": Trace_ELBO}
    assert quick(ByPosition(), epochs=1, estimator=eval(message.rpartition("write ")[2], names)).rows
    assert quick(Observed(lambda pixels: pixels / 255), epochs=1, estimator=together).rows
    assert quick(normalised(), epochs=1, estimator=together).rows


@pytest.mark.slow
def test_parameters_that_are_not_finite_are_named_without_a_page_of_numbers():
    vae = small_vae()
    with torch.no_grad():
        vae.posterior.head.weight.fill_(torch.nan)
    before, x = copy_of(vae), torch.rand(50, 1, 8, 8).round()
    for call in (lambda: quick(vae), lambda: evaluate(vae, x)):
        with pyro.validation_enabled(), pytest.raises(ValueError, match=r"but found invalid values$") as caught:
            call()
        assert "tensor(" not in str(caught.value) and "Expected parameter loc" in str(caught.value)
    assert all(torch.equal(value.nan_to_num(), before[name].nan_to_num()) for name, value in vae.state_dict().items())


class AlwaysWeighted(nn.Module):
    """A KL weight in evaluation mode too."""

    def __init__(self):
        super().__init__()
        self.vae, self.weight = small_vae(), KLWeight(0.5)
        self.observe = self.vae.observe

    def model(self, x):
        return self.weight(self.vae.model)(x)

    def guide(self, x):
        return self.weight(self.vae.guide)(x)


class InTheStore(Observed):
    """A parameter in Pyro's store."""

    def model(self, x):
        scale = pyro.param("noise", torch.tensor(0.5), constraint=dist.constraints.positive)
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.loc + z[..., None, None], scale).to_event(3), obs=x)


class AtFirstCall(Observed):
    """A guide that makes its parameters when it first runs."""

    def guide(self, x):
        if not hasattr(self, "head"):
            self.head = nn.Linear(64, 1)
        with pyro.plate("images", len(x)):
            pyro.sample("z", dist.Normal(self.head(x.flatten(1)), 1.0).to_event(1))


@pytest.mark.parametrize(("program", "names"), [(InTheStore, "noise"), (AtFirstCall, "head.bias, head.weight")])
@pytest.mark.parametrize("engine", ["eager", "svi"])
def test_parameters_that_would_stay_as_they_are_are_named(program, names, engine):
    program = program(lambda pixels: pixels / 255)
    refused(program, f"program: model and guide depend on {names} ", engine=engine)
    assert "noise" not in pyro.get_param_store()


@pytest.mark.slow
def test_a_guide_that_has_run_once_is_trained():
    program = AtFirstCall(lambda pixels: pixels / 255)
    program.guide(program.observe(FEW.train.images[:50]))
    before = program.head.weight.clone()
    quick(program)
    assert not torch.equal(program.head.weight, before)


class WithoutPlate(Observed):
    """A latent variable that all images share."""

    def model(self, x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("images", len(x)):
            pyro.sample("x", dist.Normal(self.loc + z[..., None, None, None], 1.0).to_event(3), obs=x)

    def guide(self, x):
        pyro.sample("z", dist.Normal(0.0, 1.0))


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (AlwaysWeighted, "scaled differently.*handlers.KLWeighted"),
        (
            lambda: WithoutPlate(lambda pixels: pixels / 255),
            "do not share a plate.*SVI, .*and measure by log_evidence(?!.*KL)",
        ),
    ],
)
def test_a_program_whose_bound_cannot_be_measured_is_refused_before_anything_is_trained(program, reason):
    refused(program(), f"after each epoch the bound of each image is measured, in evaluation mode, .*{reason}")


def test_what_all_images_share_is_trained_by_svi_and_measured_by_log_evidence():
    program, x = WithoutPlate(None), torch.zeros(2, 1, 8, 8)
    evidence = log_evidence(program.model, program.guide, x, 20_000, seed=0)
    exact = -64 * math.log(2 * math.pi) - 0.5 * math.log(129)  # of N(0, I + 11ᵀ) in 128 dimensions, at 0
    assert evidence.joint and evidence.monte_carlo_error < 0.04
    assert_evidence_is(evidence, exact, sees=0.4)
    svi = SVI(program.model, program.guide, pyro.optim.Adam({"lr": 0.1}), StickingTheLanding())
    torch.manual_seed(0)
    losses = [svi.evaluate_loss(x) for _ in range(100)]
    assert sum(losses) / 100 > -exact and math.isfinite(svi.step(x))  # one draw of the loss may be lower
