"""Data sets of torch as the fields of three splits: read once, into memory or into files of the cache folder."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import count as count_up
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from pyro_vae.checks import positive_number
from pyro_vae.data.arrays import Fields, checked_splits
from pyro_vae.data.columns import Column, FileColumn, MemoryColumn
from pyro_vae.data.fingerprints import fingerprint, key_of
from pyro_vae.data.items import ItemReader, Row
from pyro_vae.data.kept import column_path, is_kept, keep, kept_fields, writing
from pyro_vae.data.raw import DataError, DataWarning
from pyro_vae.data.shares import SPLITS, divided, drawn
from pyro_vae.errors import warn

PROBED = 16  # the rows of a data set that are compared with those that were read before
TWICE = 3  # the rows that are read twice, to see whether they are drawn anew

_LOGGER = logging.getLogger(__name__)

Columns = dict[str, dict[str, Column]]  # split -> field -> column


def fields_of_dataset(
    sources: Mapping[str, Any],
    shares: Mapping[str, float],
    reader: ItemReader,
    cache: Path,
    *,
    memory: float,
    key: str | None = None,
    seed: int = 0,
) -> tuple[dict[str, Fields], tuple[str, ...]]:
    """Return the fields of three splits, and the names of the classes; see ``Data.from_dataset``.

    Args:
        sources: the data set of train, and those of the splits that are given apart.
        shares: of the training rows, for the other splits.
        reader: makes rows of the items.
        cache: the folder of the rows that are larger than ``memory`` bytes.
        memory: the most bytes that are kept in memory.
        key: the user's own words for these rows, in place of a fingerprint.
        seed: of the rows that are taken as shares.
    """
    positive_number("memory", memory)
    counts = {split: _count(split, dataset) for split, dataset in sources.items()}
    classes = _classes(sources["train"])
    settings = (reader.fields, reader.layout, reader.background, sorted(shares.items()), seed)
    sizes = {split: _bytes(split, dataset, counts[split], reader) for split, dataset in sources.items()}
    rows = _Rows(sources, counts, shares, reader, seed)
    known = sum(size for size in sizes.values() if size is not None)
    if None not in sizes.values() and known <= memory:
        return checked_splits(rows.in_memory()), classes
    word = key_of(key, settings) if key is not None else _fingerprint(sources, sizes, reader, settings)
    if word is not None and is_kept(cache / word):
        return checked_splits(kept_fields(cache / word)), classes
    return checked_splits(rows.on_disk(cache, word, known, memory)), classes


class _Rows:
    """The rows of all sources, which are read once."""

    def __init__(self, sources: Any, counts: Any, shares: Any, reader: ItemReader, seed: int):
        self.sources, self.counts, self.shares, self.reader, self.seed = sources, counts, shares, reader, seed

    def in_memory(self) -> dict[str, dict[str, np.ndarray]]:
        """Return the fields of each split as arrays."""
        lengths = {split: len(rows) for split, rows in divided(self.counts["train"], self.shares, self.seed).items()}
        lengths |= {split: count for split, count in self.counts.items() if split != "train"}
        columns = self._read(lambda split, field: MemoryColumn(lengths[split]))
        return {split: {name: column.rows for name, column in fields.items()} for split, fields in columns.items()}

    def on_disk(self, cache: Path, word: str | None, needed: int, memory: float) -> dict[str, Fields]:
        """Return the fields of each split, mapped from files of the cache, or in memory if they fit into it."""
        try:
            with writing(cache, needed) as scratch:
                written = scratch / "rows"
                written.mkdir()
                columns = self._read(lambda split, field: FileColumn(column_path(written, split, field)))
                size = sum(path.stat().st_size for path in written.iterdir())
                if size > memory:
                    _say_kept(cache, word, size)
                    return keep(written, cache / word if word else None, columns)
                return {
                    split: {name: rows.clone() for name, rows in fields.items()}
                    for split, fields in keep(written, None, columns).items()
                }
        except OSError as error:
            raise DataError(
                f"{cache}: the rows cannot be kept there ({error.strerror or error}); free some space, or set another "
                "cache folder by XDG_CACHE_HOME"
            ) from error

    def _read(self, column: Callable[[str, str], Any]) -> dict[str, dict[str, Any]]:
        """Read all rows into columns, which ``column`` makes for a split and a field."""
        columns: dict[str, dict[str, Any]] = {}
        with ExitStack() as open_columns:
            for row, place in self._placed_rows():
                fields = columns.setdefault(place, {})
                for name, array in row.items():
                    if name not in fields:
                        fields[name] = column(place, name)
                        open_columns.callback(fields[name].close)
                    fields[name].append(array)
        empty = [split for split in SPLITS if split not in columns]
        if empty:
            words = ", ".join(empty)
            raise DataError(f"{words}: wanted at least one row, got none; set a larger share, or give more rows")
        return columns

    def _placed_rows(self) -> Iterator[tuple[Row, str]]:
        """Yield each row with its split."""
        for source, dataset in self.sources.items():
            count, shares = self.counts[source], self.shares if source == "train" else {}
            yield from zip(_rows(source, dataset, count, self.reader), _places(source, count, shares, self.seed))


def _count(split: str, dataset: Any) -> int | None:
    """Return the number of rows that a data set declares, or None; raise ValueError if it is no data set."""
    if isinstance(dataset, DataLoader):
        raise ValueError(
            f"{split}: wanted a data set of torch, got a DataLoader, whose items are batches; write loader.dataset"
        )
    if not hasattr(dataset, "__getitem__") and not hasattr(dataset, "__iter__"):
        raise ValueError(
            f"{split}: wanted a data set of torch, with __getitem__ and __len__ or with __iter__, got a "
            f"{type(dataset).__name__}"
        )
    try:
        return len(dataset)
    except TypeError:
        return None


def _by_number(dataset: Any, count: int | None) -> bool:
    """Return whether rows are read by their numbers; torch's own classes have a method for it that only raises."""
    method = getattr(type(dataset), "__getitem__", None)
    return count is not None and method is not None and method is not Dataset.__getitem__


