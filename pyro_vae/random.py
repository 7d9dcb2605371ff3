"""Context managers for global state: random numbers, modes of modules and of torch, and what Ctrl-C does."""

import random
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import wraps
from types import FrameType
from typing import Any, ParamSpec, Protocol, TypeVar

import numpy as np
import torch
from torch import nn

from pyro_vae.checks import is_whole

P = ParamSpec("P")
R = TypeVar("R")


class HasModes(Protocol):
    """What ``mode`` needs of an ``nn.Module``."""

    modules: Callable[..., Iterator[nn.Module]]
    train: Callable[..., Any]


def drawn_like(draw: Callable[..., torch.Tensor], tensor: torch.Tensor) -> torch.Tensor:
    """Return random numbers of a tensor's shape, dtype and device, by ``torch.rand`` or ``torch.randn``.

    ``torch.randn_like`` gives them in the order in which the tensor lies in memory, which another engine may change.

    >>> a, b = torch.zeros(2, 3), torch.zeros(3, 2).T
    >>> with forked_rng():
    ...     first = drawn_like(torch.randn, a)
    >>> with forked_rng():
    ...     torch.equal(drawn_like(torch.randn, b), first)
    True
    """
    return draw(tensor.shape, dtype=tensor.dtype, device=tensor.device)


