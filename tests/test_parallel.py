"""Functions at the same time: their results, errors and threads, and how work is shared out."""

import os
import threading

import pytest
import torch

from pyro_vae import parallel
from pyro_vae.parallel import at_once, balanced, cores


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_functions_meet_each_with_one_thread_and_the_first_in_the_callers():
    barrier, seen = threading.Barrier(3, timeout=30), []

    def meet():
        barrier.wait()  # breaks unless all three run at the same time
        seen.append(torch.get_num_threads())
        return threading.current_thread()

    met = at_once([meet, meet, meet])
    assert met[0] is threading.current_thread() and len(set(met)) == 3
    assert seen == [1, 1, 1] and torch.get_num_threads() == 2


def test_all_have_ended_when_an_error_is_raised():
    ended = []

    def fail():
        raise ZeroDivisionError("of this share")

    def slow():
        threading.Event().wait(0.2)
        ended.append(True)

    with pytest.raises(ZeroDivisionError, match="of this share"):
        at_once([fail, slow])
    with pytest.raises(ZeroDivisionError, match="of this share"):
        at_once([slow, fail])
    assert ended == [True, True]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own():
    at_once([int, int])
    child = os.fork()
    if child == 0:
        os._exit(0 if at_once([int, lambda: 7]) == [0, 7] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(("text", "wanted"), [("max 100000", 2), ("150000 100000", 1), ("50000 100000", 1), ("", 2)])
def test_the_quota_of_a_container_counts(tmp_path, monkeypatch, text, wanted):
    (tmp_path / "cpu.max").write_text(text)
    monkeypatch.setattr(parallel, "QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(parallel, "cpu_quota", parallel.cpu_quota.__wrapped__)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1}, raising=False)
    assert cores() == wanted
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {1}, raising=False)
    assert cores() == 1


def test_every_index_is_in_one_group_of_about_the_same_sum():
    sizes = [313_600, 400, 16_000, 40, 8_000, 400, 313_600, 784]
    groups = balanced(sizes, 2)
    assert sorted(index for group in groups for index in group) == list(range(8))
    sums = [sum(sizes[i] for i in group) for group in groups]
    assert max(sums) - min(sums) <= 16_000 and balanced([5], 3) == [[0]]
