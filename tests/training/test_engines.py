"""Engines: the same training by each of them; what they say when they cannot."""

import copy
import platform
import shutil

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn

from pyro_vae import VAE, fit, guides, handlers, likelihoods, load, networks, priors
from pyro_vae.compiling.export import Untraceable, compiled
from pyro_vae.data.sets import Data
from pyro_vae.training import engines, warm_cosine
from pyro_vae.training.engines import (
    ENGINES,
    SVI,
    WORTH_COMPILING,
    Compiled,
    Eager,
    EngineWarning,
    _matmul_error,
    engine,
    fast_matmul,
    keep_freed_memory,
    warn_if_emulated,
)

DIGITS = load("digits")
BATCHES = [batch for _ in range(10) for batch in DIGITS.train.images[:220].split(50)]  # the last of five is smaller
COMPILER = pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(autouse=True)
def no_validation():
    with pyro.validation_enabled(False):
        yield


def small_vae(latent=2):
    torch.manual_seed(0)
    return VAE(
        priors.StandardNormal(latent),
        likelihoods.Bernoulli(networks.MLPDecoder(latent, DIGITS.shape, maps=1, hidden=(16,))),
        guides.MeanField(networks.MLPEncoder(DIGITS.shape, hidden=(16,)), latent),
    )


def adam(parameters):
    return torch.optim.Adam(parameters, lr=1e-2, fused=True)


class Training:
    """An engine that has taken a step on each of the batches."""

    def __init__(self, kind, program=None, optimizer=adam, batches=BATCHES, schedule=warm_cosine, **settings):
        self.program = program or small_vae()
        self.optimizer = optimizer(list(self.program.parameters()))
        scheduler = schedule and schedule(self.optimizer, len(batches))
        self.step = kind(self.program, Trace_ELBO(), self.optimizer, scheduler, **settings)
        torch.manual_seed(1)
        self.losses = torch.stack([self.step(batch) for batch in batches])


def assert_same_training(a, b, rtol=1e-4):
    torch.testing.assert_close(a.losses, b.losses, rtol=1e-5, atol=0.0)
    assert not torch.equal(a.losses[0], a.losses[5])
    for one, other in zip(a.program.parameters(), b.program.parameters()):
        torch.testing.assert_close(one, other, rtol=rtol, atol=1e-5)
    states = (dict(training.optimizer.state_dict()["state"]) for training in (a, b))
    for one, other in zip(*(state.values() for state in states)):
        for key in ("step", "exp_avg", "exp_avg_sq"):
            scale = other[key].abs().max().item()
            torch.testing.assert_close(one[key], other[key], rtol=1e-3, atol=1e-3 * scale)


def test_eager_is_svi():
    assert_same_training(Training(Eager), Training(SVI))


@pytest.fixture(scope="module")
def trained():
    """A compiled training with a schedule, clipping and smaller last batches."""
    if not shutil.which("g++"):
        pytest.skip("no C++ compiler")
    with pyro.validation_enabled(False):
        return Training(Compiled, clip=60.0)


def test_compiled_is_eager(trained):
    reference = Training(Eager, clip=60.0)
    assert_same_training(trained, reference)
    assert (trained.losses - Training(Eager).losses).abs().max() > 1  # the clipping is felt
    assert trained.step.run is not None and trained.step.name == "compiled"


def test_another_engine_goes_on_from_the_state_of_the_compiled_one(trained):
    results = []
    for kind in Eager, Compiled:
        program = small_vae()
        program.load_state_dict(trained.program.state_dict())
        optimizer = adam(list(program.parameters()))
        optimizer.load_state_dict(copy.deepcopy(trained.optimizer.state_dict()))
        step = kind(program, Trace_ELBO(), optimizer, **({"shape": BATCHES[0].shape} if kind is Compiled else {}))
        torch.manual_seed(2)
        step(BATCHES[0])
        assert kind is Eager or step.run is not None  # compiled from its first step on
        results.append(torch.cat([p.detach().flatten() for p in program.parameters()]))
        assert {state["step"].item() for state in optimizer.state.values()} == {len(BATCHES) + 1}
    torch.testing.assert_close(*results)