def measurement(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function: it computes without gradients, and its caller's modes of torch do not change the result.

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
    """Context manager in which the caller's ``torch.autocast`` has no effect; autocast entered inside it has.

    Densities in bfloat16 are off by nats, and some linear algebra fails in it. Casts of weights made inside are not
    cached: they have no gradient, and the caller's next training step would use them.

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
def forked_rng(*devices: torch.device | str) -> Iterator[None]:
    """Context manager after which torch's generators, on the CPU and on these devices, are as they were before.

    >>> state = torch.get_rng_state()
    >>> with forked_rng("cpu"):
    ...     _ = torch.rand(2)
    >>> torch.equal(state, torch.get_rng_state())
    True
    """
    with torch.random.fork_rng({device for device in map(torch.device, devices) if device.type == "cuda"}):
        yield


@contextmanager
def seeded(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Context manager with torch random numbers of its own, on the CPU and the device; the caller's are put back.

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
    with forked_rng(device):
        # Not torch.manual_seed: it would also seed devices whose state is not restored.
        torch.default_generator.manual_seed(int(seed))
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(int(seed))
        yield


def random_state(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Return the state of every random number generator: torch's on the CPU and on the device, NumPy's and Python's.

    It consists of tensors and lists, so that it can be saved.

    >>> state = random_state()
    >>> first = torch.rand(2), np.random.rand(), random.random()
    >>> set_random_state(state)
    >>> assert torch.equal(first[0], torch.rand(2)) and first[1:] == (np.random.rand(), random.random())
    """
    kind, keys, *rest = np.random.get_state(legacy=True)
    version, words, gauss = random.getstate()
    return {
        **torch_random_state(device),
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "python": [version, torch.tensor(words), gauss],
    }


def torch_random_state(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Return torch's part of ``random_state``, which takes a microsecond.

    >>> sorted(torch_random_state())
    ['cpu']
    """
    device = torch.device(device)
    on_cuda = {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {}
    return {"cpu": torch.get_rng_state(), **on_cuda}


def set_random_state(state: Mapping[str, Any], device: torch.device | str = "cpu") -> None:
    """Set the random number generators to what ``random_state`` or ``torch_random_state`` returned."""
    torch.set_rng_state(state["cpu"])
    if torch.device(device).type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
    if "numpy" in state:
        kind, keys, *rest = state["numpy"]
        np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    if "python" in state:
        version, words, gauss = state["python"]
        random.setstate((version, tuple(words.tolist()), gauss))


def random_states_between(before: Mapping[str, Any], after: Mapping[str, Any], steps: int) -> list[dict[str, Any]]:
    """Return the states of ``torch_random_state`` before each of some steps, which draw alike, on a GPU.

    torch counts there what was drawn, in the second half of the generator's state.

    >>> before, after = ({"cuda": torch.tensor([7, drawn]).view(torch.uint8)} for drawn in (10, 16))
    >>> [state["cuda"].view(torch.int64).tolist() for state in random_states_between(before, after, 3)]
    [[7, 10], [7, 12], [7, 14]]
    """
    first, last = (state["cuda"].view(torch.int64) for state in (before, after))
    return [{**before, "cuda": (first + (last - first) * step // steps).view(torch.uint8)} for step in range(steps)]


class RandomStream:
    """Random numbers of its own, of torch, NumPy and Python, that are swapped in for a while and then go on.

    torch's begin with the seed, those of NumPy and Python where the caller's stand. ``seed`` and ``device`` are those
    of ``seeded``.

    >>> stream = RandomStream(3)
    >>> with stream.current():
    ...     first = torch.rand(1)
    >>> between = torch.rand(1)
    >>> with stream.current(), seeded(3):
    ...     again = torch.rand(1)
    >>> torch.equal(first, again)
    True
    """

    def __init__(self, seed: int, device: torch.device | str = "cpu"):
        self.device = torch.device(device)
        with seeded(seed, device):
            self._state = self._now()

    @contextmanager
    def current(self) -> Iterator[None]:
        """Context manager in which the numbers are those of the stream; the caller's are put back. It does not nest."""
        caller = self._now()
        self._set(self._state)
        try:
            yield
        finally:
            self._state = self._now()
            self._set(caller)

    def _now(self) -> tuple[dict[str, Any], Any, Any]:
        return torch_random_state(self.device), np.random.get_state(), random.getstate()

    def _set(self, state: tuple[dict[str, Any], Any, Any]) -> None:
        of_torch, of_numpy, of_python = state
        set_random_state(of_torch, self.device)
        np.random.set_state(of_numpy)
        random.setstate(of_python)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Context manager in which torch's default dtype is the one given.

    >>> with default_dtype(torch.float64):
    ...     torch.ones(1).dtype
    torch.float64
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def mode(module: HasModes, training: bool) -> Iterator[None]:
    """Context manager in which a module is in training or evaluation mode; the mode of every submodule is restored.

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
    """Handle a signal as Ctrl-C is handled: raise KeyboardInterrupt, with the number of the signal as its argument.

    After ``signal.signal(signal.SIGTERM, interrupt)`` SIGTERM, too, ends ``fit`` after a whole step.
    """
    raise KeyboardInterrupt(number)


class _Requests:
    """A signal handler that notes the signals; it raises KeyboardInterrupt at once only for the second one."""

    def __init__(self) -> None:
        self.numbers: list[int] = []

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.numbers.append(number)
        if len(self.numbers) > 1:
            raise KeyboardInterrupt(number)

    def raise_if_asked(self, agreed: Callable[[int], int] = int) -> None:
        number = agreed(self.numbers[0] if self.numbers else 0)
        if number:
            raise KeyboardInterrupt(number)


@contextmanager
def deferred_interrupt() -> Iterator[Callable[..., None]]:
    """Context manager in which Ctrl-C raises KeyboardInterrupt only where the function that it yields is called.

    Raised at once it would tear a step, or be lost where Python ignores exceptions. A second Ctrl-C is raised at once.
    SIGTERM is treated alike where its handler is ``interrupt``. Outside the main thread, and where the program handles
    a signal in another way, nothing is changed. Within another ``deferred_interrupt`` the two share the signals.
    Processes that work together give it a function from the number of the signal, or 0, to the number that all agree
    on.

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
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)} if main else {}
    outer = [handler for handler in before.values() if isinstance(handler, _Requests)]
    requests = outer[0] if outer else _Requests()
    ours = {number: old for number, old in before.items() if old in (signal.default_int_handler, interrupt)}
    for number in ours:
        signal.signal(number, requests)
    try:
        yield requests.raise_if_asked
    finally:
        for number, old in ours.items():
            signal.signal(number, old)
