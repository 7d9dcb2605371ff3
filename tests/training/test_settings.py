"""Settings of fit: what is refused before anything is trained, and that the cure in each message works."""

import copy
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import DIGITS, FEW, quick, small_vae
from pyro.infer import RenyiELBO, Trace_ELBO, TraceTailAdaptive_ELBO
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader

from pyro_vae import VAE, Checkpoints, evaluate, fit, guides, likelihoods, networks, priors
from pyro_vae.compiling.constants import WatchedConstants
from pyro_vae.compiling.joint import record
from pyro_vae.data.sets import Data, Split
from pyro_vae.training import fixed_x
from pyro_vae.training.engines import Eager


def refused(match, program=None, data=FEW, **settings):
    """The message of the ValueError of fit, which leaves the program as it was."""
    program = program or small_vae()
    before = copy.deepcopy(program.state_dict())
    with pytest.raises(ValueError, match=match) as caught:
        quick(program, data, **settings)
    assert all(torch.equal(value, before[name]) for name, value in program.state_dict().items())
    return str(caught.value)


def cure(message):
    """The settings that a message advises, after its last ``write``."""
    return eval(f"dict({message.rpartition('write ')[2]})", {"torch": torch})


OTHER = small_vae(seed=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "got"),
    [
        (torch.optim.Adam(small_vae().parameters()), r"a torch\.optim\.adam\.Adam"),
        (pyro.optim.Adam({"lr": 1e-3}), r"a pyro\.optim\.optim\.PyroOptim"),
        (pyro.optim.Adam, "function"),
        (pyro.optim.ExponentialLR({"optimizer": torch.optim.Adam, "optim_args": {"lr": 1e-3}, "gamma": 0.9}), "PyroLR"),
        ("adam", "'adam'"),
        ({"lr": 1e-3}, "a builtins.dict"),
        (lambda parameters: None, "one to a builtins.NoneType"),
        (lambda parameters: torch.optim.Adam, "one to a builtins.type"),
        (lambda: None, "the function that was given fails"),
        (torch.optim.LBFGS, "LBFGS evaluates the loss several times a step"),
        (lambda parameters: torch.optim.LBFGS(parameters), "LBFGS evaluates the loss several times a step"),
        (torch.optim.SparseAdam, "SparseAdam takes sparse gradients"),
        (lambda _: torch.optim.Adam(OTHER.parameters()), r"it does not hold likelihood\..* \(8 of 8 parameters\)"),
        (lambda parameters: torch.optim.Adam(parameters[1:]), r"does not hold \S+ \(1 of 8 parameters\)"),
        (lambda parameters: torch.optim.SGD([*parameters, *OTHER.parameters()], lr=1.0), "it holds 8 parameters that"),
    ],
)
def test_what_is_no_optimiser_of_these_parameters_is_refused(optimizer, got):
    message = refused(f"optimizer: .*{got}", optimizer=optimizer)
    assert quick(small_vae(), epochs=1, **cure(message)).rows


@pytest.mark.slow
def test_optimisers_that_are_taken():
    def of_groups(parameters):
        return torch.optim.SGD([{"params": parameters[:2], "lr": 1e-3}, {"params": parameters[2:]}], lr=1e-2)

    for optimizer in (torch.optim.Adam, partial(torch.optim.RMSprop, lr=1e-2), of_groups):
        assert quick(small_vae(), epochs=1, optimizer=optimizer).rows
    vae = small_vae()
    frozen = copy.deepcopy(vae.posterior.requires_grad_(False).state_dict())
    assert quick(vae, epochs=1, optimizer=lambda _: torch.optim.Adam(vae.likelihood.parameters(), lr=1e-2)).rows
    assert all(torch.equal(value, frozen[name]) for name, value in vae.posterior.state_dict().items())


@pytest.mark.slow
def test_a_step_beside_an_optimiser_is_refused():
    message = refused(r"lr: got 0\.01 beside an optimizer", optimizer=torch.optim.Adam, lr=1e-2)
    given, plain, default, thousandth = (small_vae() for _ in range(4))
    for program, settings in (given, cure(message)), (plain, {"lr": 1e-2}), (default, {}), (thousandth, {"lr": 1e-3}):
        fit(program, FEW, epochs=1, batch_size=50, progress=False, **settings)
    for one, other in ((given, plain), (default, thousandth)):
        torch.testing.assert_close(list(one.parameters()), list(other.parameters()), rtol=1e-5, atol=1e-7)
    refused("lr: wanted a positive number, got -1", optimizer=torch.optim.Adam, lr=-1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("schedule", "got"),
    [
        (lr_scheduler.StepLR(torch.optim.SGD(small_vae().parameters(), lr=1.0), 5), r"got a torch\S+StepLR; write"),
        (lr_scheduler.ReduceLROnPlateau(torch.optim.SGD(small_vae().parameters(), lr=1.0)), "ReduceLROnPlateau; write"),
        ("cosine", "got 'cosine'"),
        (lambda optimizer: lr_scheduler.StepLR(optimizer, 5), "the function that was given fails"),
        (lambda optimizer, steps: 0.1, "one to a builtins.float"),
        (pyro.optim.StepLR, "got a builtins.function"),
        (lambda optimizer, steps: lr_scheduler.StepLR(torch.optim.SGD(OTHER.parameters(), lr=1.0), 5), "of another"),
        (lambda optimizer, steps: lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=2), "OneCycleLR that ends with"),
        (
            lambda optimizer, steps: lr_scheduler.ChainedScheduler(
                [lr_scheduler.StepLR(optimizer, 5), lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=2)]
            ),
            "ChainedScheduler that ends with",
        ),
        (lambda optimizer, steps: lr_scheduler.ReduceLROnPlateau(optimizer), r'threshold_mode="abs", got "rel"'),
    ],
)
def test_what_is_no_schedule_of_this_optimiser_is_refused(schedule, got):
    message = refused(f"schedule: .*{got}", schedule=schedule)
    assert quick(small_vae(), epochs=1, **cure(message)).rows


