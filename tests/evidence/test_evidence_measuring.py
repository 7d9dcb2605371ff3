"""What the evidence functions share: the two forms of a call, its words, refusals, and the caller's surroundings."""

import math
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from evidence_programs import OneBatchDimension, P, X, images, oracle, proposed, scaled
from pyro.infer import Trace_ELBO
from torch import nn

from pyro_vae.evidence import UntrustedEvidence, annealed_evidence, bidirectional, certify, log_evidence
from pyro_vae.evidence.measuring import chunk_size
from pyro_vae.linear_gaussian import LinearGaussian

pytestmark = pytest.mark.filterwarnings("ignore::pyro_vae.evidence.UntrustedEvidence")


@pytest.mark.parametrize("value", [0, -1, 2.0, math.nan, True, "3", None, torch.tensor(3)])
def test_numbers_that_are_none(value):
    for name in ("particles", "chunk", "batch_size") if value is not None else ():
        with pytest.raises(ValueError, match=f"{name}: wanted a whole number of at least 1, got"):
            log_evidence(scaled, proposed, X, **{"particles": 5} | {name: value})
    for name in ("num_temperatures", "chains", "leapfrog"):
        with pytest.raises(ValueError, match=f"{name}: wanted"):
            annealed_evidence(scaled, None, X, **{name: value})
    if value is not None and not isinstance(value, bool) and value not in (0, -1):
        with pytest.raises(ValueError, match="seed: wanted a whole number"):
            log_evidence(scaled, proposed, X, 5, seed=value)
    assert len(log_evidence(scaled, proposed, X, np.int64(5), batch_size=np.int32(2), seed=np.uint8(0)).log_px) == 7


