"""The run of a program before it is recorded, which shows what it changes, and what is restored after it."""

import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.compiling.constants import Changes, WatchedConstants, in_words
from pyro_vae.compiling.parts import is_plain
from pyro_vae.compiling.private import in_place_changes
from pyro_vae.compiling.untraceable import IN_PLACE, OR_EAGERLY, Untraceable

LARGEST = 1 << 20  # elements of the largest tensor beside parameters and buffers that a trial run restores


def run_alone(loss: nn.Module, args: tuple[Tensor, ...], watched: WatchedConstants) -> tuple[Tensor, Changes]:
    """Return the loss of an eager run, and the tensors and objects that the run replaced.

    Raises ``Untraceable`` if the run draws from other generators than torch's own, or changes values that the next run
    reads: a trace would do so only once. The setup of a first run is allowed.
    """
    generators = watched.generators()
    states = {name: pickle.dumps(get()) for name, (get, _) in generators.items()}
    versions = _versions(loss, watched)
    value, kept, replaced = _run(loss, args, watched)
    if kept:  # maybe only by the setup of the first run
        value, kept, replaced = _run(loss, args, watched)
    watched.look()
    drawn = [name for name, (get, _) in generators.items() if pickle.dumps(get()) != states[name]]
    moved = {name: pair for name, pair in _versions(loss, watched).items() if versions.get(name, pair) != pair}
    if drawn:
        raise Untraceable(
            f"the program draws from {', '.join(drawn)}, and a trace would keep the first draw; "
            f"draw from torch's own generator, as torch.rand(...) does, {OR_EAGERLY}"
        )
    if kept or moved:
        raise Untraceable(
            f"the program changes {in_words(kept) or ', '.join(moved)} while it runs, and a trace would "
            f"keep one value; {IN_PLACE}, {OR_EAGERLY}"
        )
    return value, replaced


def _run(loss: nn.Module, args: tuple[Tensor, ...], watched: WatchedConstants) -> tuple[Tensor, Changes, Changes]:
    """Return the loss, the plain values that the run changed, and the tensors and objects that it replaced."""
    watched.look()
    value = loss(*args)
    changes = watched.changes()
    kept = {name: pair for name, pair in changes.items() if all(map(is_plain, pair))}
    replaced = {name: pair for name, pair in changes.items() if name not in kept}
    watched.passing |= replaced.keys()
    return value, kept, replaced


@contextmanager
def restored_if_untraceable(watched: WatchedConstants) -> Iterator[None]:
    """Context manager that restores everything watched, and the generators, if its block raises ``Untraceable``."""
    before = WatchedConstants(watched.roots)
    states = [(put, get()) for get, put in before.generators().values()]
    try:
        yield
    except Untraceable:
        before.put_back()
        for put, state in states:
            put(state)
        raise


def _versions(loss: nn.Module, watched: WatchedConstants) -> dict[str, int]:
    """Return how often each tensor beside parameters and buffers was changed in place, by name."""
    registered = {id(tensor) for tensor in (*loss.parameters(), *loss.buffers())}
    return {
        place.name: in_place_changes(place.value)
        for place in watched.places
        if isinstance(place.value, Tensor) and id(place.value) not in registered and place.name not in watched.passing
    }


def check_not_read(replaced: Changes, loss: nn.Module, constants: Mapping[str, Any]) -> None:
    """Raise ``Untraceable`` if a run reads a tensor that the run before it replaced, or replaces a parameter."""
    registered = {id(tensor) for tensor in (*loss.parameters(), *loss.buffers())}
    addresses = {tensor.data_ptr() for tensor in constants.values() if torch.is_tensor(tensor)} - {0}
    read = [
        name
        for name, (_, new) in replaced.items()
        if torch.is_tensor(new) and (id(new) in registered or new.data_ptr() in addresses)
    ]
    if read:
        raise Untraceable(
            f"the program replaces {', '.join(read)} at each run, and a trace would keep one value; "
            f"{IN_PLACE}, {OR_EAGERLY}"
        )
