"""The data sets that are there, and what a data set, a folder or a file holds, in words."""

import argparse
import shlex
import shutil
import sys
import textwrap
import warnings
from collections.abc import Hashable, Iterator
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor

from pyro_vae.data import Data, DataError, DataWarning, frames, load
from pyro_vae.data.array_files import array_files
from pyro_vae.data.known import KnownSet, find, folders
from pyro_vae.data.picture_folders import holds_pictures
from pyro_vae.data.sets import SETS
from pyro_vae.files import expanded
from pyro_vae.runs.arguments import size_of
from pyro_vae.runs.parser import suggestion

LISTED = 12  # the most classes whose rows are counted one by one
Lines = Iterator[tuple[str, str]]  # what, and what it is


def run(args: argparse.Namespace) -> int:
    """Print the list of all data sets, or what one of them holds."""
    if args.name is None:
        print(list_of_sets(args.data_dir))
        return 0
    known = SETS.get(args.name)
    if known is not None and known.files and not args.download and find(known, args.data_dir) is None:
        print(how_to_get(known, args.data_dir))
        return 1
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DataWarning)
        data = read(args)
    lines = [*(known_lines(known, args.data_dir) if known else own_lines(expanded(args.name), args)), *data_lines(data)]
    lines += [] if is_table(expanded(args.name)) else [("use", use(args))]
    print(*(wrapped(f"{name:<10} {text}", 11) for name, text in lines), sep="\n")
    for warning in caught:
        print(f"WARNING: {warning.message}", file=sys.stderr)
    return 0


def read(args: argparse.Namespace) -> Data:
    """Return the data set that the options name; raise ValueError, or DataError, for what is none."""
    path = expanded(args.name)
    if is_table(path):
        return Data.from_frame(frames.imported().read_csv(path), name=path.stem)
    if not path.exists() and args.name not in (*SETS, "auto") and (near := suggestion(args.name, SETS)):
        raise ValueError(f"{args.name}: no such data set, folder or file; {near}")
    return load(args.name, args.data_dir, download=args.download, layout=args.layout, size=size_of(args))


def is_table(path: Path) -> bool:
    """Return whether a path is that of a file of comma-separated values."""
    return path.is_file() and path.name.lower().removesuffix(".gz").endswith(".csv")


def list_of_sets(root: Path | None) -> str:
    """Return the data sets by name, each with its size and folder, or how to get it."""
    searched = folders(root)
    rows = [wrapped(line, 31) for known in SETS.values() for line in _listed(known, root)]
    notes = (
        f"searched: {', '.join(map(str, searched))}; other folders are set by --data-dir or $PYRO_VAE_DATA",
        f"download: into {searched[-1]}, at the first use, or by pyro-vae data NAME --download",
        "A folder of your own pictures or arrays is a data set, too.",
    )
    head = "data sets, for pyro-vae train --dataset NAME and pyro_vae.load(NAME):"
    return "\n".join([head, "", *rows, "", *(wrapped(note, 2) for note in notes)])


def wrapped(line: str, indent: int) -> str:
    """Return a line as lines that fit the terminal; all but the first are indented."""
    width, begin = shutil.get_terminal_size().columns - 1, " " * indent
    return textwrap.fill(line, width, subsequent_indent=begin, break_long_words=False, break_on_hyphens=False)


def _listed(known: KnownSet, root: Path | None) -> list[str]:
    try:
        paths = find(known, root) if known.files else []
    except DataError as error:
        return [f"  {known.word:<16} incomplete  {error}"]
    state = "download" if paths is None else size_of_files(paths) if paths else bundled()
    lines = [f"  {known.word:<16} {state:<11} {known.help}"]
    return [*lines, f"{'':<31}in {paths[0].parent}"] if paths else lines


def bundled() -> str:
    """Return where the digits come from, or that they are not installed."""
    return "bundled" if find_spec("sklearn") else "not there"


def how_to_get(known: KnownSet, root: Path | None) -> str:
    """Return how to get a data set that is in none of the folders."""
    lines = (
        f"{known.word}: {known.help}. It is not in {', '.join(map(str, folders(root)))}.",
        f"pyro-vae data {known.word} --download fetches it, as does its first use. Or put its files there:",
    )
    files = (f"  {folders(root)[-1] / file}" for file in known.files)
    return "\n".join([*(wrapped(line, 0) for line in lines), *files])


def size_of_files(paths: list[Path]) -> str:
    """Return the size of files, and of folders with all that is in them.

    >>> size_of_files([])
    '0.0 MB'
    """
    files = [file for path in paths for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file()]
    return f"{sum(file.stat().st_size for file in files) / 1e6:,.1f} MB"