@pytest.mark.slow
@pytest.mark.parametrize("caller", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_the_callers_modes_change_no_number(caller):
    class Program(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def model(self, x):
            with pyro.plate("rows", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
                pyro.sample("x", dist.MultivariateNormal(self.linear(z), torch.eye(3)), obs=x)

        def guide(self, x):
            with pyro.plate("rows", len(x)):
                pyro.sample("z", dist.Normal(pyro.param("a", torch.tensor(0.4)) * self.linear(x), 0.7).to_event(1))

    torch.manual_seed(0)
    program, x = Program(), 100 * torch.randn(5, 3)
    calls = (
        lambda x: log_evidence(program.model, program.guide, x, 10, seed=0).log_px,
        lambda x: annealed_evidence(program.model, program.guide, x, num_temperatures=4, chains=2, seed=0).log_px,
    )
    for call in calls:
        wanted = call(x)
        pyro.clear_param_store()
        with caller():
            found = call(x + 0)  # made in the caller's mode
        assert found.dtype == torch.float64 and torch.equal(found, wanted)
    loss = Trace_ELBO().differentiable_loss(program.model, program.guide, x)
    loss.backward()
    assert program.linear.weight.grad.isfinite().all() and pyro.param("a").grad is not None


@pytest.mark.slow
@pytest.mark.parametrize("form", ["functions", "a partial", "a dictionary", "a list of a module"])
def test_networks_that_a_function_refers_to_are_in_evaluation_mode(form):
    """Measured as the module is whose methods they are, and BatchNorm's statistics stay."""
    torch.manual_seed(0)
    networks = {"decoder": nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(), nn.Linear(2, 6))}
    x = torch.randn(5, 6)

    def score(x, networks):
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(networks["decoder"](z), 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))

    class Program(nn.Module):
        def __init__(self):
            super().__init__()
            self.held = [networks]

        def model(self, x):
            score(x, self.held[0])

    decoder = networks["decoder"]
    model = {
        "functions": lambda x: score(x, {"decoder": decoder}),
        "a partial": partial(score, networks=networks),
        "a dictionary": lambda x: score(x, networks),
        "a list of a module": Program().model,
    }[form]
    measured = [log_evidence(model, guide, x, 50, seed=0, progress=False).log_px]
    decoder.eval()
    measured.append(log_evidence(model, guide, x, 50, seed=0, progress=False).log_px)
    assert torch.equal(*measured) and decoder[0].num_batches_tracked == 0


def test_a_program_made_in_inference_mode():
    """Its evidence can be measured; no gradient can be taken through it."""
    with torch.inference_mode():
        program = OneBatchDimension("norm")
        x = torch.randn(4, 6).double()
        assert log_evidence(program.model, program.guide, x, 10, seed=0).log_px.isfinite().all()
        with pytest.raises(ValueError, match=r"made inside torch.inference_mode.* under torch.no_grad"):
            annealed_evidence(program.model, None, x)
    with torch.no_grad():
        program = OneBatchDimension("norm")
        assert annealed_evidence(program.model, None, x, num_temperatures=3, seed=0).log_px.isfinite().all()


def both_forms():
    program, x = oracle(), torch.zeros(3, P).double()
    few = {"num_temperatures": 3, "chains": 2, "leapfrog": 1}
    draws = {"particles": 5}
    for function, options in (
        (log_evidence, draws), (certify, draws), (annealed_evidence, few), (bidirectional, few)
    ):  # fmt: skip
        yield function, program, x, options


@pytest.mark.slow
@pytest.mark.parametrize(
    "function, program, x, options", list(both_forms()), ids=["importance", "certificate", "annealed", "bidirectional"]
)
def test_a_program_or_its_model_and_guide(function, program, x, options):
    values = [
        call().to_dict()
        for call in (
            lambda: function(program, x, **options),
            lambda: function(program.model, program.guide, x, **options),
            lambda: function(program=program, x=x, **options),
            lambda: function(model=program.model, guide=program.guide, x=x, **options),
            lambda: function(program.model, guide=program.guide, x=x, **options, seed=0),
        )
    ]
    assert values[0]["seed"] == 0 and all(value == values[0] for value in values)
    assert function(program, x, **options, seed=1).to_dict() != values[0]


def test_particles_by_position():
    program, x = oracle(), torch.zeros(3, P).double()
    for evidence in (log_evidence(program, x, 7), log_evidence(program.model, program.guide, x, 7)):
        assert evidence.num_particles == 7


@pytest.mark.parametrize("wrong", [(), (None,), (3,), (abs, X)], ids=["nothing", "None", "a number", "no guide"])
def test_calls_that_begin_with_no_program(wrong):
    with pytest.raises(ValueError, match="program: wanted a program with model and guide, or a model and then a guide"):
        log_evidence(*wrong, particles=5)


@pytest.mark.parametrize(
    "function, program, x, options", list(both_forms()), ids=["importance", "certificate", "annealed", "bidirectional"]
)
def test_unknown_words_are_refused_and_old_ones_name_the_new(function, program, x, options):
    for word, cure in (
        ("compiled", 'got compiled; write engine="compiled" for compiled=True, engine="eager" for compiled=False$'),
        ("temperatures", "got temperatures; leave it out, or write one of these$"),
    ):
        with pytest.raises(TypeError, match=f"^{function.__name__}: wanted keywords among .*chunk.*engine.*{cure}"):
            function(program, x, **options, **{word: True})
    old, new = ("num_particles", "particles") if "particles" in options else ("particles", "chains")
    with pytest.raises(TypeError, match=f"got {old}; write {new}=...$"):
        function(program, x, **options, **{old: 5})
    for engine in ("svi", True, None):
        with pytest.raises(ValueError, match='engine: wanted "auto", "eager" or "compiled", got'):
            function(program, x, **options, engine=engine)


def test_a_bar_is_shown_on_a_terminal_only(monkeypatch, capsys):
    program, x = oracle(), torch.zeros(3, P).double()
    log_evidence(program, x, 5)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    log_evidence(program, x, 5, progress=False)
    assert capsys.readouterr().err == ""
    log_evidence(program, x, 5)
    assert "15.0/15.0" in capsys.readouterr().err


def test_the_warning_has_a_class_of_its_own():
    narrow = lambda x: pyro.plate("rows", len(x))(lambda: pyro.sample("z", dist.Normal(x / 2, 0.05)))()  # noqa: E731
    with pytest.warns(UntrustedEvidence, match="Pareto k̂ > 0.7 for"):
        log_evidence(scaled, narrow, X, 500, seed=0)


def calls(program: LinearGaussian):
    yield lambda x: log_evidence(program.model, program.guide, x, 10)
    yield lambda x: annealed_evidence(program.model, program.guide, x, num_temperatures=3)
    yield lambda x: annealed_evidence(program.model, None, x, num_temperatures=3)


@pytest.mark.slow
@pytest.mark.parametrize("x", [torch.zeros(0, P).double(), torch.tensor(1.0), "x", [torch.zeros(2, P).double()]])
def test_no_images(x):
    for call in calls(oracle()):
        with pytest.raises(ValueError, match="x: wanted"):
            call(x)


@pytest.mark.slow
def test_x_that_is_nan():
    program = oracle()
    x = images(program, 30)
    x[20, 3] = math.nan
    for call in calls(program):
        with pytest.raises(ValueError, match=r"^x: 1 of its values are NaN or infinite, in the rows 20; ") as caught:
            call(x)
        assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)


def black_and_white(x: torch.Tensor, guide: bool = False):
    with pyro.plate("images", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        return None if guide else pyro.sample("x", dist.Bernoulli(logits=z), obs=x)


def test_x_outside_the_support_though_validation_is_off():
    with pyro.validation_enabled(False):
        for x in (torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0.0, 1.0, 0.5])):
            with pytest.raises(ValueError, match="support"):
                log_evidence(black_and_white, lambda x: black_and_white(x, guide=True), x, 5, batch_size=2)
            with pytest.raises(ValueError, match="support"):
                annealed_evidence(black_and_white, None, x, num_temperatures=3)
        assert not torch.distributions.Distribution._validate_args


def test_as_many_codes_are_decoded_at_once_as_the_docstring_says():
    assert chunk_size(None, torch.device("cpu")) == 500 and chunk_size(None, torch.device("cuda")) == 20_000
    assert chunk_size(7, torch.device("cuda")) == 7
