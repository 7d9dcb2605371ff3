"""The folder of machine code."""

import os

import pytest

from pyro_vae.compiling import store as kept
from pyro_vae.compiling.store import checked, keep, name_of, store
from pyro_vae.files import CheckpointError


def test_a_folder_of_others_is_refused(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("PYRO_VAE_CACHE", str(tmp_path))
    assert store() == tmp_path / "compiled" and not store().stat().st_mode & 0o077
    store().chmod(0o777)
    assert store() is None and "chmod go-w" in caplog.text
    (tmp_path / "compiled").chmod(0o700)
    assert store() is not None
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    assert store() is None


def test_a_link_or_a_file_is_no_store(tmp_path, monkeypatch):
    monkeypatch.setenv("PYRO_VAE_CACHE", str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "compiled").symlink_to(tmp_path / "elsewhere")
    assert store() is None
    (tmp_path / "compiled").unlink()
    (tmp_path / "compiled").write_text("")
    assert store() is None


def test_a_file_is_kept_for_this_user_alone(tmp_path):
    path = tmp_path / "a.o"
    keep(b"code", path)
    assert checked(path) == b"code" and not path.stat().st_mode & 0o077


@pytest.mark.parametrize("fault", ["missing", "cut", "unsigned", "shared", "of another user"])
def test_a_file_that_is_damaged_or_not_the_users_is_not_read(tmp_path, monkeypatch, fault):
    path, owner = tmp_path / "a.o", os.geteuid()
    keep(b"code", path)
    if fault == "missing":
        path.unlink()
    elif fault == "cut":
        path.write_bytes(b"cod")
    elif fault == "unsigned":
        path.with_suffix(".sha256").unlink()
    elif fault == "shared":
        path.chmod(0o666)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises((OSError, CheckpointError)):
        checked(path)


def test_the_oldest_files_make_room(tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "LARGEST_STORE", 250)
    for age, name in enumerate(["a.so", "b.o", "c.so"]):
        file = tmp_path / name
        file.write_bytes(b"x" * 100)
        file.with_suffix(".sha256").write_bytes(b"")
        os.utime(file, (1000 - age, 1000 - age))
    kept._make_room(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.sha256", "a.so", "b.o", "b.sha256"]


def test_names_depend_on_the_source_and_on_the_compiler(monkeypatch):
    names = [name_of("a", "b"), name_of("a"), name_of("ab")]
    monkeypatch.setenv("CXX", "clang++")
    assert len({*names, name_of("a")}) == 4