@COMPILER
def test_compiled_convolutions_of_lowered_precision_have_the_eager_gradients():
    def training(kind):
        torch.manual_seed(0)
        decoder = networks.ConvDecoder(2, DIGITS.shape, maps=1, channels=(16, 8))
        encoder = networks.ConvEncoder(DIGITS.shape, channels=(8, 16))
        program = VAE(priors.StandardNormal(2), likelihoods.Bernoulli(decoder), guides.MeanField(encoder, 2))
        with networks.lowered_precision(program, torch.bfloat16):
            return Training(kind, program, batches=BATCHES[:3])

    eager, fast = training(Eager), training(Compiled)
    assert fast.step.name == "compiled"
    for one, other in zip(eager.optimizer.state.values(), fast.optimizer.state.values()):
        assert (one["exp_avg"] - other["exp_avg"]).norm() < 0.05 * one["exp_avg"].norm()


@CUDA
@COMPILER
def test_compiled_is_eager_on_a_gpu():
    batches = [batch.cuda() for batch in BATCHES]
    assert_same_training(*(Training(kind, small_vae().cuda(), batches=batches) for kind in (Compiled, Eager)))


@CUDA
@COMPILER
def test_two_replays_of_a_cuda_graph_draw_other_numbers():
    def still(parameters):
        return torch.optim.Adam(parameters, lr=0.0, fused=True)

    losses = Training(Compiled, small_vae().cuda(), still, [BATCHES[0].cuda()] * 10, schedule=None).losses
    assert len(set(losses.tolist())) == len(losses)


@COMPILER
def test_a_schedule_that_moves_the_betas_of_adam_is_followed():
    def one_cycle(optimizer, steps):
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.05, total_steps=steps)

    losses = [Training(kind, batches=BATCHES * 2, schedule=one_cycle).losses for kind in (Eager, Compiled)]
    torch.testing.assert_close(*losses, rtol=1e-4, atol=0.0)


@COMPILER
def test_a_resumed_compiled_training_goes_on_to_the_same_bits():
    whole = Training(Compiled, batches=BATCHES[:2], schedule=None, clip=60.0)
    resumed = Training(Eager, batches=BATCHES[:1], schedule=None)
    resumed.program.load_state_dict(whole.program.state_dict())
    resumed.optimizer.load_state_dict(copy.deepcopy(whole.optimizer.state_dict()))
    resumed.step = Compiled(
        resumed.program, Trace_ELBO(), resumed.optimizer, clip=60.0, shape=BATCHES[0].shape, strict=True
    )
    for training in whole, resumed:
        torch.manual_seed(3)
        training.losses = torch.stack([training.step(batch) for batch in BATCHES[2:5]])
    assert torch.equal(whole.losses, resumed.losses)
    for one, other in zip(whole.program.parameters(), resumed.program.parameters()):
        assert torch.equal(one, other)


def test_compiled_leaves_out_a_step_that_is_not_finite(trained):
    weight = trained.program.likelihood.network.layers[0].weight
    kept = weight.detach().clone()
    before = copy.deepcopy((trained.program.state_dict(), trained.optimizer.state_dict()["state"]))
    with torch.no_grad():
        weight[0, 0] = torch.nan
    assert not trained.step(BATCHES[0]).isfinite()
    with torch.no_grad():
        weight.copy_(kept)
    for name, value in trained.program.state_dict().items():
        assert torch.equal(value, before[0][name])
    for number, state in trained.optimizer.state_dict()["state"].items():
        assert all(torch.equal(state[key], before[1][number][key]) for key in state)


def test_eager_leaves_out_a_step_whose_gradient_alone_is_not_finite():
    training = Training(Eager, batches=BATCHES[:2], schedule=None)
    before = copy.deepcopy(training.program.state_dict())
    training.program.likelihood.network.layers[0].weight.register_hook(lambda gradient: gradient * torch.inf)
    assert not training.step(BATCHES[0]).isfinite()
    for name, value in training.program.state_dict().items():
        assert torch.equal(value, before[name])


