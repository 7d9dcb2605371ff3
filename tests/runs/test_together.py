"""Several runs at a time: in processes, on a Dask cluster, with failures, deaths and Ctrl-C."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import warnings
from concurrent.futures import BrokenExecutor
from functools import partial
from pathlib import Path

import joblib
import pytest
import torch

from pyro_vae.runs import origins, together
from pyro_vae.runs.together import run_together
from pyro_vae.runs.workers import Outcome

ROOT = Path(__file__).parents[2]


def draw(path, seed):
    """A run: what it drew, its process, its threads and the commit that it knows, in a file."""
    if seed == 2:
        raise ValueError("the loss is not finite")
    torch.manual_seed(seed)
    drawn = (torch.rand(3, 3) @ torch.rand(3, 3)).flatten().tolist()
    path.write_text(f"{drawn}\n{os.getpid()}\n{torch.get_num_threads()}\n{origins.commit_at_start()}")
    return f"drawn by {seed}"


def runs(folder):
    folder.mkdir()
    return {f"seed {seed}": partial(draw, folder / f"{seed}", seed) for seed in range(4)}


def read(folder):
    return {path.name: path.read_text().splitlines() for path in folder.iterdir()}


@pytest.fixture
def alone(tmp_path):
    """What the runs draw one by one in this process."""
    assert run_together(runs(tmp_path / "alone"), quiet=True) == 1
    found = read(tmp_path / "alone")
    assert sorted(found) == ["0", "1", "3"] and {lines[1] for lines in found.values()} == {str(os.getpid())}
    return {name: lines[0] for name, lines in found.items()}


def test_runs_in_processes_are_those_of_one_process(tmp_path, capsys, monkeypatch, alone):
    """The same bits, on one thread, with the commit of this command; the failed run is named, the others go on."""
    monkeypatch.setattr(origins, "_STARTED", ["b" * 40])
    capsys.readouterr()
    assert run_together(runs(tmp_path / "out"), jobs=2) == 1
    found, printed = read(tmp_path / "out"), capsys.readouterr()
    assert {name: lines[0] for name, lines in found.items()} == alone
    assert {lines[2] for lines in found.values()} == {"1"} and {lines[3] for lines in found.values()} == {"b" * 40}
    assert str(os.getpid()) not in {lines[1] for lines in found.values()}
    assert printed.err == "failed: seed 2: the loss is not finite\n"
    lines = printed.out.splitlines()
    assert [line.split("]")[0] for line in lines] == [f"[{n} of 4" for n in range(1, 5)]
    assert sum(line.endswith("left") for line in lines) == 3 and any("seed 1: drawn by 1 (" in line for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [False, True], ids=["threads", "processes"])
def test_a_dask_cluster_takes_the_runs(tmp_path, alone, processes):
    distributed = pytest.importorskip("dask.distributed")
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sockets and event loops, at the cluster's end
        with (
            distributed.LocalCluster(processes=processes, **options) as cluster,
            distributed.Client(cluster),
            joblib.parallel_config(backend="dask"),
        ):
            assert run_together(runs(tmp_path / "out"), quiet=True) == 1
    found = read(tmp_path / "out")
    assert {name: lines[0] for name, lines in found.items()} == alone
    assert {lines[2] for lines in found.values()} == {"1"}
    assert (str(os.getpid()) in {lines[1] for lines in found.values()}) is not processes


def test_a_run_that_kills_its_worker_is_named_and_the_others_go_on(monkeypatch, capsys):
    """All that were under way are tried again alone."""
    tried = []

    def outcomes(tasks, jobs):
        names = [arguments[0] for _, arguments, _ in tasks]
        tried.append(names)
        for name in names:
            if name == "b":
                raise BrokenExecutor("a worker was killed")
            yield Outcome(name, False, "done", 1.0)

    monkeypatch.setattr(together, "outcomes", outcomes)
    assert run_together(dict.fromkeys("abcd", str), jobs=2, quiet=True) == 1
    assert tried == [["a", "b", "c", "d"], ["b"], ["c"], ["d"]]
    assert capsys.readouterr().err.startswith("failed: b: its process was ended from outside")


def test_what_cannot_be_sent_to_a_worker_is_a_failure(tmp_path, capsys):
    with (tmp_path / "file").open("w") as file:
        assert run_together({"a": partial(print, "a", file=file), "b": str}, jobs=2, quiet=True) >= 1
    assert "failed: a: it did not end: " in capsys.readouterr().err


def test_no_jobs_are_refused():
    with pytest.raises(ValueError, match="--jobs: wanted at least 1, or -1 for all cores, got 0"):
        run_together({"a": str}, jobs=0)


SCRIPT = """
import signal, sys, time
from functools import partial
from pathlib import Path
from pyro_vae.runs import exit_status, run_together

def run(path, seconds):
    Path(f"{path}-begun").touch()
    time.sleep(seconds)
    path.touch()
    return "done"

def work(args):
    out = Path(sys.argv[1])
    works = {str(n): partial(run, out / str(n), 0 if n == 0 else 60) for n in range(4) if not (out / str(n)).exists()}
    return run_together(works, jobs=int(sys.argv[2]))

class Options:
    out = sys.argv[1]

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are begun with it ignored

sys.exit(exit_status(Options, work, "the same command goes on"))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are found in /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name)
def test_runs_under_way_end_with_the_command(tmp_path, number):
    """Ctrl-C reaches all processes of a terminal; SIGKILL only one."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path), "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    wait_for(lambda: len(list(tmp_path.glob("*-begun"))) >= 3)
    os.killpg(process.pid, number) if number == signal.SIGINT else process.kill()
    error = process.communicate(timeout=60)[1]
    wait_for(lambda: not alive(process.pid))
    assert {path.name for path in tmp_path.iterdir()} == {"0", "0-begun", "1-begun", "2-begun"}
    if number == signal.SIGINT:
        assert process.returncode == 130 and error == "interrupted: the same command goes on\n"


def wait_for(condition, seconds=120):
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "it takes too long"
        time.sleep(0.1)


def alive(group):
    """Whether a process of the group lives, which is more than a zombie."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            found.append(path.read_text().rpartition(")")[2].split()[:3])
    return any(state != "Z" and its == str(group) for state, _, its in found)
