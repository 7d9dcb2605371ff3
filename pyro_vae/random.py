"""Global state for the length of a block: random numbers, the modes of a module and of torch; and what Ctrl-C does."""

import random
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import wraps
from types import FrameType
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from torch import nn

from pyro_vae.checks import is_whole

P = ParamSpec("P")
R = TypeVar("R")


def measurement(function: Callable[P, R]) -> Callable[P, R]:
    """A function that computes without gradients, and the same whatever modes of torch its caller has set.

    Within ``torch.inference_mode`` it works as under ``torch.no_grad``: what it leaves behind (parameters that Pyro
    makes at their first use, caches) can be trained later, and it can take derivatives of its own. Within
    ``torch.autocast`` it computes in the dtypes of parameters and arguments.

    >>> @measurement
    ... def half(x):
    ...     return nn.functional.linear(x, torch.full((1, 1), 0.5)), torch.is_inference_mode_enabled()
    >>> with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
    ...     half(torch.ones(1))
    (tensor([0.5000]), False)
    """

    @wraps(function)
    def measured(*args: P.args, **kwargs: P.kwargs) -> R:
        with torch.inference_mode(False), torch.no_grad(), without_autocast():
            return function(*args, **kwargs)

    return measured


@contextmanager
def without_autocast() -> Iterator[None]:
    """A block in which the caller's ``torch.autocast`` changes nothing; one within the block does.

    Densities in bfloat16 are off by nats, and some linear algebra fails in it. Weights that a block within casts are
    not kept: cast without gradients, they would serve the caller's next training step.

    >>> with torch.autocast("cpu", torch.bfloat16), without_autocast():
    ...     nn.functional.linear(torch.ones(1), torch.ones(1, 1)).dtype
    torch.float32
    """
    with ExitStack() as stack:
        for device in ("cpu", "cuda", "mps", "xpu"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False, cache_enabled=False))
        yield


@contextmanager
def seeded(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """A block with random numbers of its own, on the CPU and the device; the caller's go on as if it had not been.

    Raises ValueError unless the seed is a whole number that fits into 64 bits.

    >>> state = torch.get_rng_state()
    >>> with seeded(3):
    ...     first = torch.rand(2)
    >>> with seeded(3):
    ...     assert torch.equal(first, torch.rand(2))
    >>> torch.equal(state, torch.get_rng_state())
    True
    """
    if not is_whole(seed) or not -(2**63) <= seed < 2**64:
        raise ValueError(f"seed: wanted a whole number from −2⁶³ to 2⁶⁴ − 1, got {seed!r}; write e.g. seed=0")
    device = torch.device(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        # Not torch.manual_seed: it would also seed devices whose state is not restored.
        torch.default_generator.manual_seed(int(seed))
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(int(seed))
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
