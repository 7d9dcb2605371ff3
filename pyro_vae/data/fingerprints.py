"""Fingerprints of torch data sets, by which rows that were read before are known again, or not at all."""

import hashlib
import importlib.metadata
import inspect
import os
import pickle
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch

from pyro_vae.data.items import Row

FORMAT = 1  # of the files that are kept
LISTED = 500_000  # the most files and folders that are looked at
PACKAGES = ("numpy", "pillow", "torch", "torchvision")  # whose versions may change what is read


def fingerprint(dataset: Any, rows: Iterable[Row], needed: int, settings: object) -> str | None:
    """Return a fingerprint of a data set, or None if a change of its rows could go unseen.

    It covers the attributes of the data set, the size and time of every file and folder that they name, the source of
    its class, some of its rows, and ``settings``. The attributes must name a file, or hold ``needed`` bytes, those of
    all rows: a data set whose rows come from elsewhere has no fingerprint, nor has one that cannot be pickled.
    """
    digest, state = hashlib.sha256(), _State()
    try:
        pickler = _Pickler(state, protocol=5)
        pickler.dump(dataset)
    except Exception:  # what pickle raises for what it cannot do is of many kinds
        return None
    listed = list(_listed(pickler.words))
    if len(listed) > LISTED or (not listed and state.size < needed):
        return None
    versions = []
    for package in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions.append((package, importlib.metadata.version(package)))
    digest.update(
        repr((FORMAT, versions, settings, state.digest.hexdigest(), _sources(dataset), sorted(listed))).encode()
    )
    for row in rows:
        for name, array in row.items():
            digest.update(repr((name, array.dtype.str, array.shape)).encode() + array.tobytes())
    return digest.hexdigest()


def key_of(words: str, settings: object) -> str:
    """Return a fingerprint of a user's own words.

    >>> key_of("faces, May", (0.1, 0.1)) == key_of("faces, June", (0.1, 0.1))
    False
    """
    return hashlib.sha256(repr((FORMAT, words, settings)).encode()).hexdigest()


class _State:
    """A file that keeps the digest and the number of the bytes written to it."""

    def __init__(self) -> None:
        self.digest, self.size = hashlib.sha256(), 0

    def write(self, content: Any) -> int:
        size = memoryview(content).nbytes
        self.digest.update(content)
        self.size += size
        return size


class _Pickler(pickle.Pickler):
    """A pickler that notes strings and paths, and for which equal tensors have equal bytes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.words: set[str] = set()

    def persistent_id(self, obj: Any) -> None:
        """Note a string or a path; nothing is kept apart."""
        if isinstance(obj, str | os.PathLike):
            with suppress(Exception):
                self.words.add(os.fspath(obj))

    def reducer_override(self, obj: Any) -> Any:
        """Reduce a tensor to its bytes: torch's own way names an address in memory."""
        if isinstance(obj, torch.Tensor) and obj.layout == torch.strided and not obj.is_quantized:
            plain = obj.detach().cpu().contiguous().reshape(-1)
            return _rebuilt, (str(obj.dtype), tuple(obj.shape), plain.view(torch.uint8).numpy())
        return NotImplemented


def _rebuilt(dtype: str, shape: Sequence[int], content: np.ndarray) -> None:
    """Stand for a tensor in a pickle that nobody reads."""


def _listed(words: Iterable[str]) -> Iterator[tuple[str, int, int]]:
    """Yield path, size and time of each file and folder that is named, and of what is in the folders."""
    seen: set[str] = set()
    for word in sorted(words):  # a folder comes before what is in it
        path = os.path.abspath(word) if word and "\0" not in word and len(word) < 4096 else os.sep
        if path not in seen and path != os.path.dirname(path):  # neither seen before, nor the root of all files
            yield from _below(path, seen) if os.path.exists(path) else ()


def _below(top: str, seen: set[str]) -> Iterator[tuple[str, int, int]]:
    waiting = [top]
    while waiting and len(seen) <= LISTED:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        try:
            found = os.stat(path)
            yield path, found.st_size, found.st_mtime_ns
            if stat.S_ISDIR(found.st_mode):
                waiting += [os.path.join(path, name) for name in os.listdir(path)]
        except OSError:  # a link that leads nowhere, or a folder that may not be read
            yield path, -1, -1


def _sources(dataset: Any) -> list[str]:
    """Return the source of the data set's class and of those that it is made of, as far as it is known."""
    sources = []
    for kind in type(dataset).__mro__[:-1]:
        with suppress(OSError, TypeError):
            sources.append(inspect.getsource(kind))
    return sources
