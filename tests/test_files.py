"""Files written whole or not at all, and read without surprises."""

import errno
import os
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest
import torch

from pyro_vae import files
from pyro_vae.files import CheckpointError, FolderNotLocked, expanded, load_tree, locked, read_bytes, write_whole


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_whole(path, b"old")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"file cannot be written .*free some space"):
        write_whole(path, b"new", keep=tmp_path / "kept")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_write_without_a_file_before_keeps_none(tmp_path):
    write_whole(tmp_path / "file", b"first", keep=tmp_path / "kept")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_content_is_on_the_disk_before_the_file_has_its_name(tmp_path, monkeypatch):
    done, path = [], tmp_path / "file"
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(files.os, "fsync", lambda handle: done.append(("sync", path.exists())) or fsync(handle))
    monkeypatch.setattr(files.os, "replace", lambda *names: done.append(("rename", path.exists())) or replace(*names))
    write_whole(path, b"content")
    assert done[:2] == [("sync", False), ("rename", False)] and path.read_bytes() == b"content"


def test_files_are_read_up_to_a_size(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(1 << 20))
    assert read_bytes(path, largest=1 << 20) == bytes(1 << 20)
    with pytest.raises(CheckpointError, match="file is larger than"):
        read_bytes(path, largest=(1 << 20) - 1)
    with pytest.raises(CheckpointError, match="is no file"):
        read_bytes(tmp_path)
    with pytest.raises(CheckpointError, match=r"other cannot be read \(No such file or directory\)"):
        read_bytes(tmp_path / "other")


def test_a_tree_is_read_back_and_other_content_is_refused(tmp_path):
    tree = {"loc": torch.arange(3.0), "rows": [{"bound": -1.5}], "names": ("a", None), "flag": True}
    path = tmp_path / "file"

    def read(content):
        torch.save(content, path)
        with path.open("rb") as file:
            return load_tree(file, "the file")

    found = read(tree)
    assert torch.equal(found.pop("loc"), tree.pop("loc")) and found == tree
    with pytest.raises(CheckpointError, match="the file: wanted a dictionary, got list"):
        read([torch.zeros(2)])
    path.write_bytes(b"no archive")
    with path.open("rb") as file, pytest.raises(CheckpointError, match="the file cannot be read"):
        load_tree(file, "the file")


def test_home_folders(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    assert expanded("~/data") == Path("/somewhere/data") and expanded("data/~") == Path("data/~")
    with pytest.raises(ValueError, match=r"~nobody-of-this-name/data: there is no such home folder; write /"):
        expanded("~nobody-of-this-name/data")


def test_threads_may_write_one_file_at_a_time(tmp_path, monkeypatch):
    path, write, beaten = tmp_path / "file", files._write, []

    def slow(file, data):
        if not beaten:
            beaten.append(True)
            other = threading.Thread(target=files.write_whole, args=(path, b"of the other thread"))
            other.start()
            other.join()
        write(file, data)

    monkeypatch.setattr(files, "_write", slow)
    files.write_whole(path, b"of this thread")
    assert path.read_bytes() == b"of this thread" and list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_is_told_from_other_files(tmp_path):
    left = {"table.json.new", "table.json.123.new"}  # the first by an earlier version
    for name in (*left, "table.json", "my-table.json.new", "table.json.mine.new", "table-json.123.new"):
        (tmp_path / name).write_text("{}")
    assert {path.name for path in files.unfinished(tmp_path / "table.json")} == left


@pytest.mark.parametrize("name", ["../../evil", "/evil", "archive/../../evil"])
def test_path_names_in_a_checkpoint_are_refused(tmp_path, name):
    archive = tmp_path / "archive.pt"
    torch.save({"step": 7}, archive)
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr(name, b"evil")
    with archive.open("rb") as file, pytest.raises(CheckpointError, match=r"names that torch\.save does not give"):
        files.load_tree(file, "stranger")


def test_what_takes_any_amount_of_memory_is_refused(tmp_path):
    archive = tmp_path / "archive.pt"
    torch.save({"step": bytearray(3)}, archive)
    with archive.open("rb") as file, pytest.raises(CheckpointError, match=r"holds __builtin__\.bytearray"):
        files.load_tree(file, "stranger")
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", bytes(1 << 24))
    with archive.open("rb") as file, pytest.raises(CheckpointError, match="compressed"):
        files.load_tree(file, "stranger")


def test_write_whole_replaces_at_once(tmp_path):
    write_whole(tmp_path / "file", b"old")
    write_whole(tmp_path / "file", b"new", keep=tmp_path / "kept")
    assert (tmp_path / "file").read_bytes() == b"new" and (tmp_path / "kept").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "kept"]


@pytest.mark.slow
def test_a_lock_holds_against_others_and_dies_with_its_process(tmp_path):
    hold = "import sys, time; from pyro_vae.files import locked\nwith locked(sys.argv[1]): print(1, flush=True); "
    words = [sys.executable, "-c", f"{hold} time.sleep(60)", tmp_path]
    with subprocess.Popen(words, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1]) as process:
        assert process.stdout.readline() == b"1\n"
        with pytest.raises(CheckpointError, match="another run is writing to"), locked(tmp_path):
            pass
        process.kill()
        process.wait()
    with locked(tmp_path), pytest.raises(CheckpointError, match="another run"), locked(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_two_files_of_one_name_in_an_archive(tmp_path):
    torch.save({"loc": torch.zeros(2)}, tmp_path / "file")
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(tmp_path / "file", "a") as archive:
        tree = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        archive.writestr(tree, archive.read(tree))
    with (tmp_path / "file").open("rb") as file, pytest.raises(CheckpointError, match="two files of one name"):
        files.load_tree(file, "file")


def test_a_named_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="is no file"):
        files.read_bytes(tmp_path / "pipe")


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", unsupported)
    with pytest.warns(FolderNotLocked, match="cannot be locked"), locked(tmp_path):
        pass
