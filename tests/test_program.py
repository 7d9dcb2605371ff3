"""Programs: the dtype that they compute in, and how a call names them."""

import re

import pytest
import torch
from programs import FEW, small_vae
from torch import nn
from torch.optim.swa_utils import AveragedModel

import pyro_vae
from pyro_vae.program import dtype_of, model_and_guide


class Seen(nn.Module):
    """A program that notes how ``observe`` is called."""

    def __init__(self, result):
        super().__init__()
        self.counts, self.calls, self.result = nn.Parameter(torch.zeros(2).long(), False), [], result
        self.weight = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def observe(self, pixels, *generator):
        self.calls.append(generator)
        return self.result


def test_the_dtype_is_that_of_the_first_floating_parameter():
    assert dtype_of(small_vae()) is torch.float32 and dtype_of(small_vae().double()) is torch.float64
    assert dtype_of(Seen(None)) is torch.float64  # its first parameter is a whole number
    with pytest.raises(ValueError, match=r"got torch.bfloat16, .*write program.float\(\)"):
        dtype_of(small_vae().bfloat16())


def test_without_parameters_it_is_torchs_default(float64):
    assert dtype_of(nn.Identity()) is torch.float64


def test_a_call_begins_with_a_program_or_with_a_model_and_a_guide():
    vae = small_vae()
    assert model_and_guide(vae, 1, 2) == (vae.model, vae.guide, (1, 2))
    assert model_and_guide(vae.model, vae.guide) == (vae.model, vae.guide, ())
    assert model_and_guide(vae.model, None, 3) == (vae.model, None, (3,))
    for wrong in ((torch.zeros(2),), (vae.model,), (vae.model, 3)):
        with pytest.raises(ValueError, match="wanted a program with model and guide, or a model and then a guide"):
            model_and_guide(*wrong)


class OwnModel(nn.Module):
    """A model that is called, and has methods ``model`` and ``guide`` for something else."""

    def forward(self, x):
        return x

    def model(self):
        raise AssertionError("it is the module that is the model")

    guide = model


def test_a_model_with_methods_of_those_names_is_the_model_where_a_guide_follows():
    model, guide = OwnModel(), nn.Identity()
    assert model_and_guide(model, guide, 3) == (model, guide, (3,))
    assert model_and_guide(model, None, 3) == (model, None, (3,))
    assert model_and_guide(model, 3) == (model.model, model.guide, (3,))
    for guide in (small_vae().guide, None):
        with pytest.raises(ValueError, match="wanted its data after it, got a guide"):
            model_and_guide(small_vae(), guide, 3)  # a VAE cannot be called, so that this is a mistake


def test_a_class_is_no_program():
    with pytest.raises(ValueError, match=r"got the class VAE; make one, VAE\(\.\.\.\)"):
        model_and_guide(type(small_vae()), 3)


@pytest.mark.parametrize(
    ("thing", "cure"),
    [
        (AveragedModel(small_vae()), "write .module after this AveragedModel"),
        (nn.DataParallel(small_vae()), "write .module after this DataParallel"),
        (small_vae().model, "give the program itself, not its model"),
        (nn.Linear(2, 1), "give the program itself, such as a VAE"),
        (torch.zeros(2), "got Tensor"),
    ],
)
@pytest.mark.parametrize("function", ["evaluate", "fixed_x", "check_program", "fit"])
def test_what_is_no_program_is_refused_by_name_with_the_cure(function, thing, cure):
    with pytest.raises(ValueError, match="^program: wanted an nn.Module with .*" + re.escape(cure)):
        getattr(pyro_vae, function)(thing, FEW if function == "fit" else torch.zeros(2, 1, 8, 8))