@COMPILER
def test_hooks_and_annealing_work_under_a_compiled_gradient():
    def anneal(program):
        return lambda parameters: program.anneal(adam(parameters), handlers.LinearWarmUp(steps=40))

    trainings = []
    for kind in Compiled, Eager:
        program = handlers.KLWeighted(small_vae())
        trainings.append(Training(kind, program, anneal(program), BATCHES[:20], schedule=None))
        assert program.beta == 0.5
    assert_same_training(*trainings)
    assert trainings[0].step.run is not None


class Branching(nn.Module):
    """A program that looks at its data; without param sites."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(1))

    def observe(self, pixels, generator=None):
        return pixels / 16

    def model(self, x):
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            if x.mean() > 0.3:
                z = 2 * z
            pyro.sample("x", dist.Normal(z[:, :, None, None], 1.0).expand(x.shape).to_event(3), obs=x)

    def guide(self, x):
        with pyro.plate("images", len(x)):
            pyro.sample("z", dist.Normal(self.loc, 1.0).expand([len(x), 1]).to_event(1))


def test_control_flow_that_depends_on_data_is_an_error_that_names_the_line():
    with pytest.raises(ValueError, match=r"test_engines.py, line \d+: `if x.mean\(\) > 0.3:`.*engine=.eager"):
        Training(Compiled, Branching(), batches=BATCHES[:2])


def normalised():
    """Batch norm after a layer without a bias, of which it would take away all that a step adds."""
    program = small_vae()
    program.posterior.network.layers[1].register_parameter("bias", None)
    program.posterior.network.layers.append(nn.BatchNorm1d(16))
    return program


@COMPILER
def test_compiled_batch_norm_keeps_the_eager_statistics():
    trainings = [Training(kind, normalised()) for kind in (Compiled, Eager)]
    assert_same_training(*trainings)
    assert trainings[0].step.name == "compiled"
    for one, other in zip(*(training.program.buffers() for training in trainings)):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_what_torch_cannot_compile_is_an_error_that_names_the_way_out_and_leaves_no_trace(monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("g++ ran out of memory")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(ValueError, match=r"cannot compile this step \(g\+\+ ran out of memory\).*engine=.eager"):
        Training(Compiled, normalised(), batches=BATCHES[:2])
    with pytest.warns(EngineWarning, match=r"training eagerly: g\+\+ ran out of memory"):
        fallen = Training(Compiled, normalised(), batches=BATCHES[:3], strict=False)
    assert torch.equal(fallen.losses, Training(Eager, normalised(), batches=BATCHES[:3]).losses)
    assert fallen.program.posterior.network.layers[-1].num_batches_tracked == 3


def test_auto_says_why_it_trains_eagerly_and_does():
    with pytest.warns(EngineWarning, match="training eagerly: .*if x.mean"):
        training = Training(Compiled, Branching(), batches=BATCHES[:4], strict=False)
    assert training.step.name == "eager"
    torch.testing.assert_close(training.losses, Training(Eager, Branching(), batches=BATCHES[:4]).losses)


def test_no_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    arguments = small_vae(), Trace_ELBO(), None
    for settings in {"name": "compiled"}, {"name": "auto", "steps": 10 * WORTH_COMPILING}:
        with pytest.warns(EngineWarning, match="training eagerly: no C.. compiler: 'no-such-compiler' is not found"):
            assert isinstance(engine(settings.pop("name"), *arguments, **settings), Eager)
    assert isinstance(engine("auto", *arguments, steps=1), Eager)


def test_no_compiler_for_a_program_of_ones_own(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    vae = small_vae()
    with pytest.raises(Untraceable, match=r"nothing can be compiled here: no C\+\+ compiler.*differentiable_loss"):
        compiled(Trace_ELBO(), vae.model, vae.guide, vae.observe(BATCHES[0]))


def assert_one_line(capsys, *parts):
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and all(part in said for part in parts)


@COMPILER
def test_auto_compiles_long_trainings():
    arguments = small_vae(), Trace_ELBO(), None
    assert isinstance(engine("auto", *arguments, steps=WORTH_COMPILING - 1), Eager)
    assert isinstance(engine("auto", *arguments, steps=WORTH_COMPILING), Compiled)


def test_svi_refuses_what_it_would_ignore():
    with pytest.raises(ValueError, match="clip"):
        Training(SVI, clip=1.0)
    with pytest.raises(ValueError, match=r"no param site of \['loc'\].*parameter_sites"):
        Training(SVI, Branching(), batches=BATCHES[:1])


@pytest.mark.parametrize("name", [name for name in ENGINES if name != "compiled"])
def test_fit_says_which_engine_it_took(name):
    few = Data("few", DIGITS.train[:100], DIGITS.valid[:50], DIGITS.test[:50])
    history = fit(small_vae(), few, engine=name, epochs=1, batch_size=50, progress=False)
    assert history.engine == {"auto": "eager"}.get(name, name)


def test_the_faster_matmul_is_taken_only_where_it_is_accurate_and_for_the_block(monkeypatch):
    with fast_matmul("cpu"):
        assert _matmul_error() < 1e-6
    monkeypatch.setattr("pyro_vae.training.engines._matmul_error", lambda: 4e-3)
    with pytest.raises(KeyError), fast_matmul("cpu"):
        assert torch.get_float32_matmul_precision() == "highest"
        raise KeyError
    assert torch.get_float32_matmul_precision() == "highest"


def test_a_cpu_that_emulates_bfloat16_is_said_to_be_slow(capsys, monkeypatch):
    able = {"architecture": "x86_64", "avx512_bf16": False}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    warn_if_emulated(torch.bfloat16, "cpu")
    assert_one_line(capsys, "bfloat16 will be slow")
    able["avx512_bf16"] = True
    warn_if_emulated(torch.bfloat16, "cpu")
    warn_if_emulated(None, "cpu")
    assert capsys.readouterr().err == ""


def test_unknown_engines_and_clips():
    with pytest.raises(ValueError, match="wanted one of auto, eager, compiled, svi, got 'fast'"):
        fit(small_vae(), DIGITS, engine="fast")
    with pytest.raises(ValueError, match="clip: wanted a positive number"):
        fit(small_vae(), DIGITS, clip=0.0)


@COMPILER
@pytest.mark.filterwarnings("ignore:Encountered NaN")
def test_a_first_step_that_is_left_out_leaves_the_optimiser_without_a_state():
    program = small_vae()
    with torch.no_grad():
        program.posterior.head.bias.fill_(torch.nan)
    step = Compiled(program, Trace_ELBO(), adam(list(program.parameters())))
    assert not step(BATCHES[0]).isfinite() and not step(BATCHES[1]).isfinite()
    with torch.no_grad():
        program.posterior.head.bias.zero_()
    assert all(step(batch).isfinite() for batch in BATCHES[:3])


@COMPILER
def test_an_optimiser_without_a_state_is_compiled_too():
    def sgd(parameters):
        return torch.optim.SGD(parameters, lr=1e-3)

    training = Training(Compiled, optimizer=sgd, batches=BATCHES[:4], schedule=None)
    assert training.step.run is not None
    eager = Training(Eager, optimizer=sgd, batches=BATCHES[:4], schedule=None)
    torch.testing.assert_close(training.losses, eager.losses, rtol=1e-5, atol=0.0)


def test_freed_memory_is_kept_by_what_malloc_h_calls_so(monkeypatch):
    asked = []

    class Glibc:
        @staticmethod
        def mallopt(parameter, value):
            asked.append((parameter, value))
            return 1

    monkeypatch.setattr(engines.ctypes, "CDLL", lambda name: Glibc)
    assert keep_freed_memory.__wrapped__()
    assert asked == [(-3, 32 << 20), (-1, 1 << 30)]  # M_MMAP_THRESHOLD at its maximum, M_TRIM_THRESHOLD

    def nowhere(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(engines.ctypes, "CDLL", nowhere)
    assert not keep_freed_memory.__wrapped__()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
def test_glibc_takes_it():
    assert keep_freed_memory()
