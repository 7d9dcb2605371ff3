"""What all tests of commands share."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def quick_pictures(unrendered):
    """Draw the pictures of runs only in tests that use ``rendered``."""


@pytest.fixture
def searched(tmp_path, monkeypatch):
    """A folder that is searched for data, and no other one of this machine."""
    monkeypatch.setenv("PYRO_VAE_DATA", str(tmp_path / "named"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "300")
    return tmp_path / "named"


@pytest.fixture
def undrawn():
    """Has runs draw no pictures, which take most of their time; a test may undo its own patches."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pyro_vae.runs.job.pictures", lambda *args: {})
        yield
