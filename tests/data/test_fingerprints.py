"""Equal data sets have equal fingerprints, in any process; any change that could be seen gives another one, or none."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import Forked
from torch.utils.data import TensorDataset
from torch_sets import GREY, Elsewhere, Files, Rows

from pyro_vae.data.fingerprints import fingerprint

ROW = {"images": GREY[0]}
PRINTED = """
import torch
from torch.utils.data import TensorDataset
from pyro_vae.data.fingerprints import fingerprint
filler = torch.zeros({filler})
print(fingerprint(TensorDataset(torch.arange(300), torch.ones(300, dtype=torch.bfloat16)), [], 300, {{"a": 1}}))
"""


@pytest.mark.slow
def test_equal_in_two_processes(tmp_path):
    """The data are at another address in each."""
    found, environment = [], {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    for filler in (1, 1_000_000):
        done = Forked(PRINTED.format(filler=filler), tmp_path, environment).wait()
        assert done.returncode == 0, done.stderr
        found.append(done.stdout)
    assert found[0] == found[1] and len(found[0]) == 65


@pytest.mark.slow
def test_what_changes_it():
    def found(values, row=GREY[0], settings=0):
        return fingerprint(TensorDataset(torch.tensor(values)), [{"images": row}], 4, settings)

    prints = [found([1, 2]), found([1, 3]), found([1.0, 2.0]), found([[1, 2]]), found([1, 2], GREY[1])]
    prints += [found([1, 2], GREY[0].astype(np.int8)), found([1, 2], settings=1)]
    assert len(set(prints)) == len(prints) and None not in prints and found([1, 2]) == prints[0]


@pytest.mark.slow
def test_files_and_folders_that_are_named(tmp_path):
    path = tmp_path / "folder/file.npy"
    path.parent.mkdir()
    np.save(path, GREY)
    for named in (path, path.parent, str(path)):
        first = fingerprint(Files(named), [ROW], 10**9, 0)
        assert first is not None and fingerprint(Files(named), [ROW], 10**9, 0) == first
        with path.open("ab") as file:
            file.write(b"x")
        assert fingerprint(Files(named), [ROW], 10**9, 0) != first
    (path.parent / "another").write_text("")
    assert fingerprint(Files(path.parent), [ROW], 10**9, 0) != first


def test_a_link_that_leads_nowhere_hides_nothing(tmp_path):
    (tmp_path / "a_link").symlink_to(tmp_path / "gone")
    (tmp_path / "z").write_text("1")
    first = fingerprint(Files(tmp_path), [ROW], 10**9, 0)
    (tmp_path / "z").write_text("12")
    assert None is not first != fingerprint(Files(tmp_path), [ROW], 10**9, 0)


def test_rows_from_elsewhere_have_none():
    assert fingerprint(Elsewhere(), [ROW], GREY.nbytes, 0) is None
    assert fingerprint(Rows([GREY[0], lambda: 1]), [ROW], 1, 0) is None
    assert fingerprint(Rows(GREY), [ROW], 10**9, 0) is None
    assert fingerprint(Rows(GREY), [ROW], GREY.nbytes, 0) is not None


def test_too_many_files_have_none(tmp_path, monkeypatch):
    monkeypatch.setattr("pyro_vae.data.fingerprints.LISTED", 3)
    for n in range(6):
        (tmp_path / str(n)).write_text("")
    assert fingerprint(Files(tmp_path), [ROW], 0, 0) is None


@pytest.mark.parametrize("word", ["/", "a\0b", "x" * 5000, "", "no/such/file"])
def test_words_that_name_nothing(word):
    assert fingerprint(Files(word), [ROW], 10**9, 0) is None
