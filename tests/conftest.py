"""Fixtures of several tests. Each test begins and ends with an empty Pyro store."""

import gc
import io
import os
import signal

import hypothesis
import pyro
import pytest
import torch
from PIL import Image
from uncompiled import run_as_recorded

from pyro_vae.runs.folders import png

if "PYTEST_XDIST_WORKER" in os.environ:  # the workers share the cores, and OpenMP's threads wait by spinning
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

# Seven thousand collected tests and what they import stay to the end: to look through them again and again is in vain.
gc.set_threshold(50_000, 20, 20)

# The same few examples in each run; `pytest --hypothesis-profile=thorough` draws more.
hypothesis.settings.register_profile(
    "quick",
    max_examples=10,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
hypothesis.settings.register_profile("thorough", hypothesis.settings.get_profile("quick"), max_examples=100)
hypothesis.settings.load_profile("quick")


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: see CONTRIBUTING.md; `pytest -m 'not slow'` leaves these tests out")
    config.addinivalue_line("markers", "gpu: needs a CUDA device; `pytest -m gpu` runs these tests alone")


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def empty_store():
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()


@pytest.fixture
def float64():
    """Seed torch and compute in float64 by default."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def usual_interrupt():
    """Have Ctrl-C raise KeyboardInterrupt: a process that was started in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def no_validation():
    """Have Pyro check no values, as in a long training."""
    with pyro.validation_enabled(False):
        yield


@pytest.fixture
def quick_compiler(monkeypatch):
    """Record graphs as ever, and run them as they are, without torch's compiler."""
    run_as_recorded(monkeypatch)


@pytest.fixture(scope="module")
def unrendered():
    """Have runs make the figures of their pictures, and write one pixel for each: to draw them takes seconds."""
    picture = io.BytesIO()
    Image.new("L", (1, 1)).save(picture, "png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pyro_vae.runs.drawing.png", lambda figure: picture.getvalue())
        yield


@pytest.fixture
def rendered(unrendered):
    """Draw the pictures of runs after all; a test may undo its own patches."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pyro_vae.runs.drawing.png", png)
        yield
