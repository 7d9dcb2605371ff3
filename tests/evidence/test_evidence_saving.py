"""What the file of a measurement is, and of what it is."""

import numpy as np
import pyro
import pytest
import torch
from evidence_programs import rough

from pyro_vae.arguments import ProgramArguments
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


def test_a_file_needs_a_seed():
    with pytest.raises(ValueError, match="wanted a seed"):
        saving.check_resumable("file.pt", None)
