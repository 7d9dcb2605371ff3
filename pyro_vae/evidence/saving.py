"""Measurements that can be stopped and resumed: their file, and Ctrl-C."""

import hashlib
import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from pyro_vae.arguments import ProgramArguments
from pyro_vae.files import CheckpointError, expanded, load_tree, read_bytes, write_whole
from pyro_vae.random import deferred_interrupt
from pyro_vae.structure import structure
from pyro_vae.tracing.probing import PLAIN, reached

SAVED_EVERY = 30.0  # seconds


class SavedMeasurement:
    """The file of a measurement, which is written every half minute, at Ctrl-C and at the end.

    Args:
        path: of the file; None: nothing is saved.
        identity: what a saved measurement must have been made of.

    Attributes:
        content: a function that returns what is done, as a dictionary for ``torch.save``; None: nothing.

    >>> with SavedMeasurement(None, "").kept(RuntimeError) as between_batches:
    ...     between_batches()
    """

    def __init__(self, path: Path | str | None, identity: str):
        self.path = None if path is None else expanded(path)
        self.identity, self._saved = identity, time.monotonic()
        self.content: Callable[[], dict[str, Any] | None] = lambda: None

    def load(self) -> dict[str, Any] | None:
        """Return what was done; None if there is no file. Raises ``CheckpointError`` for another measurement's."""
        if self.path is None or not self.path.exists():
            return None
        saved = load_tree(io.BytesIO(read_bytes(self.path)), self.path)
        if saved.get("identity") != self.identity:
            raise CheckpointError(
                f"{self.path} is of another measurement: program, data, seed, options or version differ; give another "
                "checkpoint, or delete it"
            )
        return saved

    def save(self) -> None:
        """Write the file."""
        self._saved, content = time.monotonic(), self.content()
        if self.path is not None and content is not None:
            buffer = io.BytesIO()
            torch.save({"identity": self.identity, **content}, buffer)
            write_whole(self.path, buffer.getvalue())

    @contextmanager
    def kept(self, stopped: Callable[[str], BaseException]) -> Iterator[Callable[[], None]]:
        """Context manager that yields a function to call between batches: there Ctrl-C acts, and the file is written.

        Ctrl-C saves what is done and raises ``stopped``, which is given words on how to continue.
        """
        with deferred_interrupt() as raise_if_asked:

            def between_batches() -> None:
                raise_if_asked()
                if time.monotonic() - self._saved > SAVED_EVERY:
                    self.save()

            try:
                yield between_batches
            except KeyboardInterrupt as interrupt:
                self.save()
                raise stopped(
                    f"the same call continues from {self.path}" if self.path else "give checkpoint=... to continue"
                ) from interrupt
        self.save()


def own_seed(seed: int | None) -> int:
    """Return the seed; one from the caller's random numbers if it is None."""
    return int(torch.randint(2**62, ())) if seed is None else seed


def check_resumable(path: Path | str | None, seed: int | None) -> None:
    """Raise ValueError for a file without a seed: the same call would draw other random numbers."""
    if path is not None and seed is None:
        raise ValueError("checkpoint: wanted a seed, got seed=None, whose random numbers differ in each call; give one")


def identity(options: object, given: ProgramArguments, seed: int, *functions: Any, tensors: tuple = ()) -> str:
    """Return a fingerprint of all that the bits of a measurement depend on: options, data, program, parameters.

    ``options`` must have a ``repr`` that says what they are; ``tensors`` are further ones. Of the program count the
    code of its functions, the structure and the state of its modules, and the numbers, words and tensors that it refers
    to, as far as ``reached`` follows it.
    """
    arguments, form = tree_flatten((given.args, dict(given.kwargs)))
    words = options, seed, form, torch.__version__, torch.get_num_threads()
    digest = hashlib.sha256(repr(words).encode())
    program = [part for pair in reached(*functions) for part in pair]
    store = [part for pair in sorted(pyro.get_param_store().items()) for part in pair]
    for value in (*arguments, *tensors, *program, *store):
        _add(digest, value)
    return digest.hexdigest()


def _add(digest: Any, value: Any) -> None:
    """Add what is known of a value to a hash: of an object of another kind, its name or its class's."""
    if isinstance(value, nn.Module):
        _add(digest, repr(structure(value)))
        for part in value.state_dict().values():
            _add(digest, part)
    elif isinstance(value, Tensor):
        value = value.detach().cpu().contiguous()
        digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    elif isinstance(value, np.ndarray) and not value.dtype.hasobject:
        digest.update(f"{value.dtype}{value.shape}".encode() + value.tobytes())
    elif isinstance(value, FunctionType):
        _add(digest, value.__code__)
    elif isinstance(value, CodeType):
        digest.update(value.co_code + repr(value.co_names).encode())
        for constant in value.co_consts:
            _add(digest, constant)
    elif isinstance(value, frozenset):
        _add(digest, tuple(sorted(value, key=repr)))
    else:
        name = getattr(value, "__qualname__", type(value).__qualname__)
        digest.update((repr(value) if isinstance(value, (*PLAIN, tuple)) else name).encode())
