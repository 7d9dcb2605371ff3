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
from stores import with_runtime

from pyro_vae import Checkpoints, Data, fit
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


COMPILE = """
import os, sys, time, torch
from pyro_vae.compiling.recorder import recorded
from pyro_vae.compiling.artifacts import compiled_graph
x = torch.linspace(0, 1, 8)
graph = recorded(lambda x: (x.sin() * torch.rand_like(x), x.exp().sum()), [x])
open(f"{sys.argv[1]}/{os.getpid()}.ready", "w").close()
while sum(name.endswith(".ready") for name in os.listdir(sys.argv[1])) < int(sys.argv[2]):
    time.sleep(0.01)
function = compiled_graph(graph, [x], threads=1)
torch.manual_seed(0)
print([value.tolist() for value in function(x)])
"""


@needs_compiler
@pytest.mark.slow
def test_two_processes_fill_one_cache_at_once_and_a_third_reads_it(tmp_path):
    """A file tells both that the other has imported everything."""
    with_runtime(tmp_path)
    with ThreadPoolExecutor(2) as pool:
        words = "-c", COMPILE, tmp_path, "2"
        both = [pool.submit(python, *words, PYRO_VAE_CACHE=str(tmp_path)) for _ in range(2)]
    third = python("-c", COMPILE, tmp_path, "1", PYRO_VAE_CACHE=str(tmp_path))
    done = [*(each.result() for each in both), third]
    assert len({each.stdout for each in done}) == 1 and third.stdout, [each.stderr for each in done]
    files = sorted(path.suffix for path in (tmp_path / "compiled").iterdir())
    assert files == [".o", ".sha256", ".sha256", ".so"] and "compiled anew" not in third.stderr


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