def _bytes(split: str, dataset: Any, count: int | None, reader: ItemReader) -> int | None:
    """Return the bytes of all rows, by those of the first; None for an iterable, which may be read only once.

    Warns if a row is another one when it is read again.
    """
    if count is None or not _by_number(dataset, count):
        return None
    if not count:
        raise DataError(f"{split}: wanted at least one row, got an empty data set")
    rows = [_row(split, dataset, number, reader) for number in range(min(count, TWICE))]
    if any(not _alike(row, _row(split, dataset, number, reader)) for number, row in enumerate(rows)):
        warn(
            f"{split}: rows differ each time they are read, but are read once; augmentation belongs into the program's "
            "observe, where it is drawn anew in each epoch",
            DataWarning,
        )
    return count * sum(array.nbytes for array in rows[0].values())


def _alike(one: Row, other: Row) -> bool:
    return one.keys() == other.keys() and all(one[name].tobytes() == other[name].tobytes() for name in one)


def _row(split: str, dataset: Any, number: int, reader: ItemReader) -> Row:
    try:
        item = dataset[number]
    except Exception as error:
        raise DataError(f"{split}: row {number} cannot be read ({error!r}); the length is {len(dataset)}") from error
    return reader.row(item, number)


def _rows(split: str, dataset: Any, count: int | None, reader: ItemReader) -> Iterator[Row]:
    """Yield all rows of a data set, with a progress bar; raise DataError unless there are as many as it declares."""
    with tqdm(total=count, desc=f"reading {split}", unit="row", unit_scale=True, disable=None) as bar:
        if count is not None and _by_number(dataset, count):
            for number in range(count):
                yield _row(split, dataset, number, reader)
                bar.update()
            return
        number = 0
        for item in _items(split, dataset):
            if number == count:
                raise DataError(
                    f"{split}: wanted {count} rows, as its length says, got row {number}, too; correct the length"
                )
            yield reader.row(item, number)
            number += 1
            bar.update()
    if count is not None and number < count:
        raise DataError(
            f"{split}: wanted {count} rows, as its length says, got {number}: row {number} is missing; make it "
            "whole, or correct the length"
        )


def _items(split: str, dataset: Any) -> Iterator[Any]:
    items = iter(dataset)
    for number in count_up():
        try:
            item = next(items)
        except StopIteration:
            return
        except Exception as error:
            raise DataError(f"{split}: row {number} cannot be read ({error!r}); mend it, or leave it out") from error
        yield item


def _places(source: str, count: int | None, shares: Mapping[str, float], seed: int) -> Iterator[str]:
    """Yield the split of each row of a source."""
    if not shares:
        return repeat(source)
    if count is None:
        return drawn(shares, seed)
    places = np.empty(count, int)
    for split, rows in divided(count, shares, seed).items():
        places[rows.numpy()] = SPLITS.index(split)
    return (SPLITS[place] for place in places)


def _fingerprint(
    sources: Mapping[str, Any], sizes: Mapping[str, int | None], reader: ItemReader, settings: object
) -> str | None:
    words = []
    for split, dataset in sources.items():
        size = sizes[split]
        if size is None:
            return None
        numbers = np.unique(np.linspace(0, len(dataset) - 1, PROBED).round().astype(int)).tolist()
        rows = (_row(split, dataset, number, reader) for number in numbers)
        words.append(fingerprint(dataset, rows, size, settings))
    return None if None in words else key_of(repr(words), settings)


def _say_kept(cache: Path, word: str | None, size: int) -> None:
    if word is not None:
        _LOGGER.warning("the rows, %.2f GB, are kept in %s, and are not read again", size / 1e9, cache / word)
    else:
        _LOGGER.warning(
            "the rows, %.2f GB, will be read again next time, as a change of them could go unseen; to keep them, name "
            'this version of the data: key="..."',
            size / 1e9,
        )


def _classes(dataset: Any) -> tuple[str, ...]:
    """Return the names of the classes, as data sets of torchvision have them."""
    while not hasattr(dataset, "classes") and hasattr(dataset, "dataset"):  # torch's Subset
        dataset = dataset.dataset
    classes = getattr(dataset, "classes", ())
    named = isinstance(classes, Sequence) and not isinstance(classes, str) and all(isinstance(n, str) for n in classes)
    return tuple(classes) if named else ()
