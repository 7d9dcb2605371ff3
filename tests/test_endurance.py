"""What a long life brings: memory after hundreds of calls, two processes in one cache, a clock that is set back."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from programs import DIGITS, needs_compiler, small_vae

from pyro_vae import Checkpoints, Data, fit
from pyro_vae.compiling import artifacts
from pyro_vae.compiling.recorder import recorded
from pyro_vae.compiling.store import store
from pyro_vae.training import checkpoint

TINY = Data("tiny", DIGITS.train[:20], DIGITS.valid[:10], DIGITS.test[:10])
ROOT = Path(__file__).parents[1]


def trained(**settings):
    vae = small_vae()
    fit(vae, TINY, epochs=1, batch_size=10, lr=1e-3, engine="eager", progress=False, **settings)
    return vae


def python(*words, **variables):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **variables}
    return subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")
def test_memory_is_flat_over_two_hundred_fits_and_measurements():
    """In a process of its own: pytest keeps what is logged."""
    done = python(ROOT / "tests/faults/memory.py", "--calls=200")
    assert done.returncode == 0 and done.stdout.count("calls: ") == 2, done.stdout + done.stderr


TAKEN = """
import os, shutil, sys, time, torch
from pyro_vae.compiling import artifacts
from pyro_vae.compiling.recorder import recorded
folder, made = sys.argv[1:]
def compiled_library(graph, values, path, options):
    open(f"{folder}/{os.getpid()}.ready", "w").close()
    while sum(name.endswith(".ready") for name in os.listdir(folder)) < 2:
        time.sleep(0.01)
    shutil.copy(made, path)
    return True
artifacts.warm_up, artifacts.compiled_library = lambda library: None, compiled_library
x = torch.ones(3)
print(artifacts.compiled_graph(recorded(lambda x: (x.sin(), x.sum()), [x]), [x], threads=1)(2 * x))
"""


@needs_compiler
@pytest.mark.slow
def test_two_processes_fill_one_cache_at_once_and_a_third_reads_it(tmp_path):
    """Each compiles until the other does, too; their compiler hands out a library that was made before."""
    x = torch.ones(3)
    graph = recorded(lambda x: (x.sin(), x.sum()), [x])
    expected = artifacts.compiled_graph(graph, [x], threads=1)(2 * x)
    made = store() / f"{artifacts.key(artifacts.lifted(graph)[0], [x], 1)}.so"
    words = "-c", TAKEN, tmp_path, made
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(python, *words, PYRO_VAE_CACHE=str(tmp_path)) for _ in range(2)]
    done = [*(each.result() for each in both), python(*words, PYRO_VAE_CACHE=str(tmp_path))]
    assert [each.stdout for each in done] == [f"{expected}\n"] * 3, [each.stderr for each in done]
    assert len(list(tmp_path.glob("*.ready"))) == 2 and "compiled anew" not in done[-1].stderr
    assert sorted(path.suffix for path in (tmp_path / "compiled").iterdir()) == [".sha256", ".so"]


@pytest.mark.slow
def test_a_clock_that_is_set_back_changes_no_bits_and_no_checkpoint(tmp_path, monkeypatch):
    """Time that passes is read from clocks that never go back; files of the future are replaced as all others."""
    Checkpoints(tmp_path).save({"step": 0})
    later = time.time() + 1e6
    os.utime(tmp_path / "checkpoint.pt", (later, later))
    (tmp_path / "checkpoint.pt").rename(tmp_path / "checkpoint.previous.pt")
    plain, clock = trained(), iter(range(10**6, 0, -1000))
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    saves = []
    save = checkpoint.Checkpoints.save
    monkeypatch.setattr(checkpoint.Checkpoints, "save", lambda self, content: saves.append(1) or save(self, content))
    vae = trained(checkpoints=Checkpoints(tmp_path, seconds=0.0, overwrite=True))
    assert all(map(torch.equal, plain.parameters(), vae.parameters())) and len(saves) >= 2
    again = Checkpoints(tmp_path, resume=True)
    assert again.load()["step"] == 2 and (tmp_path / "history.csv").exists()
