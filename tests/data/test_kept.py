"""What is kept in the cache is whole; what was left half written goes."""

import os
import time

import numpy as np
import pytest

from pyro_vae.data.columns import FileColumn
from pyro_vae.data.kept import RECORD, column_path, is_kept, keep, kept_fields, writing
from pyro_vae.data.raw import DataError


def write(folder, value):
    folder.mkdir()
    column = FileColumn(column_path(folder, "train", "counts"))
    column.append(np.array([value]))
    column.close()
    return {"train": {"counts": column}}


def test_a_folder_appears_whole_and_stays(tmp_path):
    for value in (1, 2):  # the second process finds the place taken
        with writing(tmp_path, 0) as scratch:
            columns = write(scratch / "rows", value)
            assert not is_kept(tmp_path / "key") or value == 2
            fields = keep(scratch / "rows", tmp_path / "key", columns)
        assert fields["train"]["counts"].tolist() == [[1]]
    assert [path.name for path in tmp_path.iterdir()] == ["key"]
    assert kept_fields(tmp_path / "key")["train"]["counts"].tolist() == [[1]]
    (tmp_path / "key" / RECORD).unlink()
    assert not is_kept(tmp_path / "key")


def test_nothing_stays_of_what_failed_and_old_remains_go(tmp_path):
    for name, age in ((".writing-old", 90_000), (".writing-new", 0)):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    with pytest.raises(KeyboardInterrupt), writing(tmp_path, 0) as scratch:
        write(scratch / "rows", 1)
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == [".writing-new"]


def test_a_disk_that_is_too_small_is_said_before(tmp_path):
    with (
        pytest.raises(DataError, match=r"wanted 1000000000.0 GB for the rows, .* GB are free"),
        writing(tmp_path, 10**18),
    ):
        raise AssertionError
    assert not list(tmp_path.iterdir())