@pytest.mark.parametrize(
    ("precision", "words"),
    [
        ("bf16", "'bf16'; write precision=torch.bfloat16"),
        ("bfloat16", "write precision=torch.bfloat16"),
        (16, "16; write"),
        (torch.int8, "int8; write"),
        ([], r"\[\]"),
        (True, "True"),
        (torch.float16, "gradients underflow in torch.float16.*write precision=torch.bfloat16"),
        (torch.float64, r"the parameters are torch.float32; write program.double\(\)"),
    ],
)
def test_precisions_that_are_refused(precision, words):
    refused(f"precision: wanted None or torch.bfloat16, got .*{words}", precision=precision)


@pytest.mark.slow
def test_precisions_that_are_taken():
    def bounds(precision, program):
        return [row["valid_bound"] for row in quick(program, precision=precision).rows]

    plain = bounds(None, small_vae())
    assert bounds(torch.float32, small_vae()) == plain
    assert bounds(torch.bfloat16, small_vae()) == pytest.approx(plain, abs=0.1)
    assert bounds(torch.float64, small_vae().double()) == bounds(None, small_vae().double())


def test_a_precision_without_effect_is_refused():
    refused(
        r"torch.bfloat16 has no effect on parameters of torch.float64; write program.float\(\)",
        small_vae().double(),
        precision=torch.bfloat16,
    )
    own = small_vae()
    own.posterior.network, own.likelihood.network = nn.Sequential(nn.Flatten(-3), nn.Linear(64, 16)), Decoder()
    refused("the program has none; leave precision out", own, precision=torch.bfloat16)


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 64)

    def forward(self, z):
        return self.layer(z).unflatten(-1, (1, 8, 8))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_programs_of_sixteen_bits_are_refused(dtype):
    refused(f"program: wanted parameters in torch.float32 or torch.float64, got {dtype}", small_vae().to(dtype))
    with pytest.raises(ValueError, match="off by whole nats"):
        evaluate(small_vae().to(dtype), torch.zeros(3, 1, 8, 8))


FAMILIES = [
    (likelihoods.Bernoulli, 1),
    (likelihoods.Normal, 2),
    (likelihoods.Beta, 2),
    (likelihoods.ContinuousBernoulli, 1),
    (likelihoods.DiscretizedLogistic, 2),
    (partial(likelihoods.Categorical, bins=10), 10),
]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "maps"), FAMILIES)
def test_double_programs_are_trained_and_measured_in_float64(family, maps):
    torch.manual_seed(0)
    vae = VAE(
        priors.StandardNormal(2),
        family(networks.MLPDecoder(2, DIGITS.shape, maps, hidden=(8,))),
        guides.MeanField(networks.MLPEncoder(DIGITS.shape, hidden=(8,)), 2),
    ).double()
    rows = quick(vae, epochs=2, estimator=Trace_ELBO(2)).rows
    assert rows[1]["valid_bound"] > rows[0]["valid_bound"]
    x = fixed_x(vae, FEW.test.images)
    assert x.dtype == torch.float64 and all(p.dtype == torch.float64 for p in vae.parameters())
    double = evaluate(vae, x, particles=100).summary()["bound"]
    assert double == pytest.approx(evaluate(vae.float(), x.float(), particles=100).summary()["bound"], abs=0.5)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["eager", "svi"])
def test_a_default_dtype_of_float64(float64, engine):
    for program in (small_vae(), small_vae().float()):  # as it is built here, and as it would be built before
        rows = quick(program, epochs=3, engine=engine).rows
        assert rows[0]["valid_bound"] < rows[2]["valid_bound"]


@pytest.mark.parametrize("program", [small_vae().double(), small_vae()], ids=["float64", "float32"])
def test_the_traced_step_of_a_program_makes_x_in_its_dtype(program):
    pixels, loss = FEW.train.images[:20], Eager(program, Trace_ELBO(), None).loss
    graph = record(lambda pixels: (loss(pixels).detach(),), (pixels,), WatchedConstants(loss.roots), compiler=None)
    with torch.random.fork_rng():
        eager = loss(pixels)
    rounding = 4 * torch.finfo(eager.dtype).eps  # the graph's sums may be ordered otherwise
    torch.testing.assert_close(graph((pixels,))[0], eager, rtol=rounding, atol=0.0)
    assert eager.dtype == next(program.parameters()).dtype


