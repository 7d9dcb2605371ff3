"""Error messages: short, with the rows that are to blame; warnings: at the line of the user."""

import ast
import builtins
import random
from pathlib import Path

import pyro
import pytest
import torch
from programs import FEW, small_vae
from pyro.infer import Trace_ELBO

import pyro_vae
from pyro_vae import Data, DataWarning, EngineWarning, Split, Training, TrainingWarning
from pyro_vae.errors import short_errors
from pyro_vae.handlers import KLWeighted
from pyro_vae.training.engines import CompiledEngine

ROOT = Path(pyro_vae.__file__).parent

PAGE = "the value is not real, but found invalid values:\ntensor([[0.5], [nan]])"


def raised(error, *args, **kwargs):
    with pytest.raises(type(error)) as caught, short_errors(args, kwargs):
        raise error
    return caught.value


def test_every_argument_with_such_values_is_named_with_its_rows():
    x, y, z = torch.zeros(40, 2), torch.zeros(3, dtype=torch.long), torch.zeros(4)
    x[::2, 1], z[3] = torch.nan, -torch.inf
    message = str(raised(ValueError(PAGE), x, y, "word", mask=z))
    assert message.startswith("x: 20 of its values are NaN or infinite, in the rows 0, 2, 4")
    assert "; mask: 1 of its values are NaN or infinite, in the rows 3; take these rows out" in message
    assert "argument 1" not in message and "tensor(" not in message and len(message) < 500
    assert "argument 1: 1 of its" in str(raised(ValueError(PAGE), torch.zeros(2), z))


def test_without_such_values_the_page_alone_is_cut():
    assert str(raised(ValueError(PAGE), torch.zeros(3))) == "the value is not real, but found invalid values"
    shapes = ValueError("site 'z' is wrong\nTrace Shapes:\n a page of them")
    assert str(raised(shapes, torch.tensor([torch.nan]))) == "site 'z' is wrong"


def test_errors_about_other_things_are_the_same_objects():
    bad = torch.tensor([torch.nan])

    class Own(ValueError):
        pass

    for error in (ValueError("wanted a whole number"), Own(PAGE), TypeError(PAGE), KeyboardInterrupt()):
        assert raised(error, bad) is error


def deep_in_torch_and_pyro(data):
    """Through a decorator of torch and an effect handler of Pyro."""

    @torch.no_grad()
    @pyro.poutine.block
    def load():
        return Data("dark", *[Split(data)] * 3)

    return load()


@pytest.mark.parametrize("call", [lambda data: Data("dark", *[Split(data)] * 3), deep_in_torch_and_pyro])
def test_a_warning_shows_the_line_of_the_user(call):
    with pytest.warns(DataWarning, match="no grey level above 90") as caught:
        call((torch.arange(9 * 64) % 91).to(torch.uint8).view(9, 1, 8, 8))
    lines = Path(__file__).read_text().splitlines()
    assert caught[0].filename == __file__ and 'Data("dark", *[Split' in lines[caught[0].lineno - 1]


@pytest.mark.slow
def test_a_warning_from_the_depth_of_a_training_shows_the_line_of_the_call():
    program = KLWeighted(small_vae(), beta=0.0)
    with pytest.warns(TrainingWarning, match="still changed in the last epoch") as caught:
        for row in Training(program, FEW, epochs=2, batch_size=100, engine="eager", progress=False):
            program.set_beta(row["epoch"] / 10)
    assert caught[0].filename == __file__
    with pytest.warns(EngineWarning, match="training eagerly: .*module random") as caught:
        step = CompiledEngine(noisy := Noisy(), Trace_ELBO(), torch.optim.Adam(noisy.parameters()), strict=False)
        for _ in range(3):
            step(FEW.train.images[:20])
    assert caught[0].filename == __file__


class Noisy(type(small_vae())):
    """A program that cannot be traced."""

    def __init__(self):
        vae = small_vae()
        super().__init__(vae.prior, vae.likelihood, vae.posterior)

    def observe(self, pixels, generator=None):
        return super().observe(pixels, generator) * float(random.random() >= 0)


@pytest.mark.slow
def test_every_warning_of_the_library_is_given_so_and_has_a_class_of_its_own():
    calls = {}
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("warn", "warnings.warn"):
                calls.setdefault(ast.unparse(node.func), []).append((path.name, ast.unparse(node.args[1])))
    assert [name for name, _ in calls["warnings.warn"]] == ["errors.py"]
    assert len(calls["warn"]) > 10 and not {category for _, category in calls["warn"]} & set(vars(builtins))
