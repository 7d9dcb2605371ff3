"""What the file of a measurement is, and of what it is."""

import numpy as np
import pyro
import pytest
import torch
from evidence_programs import rough
from torch import nn

from pyro_vae import log_evidence
from pyro_vae.arguments import ProgramArguments
from pyro_vae.config import PartSettings, build_vae
from pyro_vae.evidence import saving
from pyro_vae.evidence.saving import SavedMeasurement, identity


def test_it_is_written_between_batches_after_a_while(tmp_path, monkeypatch):
    path, done = tmp_path / "file.pt", []
    saved = SavedMeasurement(path, "ours")
    saved.content = lambda: {"done": list(done)}
    with saved.kept(RuntimeError) as between_batches:
        between_batches()
        assert not path.exists()
        monkeypatch.setattr(saving, "SAVED_EVERY", -1.0)
        done.append(1)
        between_batches()
        assert SavedMeasurement(path, "ours").load()["done"] == [1]
        done.append(2)
    assert SavedMeasurement(path, "ours").load()["done"] == [1, 2]


def test_the_identity_follows_data_options_and_parameters():
    program, x = rough(), torch.zeros(3, 6)
    given = ProgramArguments.of((x,), {"flag": True, "sizes": np.ones(2)})
    others = [
        ProgramArguments.of((x + 1e-6,), given.kwargs),
        ProgramArguments.of((x,), given.kwargs | {"flag": False}),
        ProgramArguments.of((x,), given.kwargs | {"sizes": np.zeros(2)}),
        ProgramArguments.of((x,), {"flag": True, "size": np.ones(2)}),
        ProgramArguments.of((x.double(),), given.kwargs),
    ]
    found = {identity("options", of, 0, program.model, program.guide) for of in (given, *others)}
    found |= {identity("others", given, 0, program.model), identity("options", given, 1, program.model)}
    with torch.no_grad():
        program.bias += 1e-9
    found.add(identity("options", given, 0, program.model, program.guide))
    assert len(found) == 9


def test_parameters_in_pyros_store_are_part_of_it():
    def model(x):
        pyro.param("a", torch.zeros(()))

    given = ProgramArguments.of((torch.zeros(3),))
    before = identity("", given, 0, model)
    model(None)
    assert identity("", given, 0, model) != before


class Scaled(nn.Module):
    """A program with a number, an activation and a list that its state does not hold."""

    def __init__(self, sigma=1.0, activation=nn.ReLU, shifts=(0.0,)):
        super().__init__()
        torch.manual_seed(0)
        self.sigma, self.shifts = sigma, list(shifts)
        self.network = nn.Sequential(nn.Linear(1, 2), activation())

    def model(self, x):
        return self.network(x) * self.sigma + self.shifts[0]


def of_functions(sigma=1.0, activation=torch.relu, shift=0.0, moved=0.0):
    """The same as a function that refers to a module, in a dictionary."""
    torch.manual_seed(0)
    held = {"network": nn.Linear(1, 2)}
    with torch.no_grad():
        held["network"].weight += moved
    return lambda x: activation(held["network"](x)) * sigma + shift


CHANGED = {
    "program": [Scaled().model, Scaled(2.0).model, Scaled(activation=nn.Tanh).model, Scaled(shifts=[1.0]).model],
    "functions": [of_functions(), of_functions(2.0), of_functions(1.0, torch.tanh), of_functions(shift=2.0)],
    "parameters": [of_functions(), of_functions(moved=1e-6)],
    "code": [lambda x: x + 1, lambda x: x + 2, lambda x: x - 1, lambda x: [x - i for i in (1, 2)]],
}


@pytest.mark.parametrize("what", CHANGED)
def test_a_program_that_computes_otherwise_is_another_one(what):
    given = ProgramArguments.of((torch.zeros(3, 1),))
    found = [identity("", given, 0, model) for model in CHANGED[what]]
    assert len(set(found)) == len(found)


def test_the_same_program_made_again_is_the_same_after_a_measurement():
    given = ProgramArguments.of((torch.zeros(3, 6),))
    for make in (Scaled, of_functions, rough):
        one, other = make(), make()
        found = {identity("", given, 0, getattr(program, "model", program)) for program in (one, other)}
        assert len(found) == 1
    images = torch.zeros(3, 1, 8, 8)
    program = build_vae(PartSettings(prior="spline", guide="planar", latent=2), images.byte())
    before = identity("", given, 0, program.model, program.guide)
    log_evidence(program, images, 4, progress=False)
    assert identity("", given, 0, program.model, program.guide) == before


def test_the_store_counts_beside_a_module():
    def model(x):
        pyro.param("a", torch.zeros(()))

    given, guide = ProgramArguments.of((torch.zeros(3),)), nn.Linear(1, 1)
    model(None)
    before = identity("", given, 0, model, guide)
    pyro.get_param_store()["a"] = torch.ones(())
    assert identity("", given, 0, model, guide) != before


def test_a_file_needs_a_seed():
    with pytest.raises(ValueError, match="wanted a seed"):
        saving.check_resumable("file.pt", None)
