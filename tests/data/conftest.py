"""Fixtures of known data sets: files of noise in place of MNIST, and no network."""

import urllib.error

import numpy as np
import pytest
from data_files import idx_bytes

from pyro_vae.data import sets as D


@pytest.fixture
def mnist(tmp_path):
    """Make a folder with 30 training and 10 test images of noise; return what was written there."""
    raw, random, written = tmp_path / "MNIST/raw", np.random.RandomState(1), {}
    raw.mkdir(parents=True)
    for part, count in (("train", 30), ("t10k", 10)):
        images = random.randint(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = random.randint(0, 10, count).astype(np.uint8)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx_bytes(images))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
        written[part] = images, labels
    return tmp_path, written


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """Set up no network, no environment variable and an empty cache."""

    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no network in this test")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.delenv(D.ENVIRONMENT, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/pyro_vae"
