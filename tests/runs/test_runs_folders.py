"""Results are whole, also if two processes write one file, and a failed run leaves the one before."""

import json
import math
import threading

import pytest

from pyro_vae import files
from pyro_vae.files import CheckpointError
from pyro_vae.runs.folders import results_folder, run_folder, write_json


def test_two_processes_may_write_one_file_at_a_time(tmp_path, monkeypatch):
    path, write, own = tmp_path / "table.json", files._write, threading.get_native_id()

    def beaten(file, data):
        monkeypatch.setattr(files, "_write", write)
        monkeypatch.setattr(threading, "get_native_id", lambda: own + 1)
        write_json(path, {"by": "the other process"})
        write(file, data)

    monkeypatch.setattr(files, "_write", beaten)
    write_json(path, {"by": "this process"})
    assert json.loads(path.read_text()) == {"by": "this process"}
    assert [other.name for other in tmp_path.iterdir()] == ["table.json"]


def run_in(out, word, overwrite=False, error=None):
    with results_folder(out, overwrite) as folder:
        (folder / "metrics.json").write_text(word)
        if error:
            raise error


def test_a_folder_of_results_is_replaced_as_a_whole_or_stays(tmp_path):
    out = tmp_path / "out"
    run_in(out, "first")
    with pytest.raises(FileExistsError, match="holds another run's results; give another --out, or --overwrite"):
        run_in(out, "second")
    with pytest.raises(ZeroDivisionError):
        run_in(out, "second", overwrite=True, error=ZeroDivisionError())
    assert (out / "metrics.json").read_text() == "first"
    run_in(out, "second", overwrite=True)
    assert (out / "metrics.json").read_text() == "second" and list(tmp_path.iterdir()) == [out]
    (out / "metrics.json").rename(out / "notes.txt")
    with pytest.raises(FileExistsError, match="holds files that are not a run's results; give another --out"):
        run_in(out, "third", overwrite=True)


def test_an_empty_folder_is_removed_and_another_run_is_kept_out(tmp_path):
    other = pytest.raises(CheckpointError, match="another run is writing to")
    with run_folder(tmp_path / "a/b"), other, run_folder(tmp_path / "a/b"):
        pass
    assert not (tmp_path / "a/b").exists()
    with run_folder(tmp_path / "a/b"):
        (tmp_path / "a/b/file").write_text("")
    assert (tmp_path / "a/b/file").is_file()


def test_json_without_numbers_that_json_lacks(tmp_path):
    write_json(tmp_path / "file", {"out": tmp_path})
    assert json.loads((tmp_path / "file").read_text()) == {"out": str(tmp_path)}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "file", {"bound": math.nan})
    assert json.loads((tmp_path / "file").read_text()) == {"out": str(tmp_path)}