def known_lines(known: KnownSet, root: Path | None) -> Lines:
    """Yield what is known of a data set by its name, and the place of its files."""
    yield "data set", f"{known.word}: {known.help}"
    paths = find(known, root) if known.files else None
    yield "files", f"{paths[0].parent}, {size_of_files(paths)}" if paths else "none, it comes with scikit-learn"


def own_lines(path: Path, args: argparse.Namespace) -> Lines:
    """Yield how a folder or file of a user is read."""
    yield "data set", args.name
    if is_table(path):
        _, columns, categories = frames.encoded(frames.imported().read_csv(path))
        yield "read as", "a table; text as the numbers 0, 1, ... of its values, a missing value as NaN"
        yield "columns", ", ".join(_column(column, categories.get(column, ())) for column in columns)
        yield "use", f"pyro_vae.Data.from_frame(pandas.read_csv({str(path)!r}), labels=a column, or None)"
    elif path.is_dir():
        files = array_files(path)
        kind = "pictures" if holds_pictures(path) else "arrays"
        if (path / "train.npy").exists():
            kind = "arrays, which stay on disk: train.npy, valid.npy, test.npy"
        elif files:
            kind = f"arrays: {', '.join(file.name for file in files)}"
        yield "read as", kind
    elif path.is_file():
        yield "read as", "arrays"


def use(args: argparse.Namespace) -> str:
    """Return what to write for this data set, in a shell and in Python.

    >>> use(argparse.Namespace(name="my pictures", data_dir=None, size=[8], layout=None))
    "pyro-vae train --dataset 'my pictures' --size 8, or pyro_vae.load('my pictures', size=8)"
    """
    words = ["pyro-vae", "train", "--dataset", args.name]
    given = {"root": args.data_dir and str(args.data_dir), "layout": args.layout, "size": size_of(args)}
    for option, values in (("--data-dir", [args.data_dir]), ("--layout", [args.layout]), ("--size", args.size)):
        words += [option, *map(str, values)] if values and values[0] is not None else []
    python = [repr(args.name), *(f"{name}={value!r}" for name, value in given.items() if value is not None)]
    return f"{shlex.join(words)}, or pyro_vae.load({', '.join(python)})"


def data_lines(data: Data) -> Lines:
    """Yield the note, the fields, the splits and the classes of a data set."""
    if data.note:
        yield "note", data.note
    yield "fields", "; ".join(f"{name}: {field_words(rows)}" for name, rows in data.train.fields.items())
    yield "rows", ", ".join(f"{name} {len(getattr(data, name)):,}" for name in ("train", "valid", "test"))
    if data.train.labels is not None:
        yield "classes", class_words(data.train.labels, data.classes)


def field_words(rows: Tensor) -> str:
    """Return the shape and the type of a row of a field, and the share of missing values.

    >>> import torch
    >>> field_words(torch.tensor([[1.0, torch.nan]] * 5)), field_words(torch.arange(3))
    ('2, float32, 50.0% missing', 'one number, int64')
    """
    shape = " × ".join(map(str, rows.shape[1:])) or "one number"
    words = f"{shape}, {str(rows.dtype).removeprefix('torch.')}"
    missing = float(rows.isnan().double().mean()) if rows.is_floating_point() else 0.0
    return f"{words}, {missing:.1%} missing" if missing else words


def class_words(labels: Tensor, names: tuple[str, ...]) -> str:
    """Return the number of classes, and of the training rows of each.

    >>> import torch
    >>> class_words(torch.tensor([0, 1, 1, -1]), ("cat", "dog"))
    '2, of which training has cat (1), dog (2), unknown (1)'
    """
    values, counts = labels[labels >= 0].unique(return_counts=True)
    rows = {names[value] if names else str(value): count for value, count in zip(values.tolist(), counts.tolist())}
    total, unknown = len(names) or len(rows), int((labels < 0).sum())
    if len(rows) > LISTED:
        return f"{total}, of which training has {counts.min():,} to {counts.max():,} rows each"
    rows |= {"unknown": unknown} if unknown else {}
    return f"{total}, of which training has {', '.join(f'{name} ({count:,})' for name, count in rows.items())}"


def _column(name: Hashable, values: tuple) -> str:
    listed = ", ".join(map(str, values[:LISTED])) + (", ..." if len(values) > LISTED else "")
    return f"{name} ({listed})" if values else str(name)