@pytest.mark.parametrize(
    ("data", "got"),
    [
        (FEW.train.images, "got Tensor; write Data"),
        (FEW.train, "got Split"),
        (DataLoader(FEW.train.images), "got DataLoader"),
        ((FEW.train, FEW.valid), "got tuple"),
        (None, "got NoneType"),
    ],
)
def test_data_that_is_none(data, got):
    refused(f"data: wanted a pyro_vae.data.Data, {got}", data=data)


@pytest.mark.slow
def test_the_cure_for_data_that_is_none():
    message = refused("data: wanted", data=FEW.train.images)
    words = message.rpartition("write ")[2].partition("), each")[0] + ")"
    names = {"Data": Data, "Split": Split, **{name: getattr(FEW, name).images for name in ("train", "valid", "test")}}
    assert quick(small_vae(), eval(words, names), epochs=1).rows


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": True}, "epochs: wanted a whole number of at least 1, got True"),
        ({"epochs": 2.0}, "epochs"),
        ({"epochs": "2"}, "epochs"),
        ({"seed": 0.5}, "seed: wanted a whole number, got 0.5"),
        ({"seed": None}, "seed"),
        ({"batch_size": 50.0}, r"batch_size: wanted 1 to 200 \(the training images\), got 50.0"),
        ({"batch_size": True}, "batch_size"),
        ({"lr": "1e-3"}, "lr"),
        ({"lr": 0}, "lr"),
        ({"clip": 0.0}, "clip: wanted a positive number, got 0.0"),
        ({"clip": float("nan")}, "clip"),
        ({"clip": True}, "clip"),
        ({"skip_non_finite": -1}, "skip_non_finite: wanted a whole number of at least 0, got -1"),
        ({"skip_non_finite": 0.5}, "skip_non_finite"),
        ({"keep": "first"}, 'keep: wanted "best" or "last", got \'first\''),
        ({"keep": ["best"]}, "keep"),
        ({"checkpoints": "a-folder"}, "checkpoints: wanted Checkpoints"),
        ({"estimator": Trace_ELBO}, r"estimator: wanted a pyro\.infer\.ELBO"),
        ({"estimator": TraceTailAdaptive_ELBO(num_particles=2)}, "TraceTailAdaptive_ELBO gives no loss"),
        ({"estimator": Trace_ELBO(num_particles=0)}, "num_particles of Trace_ELBO: wanted a whole number"),
        ({"estimator": RenyiELBO(num_particles=2), "engine": "compiled"}, 'write engine="svi"'),
        ({"estimator": RenyiELBO(num_particles=2), "clip": 1.0}, "clip: .*RenyiELBO trains by no other engine"),
        ({"engine": "svi", "clip": 1.0}, 'clip: .*write engine="eager"'),
        ({"engine": "fast"}, "engine: wanted one of auto, eager"),
    ],
)
def test_numbers_and_words_that_are_refused(settings, message):
    refused(message, **settings)


@pytest.mark.slow
def test_numbers_of_numpy_are_saved_too(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    quick(
        small_vae(),
        epochs=np.int64(1),
        batch_size=np.int32(50),
        seed=np.int64(3),
        lr=np.float32(1e-2),
        clip=np.float64(1.0),
        skip_non_finite=np.int8(0),
        checkpoints=checkpoints,
    )
    assert checkpoints.exist()
    name = quick(small_vae(), epochs=1, estimator=Trace_ELBO(num_particles=np.int64(2))).objective
    assert name == "the objective of Trace_ELBO with 2 particles"


@pytest.mark.slow
def test_the_callers_modes_of_torch_do_not_reach_the_training():
    def bounds(context):
        program = small_vae()
        with context:
            return [row["valid_bound"] for row in quick(program, epochs=1).rows]

    plain = bounds(torch.enable_grad())
    for context in (torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16)):
        assert bounds(context) == plain
    with torch.inference_mode():
        program = small_vae()
    with pytest.raises(ValueError, match=r"made in torch\.inference_mode, and cannot be trained; make it outside"):
        quick(program)


def test_enumerated_sites_of_the_model_are_named_before_anything_is_trained():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.loc, self.observe = nn.Parameter(torch.zeros(3, 64)), lambda pixels, generator=None: pixels / 255

        def model(self, x):
            with pyro.plate("images", len(x)):
                y = pyro.sample("y", dist.Categorical(torch.ones(3)), infer={"enumerate": "parallel"})
                pyro.sample("x", dist.Normal(self.loc[y].unflatten(-1, (1, 8, 8)), 1.0).to_event(3), obs=x)

        def guide(self, x):
            pass

    refused(r"\['y'\] .*enumerat", Mixed())  # by Trace_ELBO, which would draw it from the prior
    x = torch.zeros(3, 1, 8, 8)
    each = dist.Normal(0.0, 1.0).log_prob(x).sum((1, 2, 3))  # the three means are equal
    assert torch.allclose(evaluate(Mixed(), x).bound.float(), each)
