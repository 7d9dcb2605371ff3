"""Global state: random number generators and the modes of a module for the length of a block, and what Ctrl-C does."""

import random
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import nn


@contextmanager
def seeded(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """A block with random numbers of its own, on the CPU and the device; the caller's go on as if it had not been.

    >>> state = torch.get_rng_state()
    >>> with seeded(3):
    ...     first = torch.rand(2)
    >>> with seeded(3):
    ...     assert torch.equal(first, torch.rand(2))
    >>> torch.equal(state, torch.get_rng_state())
    True
    """
    device = torch.device(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        # Not torch.manual_seed: it would also seed devices whose state is not restored.
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def random_state(device: torch.device | str = "cpu") -> dict[str, Any]:
    """The state of every random number generator: torch's on the CPU and on the device, NumPy's and Python's.

    Tensors and lists, so that it can be saved.

    >>> state = random_state()
    >>> first = torch.rand(2), np.random.rand(), random.random()
    >>> set_random_state(state)
    >>> assert torch.equal(first[0], torch.rand(2)) and first[1:] == (np.random.rand(), random.random())
    """
    kind, keys, *rest = np.random.get_state()
    version, words, gauss = random.getstate()
    return {
        **torch_random_state(device),
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), *rest],
        "python": [version, torch.tensor(words), gauss],
    }


def torch_random_state(device: torch.device | str = "cpu") -> dict[str, Any]:
    """The part of ``random_state`` that is torch's, which takes a microsecond.

    >>> sorted(torch_random_state())
    ['cpu']
    """
    device = torch.device(device)
    on_cuda = {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {}
    return {"cpu": torch.get_rng_state(), **on_cuda}


def set_random_state(state: Mapping[str, Any], device: torch.device | str = "cpu") -> None:
    """Sets the random number generators to what ``random_state`` or ``torch_random_state`` gave."""
    torch.set_rng_state(state["cpu"])
    if torch.device(device).type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
    if "numpy" in state:
        kind, keys, *rest = state["numpy"]
        np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    if "python" in state:
        version, words, gauss = state["python"]
        random.setstate((version, tuple(words.tolist()), gauss))


@contextmanager
def mode(module: nn.Module, training: bool) -> Iterator[None]:
    """A block in training or evaluation mode; the mode of every submodule is restored.

    >>> module = nn.Dropout()
    >>> with mode(module, training=False):
    ...     module.training
    False
    >>> module.training
    True
    """
    before = {submodule: submodule.training for submodule in module.modules()}
    module.train(training)
    try:
        yield
    finally:
        for submodule, was_training in before.items():
            submodule.training = was_training


def interrupt(number: int, frame: FrameType | None) -> None:
    """A signal handler: does for any signal what Ctrl-C does. The exception carries the number of the signal.

    ``signal.signal(signal.SIGTERM, interrupt)`` has ``fit`` end after a whole step then, too.
    """
    raise KeyboardInterrupt(number)


@contextmanager
def deferred_interrupt() -> Iterator[Callable[..., None]]:
    """A block in which Ctrl-C raises KeyboardInterrupt where the function that it gives is called, not anywhere.

    Raised at once it would tear a step, or be lost where Python ignores exceptions. A second Ctrl-C is raised at once.
    The same holds for SIGTERM where its handler is ``interrupt``. Outside the main thread, and where the program
    handles a signal otherwise, nothing is changed. Processes that work together hand that function another one, from
    the number of the signal, or 0, to that on which they have agreed.

    >>> before = signal.signal(signal.SIGINT, signal.default_int_handler)
    >>> try:
    ...     with deferred_interrupt() as raise_if_asked:
    ...         signal.raise_signal(signal.SIGINT)
    ...         step = "whole"
    ...         raise_if_asked()
    ... except KeyboardInterrupt:
    ...     print(step)
    whole
    >>> before = signal.signal(signal.SIGINT, before)
    """
    asked: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        if len(asked) > 1:
            raise KeyboardInterrupt(number)

    def raise_if_asked(agreed: Callable[[int], int] = int) -> None:
        number = agreed(asked[0] if asked else 0)
        if number:
            raise KeyboardInterrupt(number)

    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)} if main else {}
    ours = {number: old for number, old in before.items() if old in (signal.default_int_handler, interrupt)}
    for number in ours:
        signal.signal(number, note)
    try:
        yield raise_if_asked
    finally:
        for number, old in ours.items():
            signal.signal(number, old)
