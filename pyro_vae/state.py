"""Global state for the length of a block: random number generators, the modes of a module, what Ctrl-C does."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

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


@contextmanager
def deferred_interrupt() -> Iterator[Callable[[], None]]:
    """A block in which Ctrl-C raises KeyboardInterrupt where the function that it gives is called, not anywhere.

    Raised at once it would tear a step, or be lost where Python ignores exceptions. A second Ctrl-C is raised at once.
    Outside the main thread, and where the program handles SIGINT itself, nothing is changed.

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
    asked = threading.Event()

    def note(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    def raise_if_asked() -> None:
        if asked.is_set():
            raise KeyboardInterrupt

    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield raise_if_asked
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield raise_if_asked
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
