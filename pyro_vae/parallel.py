"""Functions that run at the same time, each on a core of its own.

A kernel of a few microseconds gains nothing from a second OpenMP thread, and on a busy machine its threads wait for
each other: a step was seen to take 50 times as long. Functions that share nothing wait once, at their end.
"""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import TypeVar

import torch

T = TypeVar("T")
WORTH = 10_000_000  # rows × parameters, about the multiplications of a forward pass; fewer take a millisecond
FEWEST = 1 << 17  # numbers: handing work to a thread takes 0.1 ms, in which a core updates about so many
QUOTA = Path("/sys/fs/cgroup/cpu.max")  # "max 100000", or microseconds of all cores together per period


def cores() -> int:
    """Return the number of cores that work is shared out to: ``usable_cores()``, and at most torch's threads.

    >>> 1 <= cores() <= torch.get_num_threads()
    True
    """
    return min(torch.get_num_threads(), usable_cores())


def usable_cores() -> int:
    """Return the number of whole cores that the scheduler (``taskset``) and the quota of a container allow, at least 1.

    It does not depend on what else runs on the machine.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.floor(min(allowed, cpu_quota() or math.inf)))


@cache
def cpu_quota() -> float | None:
    """Return the cores that the control group of this process may use in all; None if there is no limit."""
    try:
        quota, period = QUOTA.read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError):  # no such file, or "max"
        return None


def at_once(functions: Sequence[Callable[[], T]]) -> list[T]:
    """Call functions at the same time, each with one thread of torch, the first in this thread; return their results.

    All of them have ended when it returns or raises the first error among theirs. Only what releases Python's lock, as
    torch's operators do, runs at the same time. Threads start with torch's own modes: gradients are recorded in them.

    >>> at_once([lambda: torch.ones(2).sum(), torch.get_num_threads])
    [tensor(2.), 1]
    """
    if len(functions) == 1:
        return [functions[0]()]
    with threads(1):
        others = [_pool().submit(function) for function in functions[1:]]
        try:
            first = functions[0]()
        finally:
            wait(others)
        return [first, *(other.result() for other in others)]


def each(function: Callable[..., T], calls: Sequence[tuple], workers: int) -> list[T]:
    """Return the results of calls of one function, in their order, by so many threads at the same time.

    >>> each(lambda x: 2 * x, [(1,), (2,), (3,)], workers=2)
    [2, 4, 6]
    """

    def of(group: Sequence[int]) -> list[T]:
        return [function(*calls[i]) for i in group]

    groups = balanced([1] * len(calls), workers)
    found = zip(groups, at_once([partial(of, group) for group in groups]))
    results = {i: result for group, part in found for i, result in zip(group, part)}
    return [results[i] for i in range(len(calls))]


def equal_parts(number: int) -> int:
    """Return the largest number of equal parts of so many things that is at most ``cores()``.

    >>> equal_parts(1)
    1
    """
    return max(n for n in range(1, cores() + 1) if number % n == 0)


def balanced(sizes: Sequence[int], parts: int) -> list[list[int]]:
    """Return the indices of the sizes in at most so many groups, none of them empty, of about the same sum.

    >>> balanced([1, 5, 2, 3], 2)
    [[0, 1], [2, 3]]
    """
    groups: list[list[int]] = [[] for _ in range(parts)]
    sums = [0] * parts
    for index in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        least = sums.index(min(sums))
        groups[least].append(index)
        sums[least] += sizes[index]
    return [sorted(group) for group in groups if group]


def shared_out(sizes: Sequence[int], parts: int) -> list[list[int]]:
    """Return the groups of ``balanced``, or a single one where all sizes together are less than ``FEWEST`` numbers.

    >>> shared_out([10, 20, 30], 2), shared_out([FEWEST, FEWEST], 2)
    ([[0, 1, 2]], [[0], [1]])
    """
    return balanced(sizes, parts if sum(sizes) >= FEWEST else 1)


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Context manager in which torch computes on so many threads.

    >>> with threads(1):
    ...     torch.get_num_threads()
    1
    """
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@cache
def _pool() -> ThreadPoolExecutor:
    # Each thread sets its own number of OpenMP threads; that of MKL is one for all, and is set by ``threads``.
    return ThreadPoolExecutor(os.cpu_count() or 1, "pyro_vae", initializer=torch.set_num_threads, initargs=(1,))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a child has none of its parent's threads
