"""Global state for the length of a block: the random number generators, and the modes of a module."""

from collections.abc import Iterator
from contextlib import contextmanager

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
        torch.manual_seed(seed)
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
