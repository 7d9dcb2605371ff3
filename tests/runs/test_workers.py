"""What happens in a worker: one run at a time, on one thread, and failures as lines."""

import os
import threading
import time

import pytest
import torch

from pyro_vae.runs import origins, workers
from pyro_vae.runs.workers import Origin, attempt

HERE = Origin(os.getpid(), "a" * 40, jobs=2)


@pytest.fixture(autouse=True)
def own_commit():
    before = list(origins._STARTED)
    yield
    origins._STARTED[:] = before


def test_a_run_has_one_thread_if_there_are_several_jobs():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        seen = [attempt("a", lambda: str(torch.get_num_threads()), HERE._replace(jobs=jobs)).line for jobs in (2, 1)]
        assert seen == ["1", "2"] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_run_knows_the_commit_of_the_command():
    assert attempt("a", lambda: str(origins.provenance()["git_commit"]), HERE).line == "a" * 40


def test_two_threads_of_a_process_do_not_share_random_numbers():
    """Each seeds the generator of the process, then draws."""

    def run(seed):
        torch.manual_seed(seed)
        time.sleep(0.05)
        return str(torch.rand(2).tolist())

    found = {}
    threads = [
        threading.Thread(target=lambda n=n: found.update({n: attempt("a", lambda: run(n), HERE).line}))
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: run(n) for n in range(4)}


def test_failures_are_lines_and_ctrl_c_is_not_one():
    def fails():
        return {}["lr"]

    outcome = attempt("a", fails, HERE)
    assert outcome.failed and outcome.line.startswith("KeyError: 'lr' (") and "test_workers.py, line" in outcome.line
    with pytest.raises(KeyboardInterrupt):
        attempt("a", lambda: (_ for _ in ()).throw(KeyboardInterrupt), HERE)
    assert not attempt("a", lambda: "free again", HERE).failed


def test_a_process_ends_when_its_parent_has_ended(monkeypatch):
    parents, ended = iter([7, 7, 1]), threading.Event()
    monkeypatch.setattr(os, "getppid", lambda: next(parents))
    monkeypatch.setattr(os, "_exit", lambda status: ended.set())
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    workers.end_with_parent.__wrapped__()
    assert ended.wait(10)
