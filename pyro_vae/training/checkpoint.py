"""Checkpoints that are whole or not there at all, that say when they are damaged, and that can run no code."""

import hashlib
import io
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any

import torch

from pyro_vae.checks import is_whole
from pyro_vae.files import LARGEST, CheckpointError, check_payload, expanded, load_tree, read_bytes, write_whole

MAGIC = b"pyro_vae checkpoint\n"
FORMAT = 4  # in 3 epochs were compared by the bound alone; in 2 the history was a list; for 1 see parts.load_vae
READ = (3, FORMAT)


def encode(content: Mapping[str, Any]) -> bytes:
    """Header (magic, format), SHA-256 of what follows, and what ``torch.save`` makes of the content.

    The content: dictionaries, lists, numbers, strings, None and tensors; CheckpointError for anything else.

    >>> decode(encode({"step": 3, "loc": torch.zeros(2)}), "example")
    {'step': 3, 'loc': tensor([0., 0.])}
    """
    file = io.BytesIO()
    torch.save(dict(content), file)
    payload = file.getbuffer()
    check_payload(file, "the state of this run")
    if len(payload) >= LARGEST - 100:
        raise CheckpointError(f"the state of this run is larger than {LARGEST >> 30} GiB, which is not read back")
    return b"".join([_header(FORMAT), hashlib.sha256(payload).digest(), payload])


def decode(data: bytes, name: object) -> dict[str, Any]:
    """What ``encode`` was given; tensors on the CPU. ``name`` is for messages.

    CheckpointError for whatever is not exactly what ``encode`` made; no code of the data is run.

    >>> decode(encode({"step": 3})[:-1], "example")
    Traceback (most recent call last):
        ...
    pyro_vae.files.CheckpointError: example is damaged: its content does not have the checksum that it names
    """
    start = len(_header(FORMAT)) + hashlib.sha256().digest_size
    if not data.startswith(MAGIC) or len(data) < start:
        raise CheckpointError(f"{name} is no checkpoint: wanted a file that begins with {MAGIC!r}, got {data[:20]!r}")
    written = int.from_bytes(data[len(MAGIC) : len(MAGIC) + 4], "big")
    if written not in READ:
        formats = " and ".join(map(str, READ))
        raise CheckpointError(
            f"{name} has format {written}, this version of pyro_vae reads {formats}; use the one that wrote it"
        )
    payload = memoryview(data)[start:]
    if hashlib.sha256(payload).digest() != data[start - hashlib.sha256().digest_size : start]:
        raise CheckpointError(f"{name} is damaged: its content does not have the checksum that it names")
    return load_tree(io.BytesIO(payload), name)


@dataclass
class Checkpoints:
    """Where ``fit`` saves the run, how often, and whether it goes on with what it finds there.

    Args:
        folder: of ``checkpoint.pt`` and the one before it, ``checkpoint.previous.pt``; ``fit`` makes it.
        seconds: at least so many between two; None: not by time.
        steps: every so many; None: not by steps.
        resume: go on with the newest whole checkpoint in the folder, if there is one; else begin.
        settings: whatever else must not differ between the run that is resumed and this one.
        overwrite: begin anew, and replace the checkpoint of another run in the folder, which ``fit`` else refuses.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Checkpoints(Path(folder)).save({"step": 3})
    ...     Checkpoints(Path(folder), resume=True).load()
    {'step': 3}
    """

    folder: Path
    seconds: float | None = 60.0
    steps: int | None = None
    resume: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    overwrite: bool = False

    def __post_init__(self) -> None:
        self.folder, self._saved_at, self._saved_step = expanded(self.folder), time.monotonic(), 0
        self._newest_is_good = False  # whether it is whole and of this run
        bad_seconds = self.seconds is not None and not (isinstance(self.seconds, Real) and self.seconds >= 0)
        if bad_seconds or (self.steps is not None and not (is_whole(self.steps) and self.steps >= 1)):
            raise ValueError(
                f"checkpoints: wanted seconds of at least 0 and steps of at least 1, got {self.seconds} "
                f"and {self.steps}"
            )

    @property
    def paths(self) -> tuple[Path, Path]:
        """Of the newest checkpoint and of the one before it."""
        return self.folder / "checkpoint.pt", self.folder / "checkpoint.previous.pt"

    def exist(self) -> bool:
        """Whether there is anything to resume."""
        return any(path.is_file() for path in self.paths)

    def check_free(self) -> None:
        """CheckpointError where a run that begins would take the place of another one's checkpoint."""
        if self.exist() and not (self.resume or self.overwrite):
            raise CheckpointError(
                f"{self.folder} holds the checkpoint of a run; go on with it by "
                f"Checkpoints(folder, resume=True), replace it by Checkpoints(folder, overwrite=True)"
                ", or give another folder"
            )

    def due(self, step: int) -> bool:
        """Whether it is time to save, after so many steps in all."""
        late = self.seconds is not None and time.monotonic() - self._saved_at >= self.seconds
        return late or (self.steps is not None and step - self._saved_step >= self.steps)

    def save(self, content: Mapping[str, Any]) -> None:
        """Writes a checkpoint; the last one is kept until this one is whole, and then as the previous one.

        What is damaged, or another run's, is not kept beyond that.
        """
        newest, previous = self.paths
        write_whole(newest, encode(content), keep=previous if self._newest_is_good else None)
        if not self.resume and not self._newest_is_good:
            previous.unlink(missing_ok=True)
        self._newest_is_good = True
        self.note(content.get("step", 0))

    def note(self, step: int) -> None:
        """Remembers that what is on disk is the state after so many steps."""
        self._saved_at, self._saved_step = time.monotonic(), step

    def saved(self, step: int) -> bool:
        """Whether what is on disk is the state after so many steps, at least one."""
        return step == self._saved_step > 0

    def load(self) -> dict[str, Any] | None:
        """The newest whole checkpoint, with a warning where that is not the last one; None where there is none.

        CheckpointError where all that there are are damaged.
        """
        self._newest_is_good, self._saved_step, problems = False, 0, []
        for path in self.paths if self.resume else ():
            if path.is_file():
                try:
                    content = decode(read_bytes(path), path)
                except CheckpointError as error:
                    problems.append(str(error))
                    continue
                self._newest_is_good = not problems
                if problems:
                    warnings.warn(f"{problems[0]}; going on from {path.name}, the one before it", stacklevel=3)
                return content
        if problems:
            raise CheckpointError(f"nothing to resume from: {'; '.join(problems)}; train again from the beginning")
        return None

    def remove(self) -> None:
        """Removes what was saved: the run has ended."""
        for path in self.paths[::-1]:
            path.unlink(missing_ok=True)


def check_same(saved: Any, wanted: Mapping[str, Any]) -> None:
    """ValueError that names the settings in which a checkpoint and this run differ.

    >>> check_same({"seed": 0, "lr": 0.1}, {"seed": 1, "lr": 0.1})
    Traceback (most recent call last):
        ...
    ValueError: the checkpoint is of another run: seed is 0 there and 1 here; ...
    """
    saved = saved if isinstance(saved, dict) else {}
    there = {name: saved.get(name, "absent") for name in (*wanted, *saved)}
    differ = [name for name in there if there[name] != wanted.get(name, "absent")]
    if differ:
        words = ", ".join(f"{name} is {there[name]!r} there and {wanted.get(name, 'absent')!r} here" for name in differ)
        raise ValueError(f"the checkpoint is of another run: {words}; give its settings, or begin anew")


def _header(version: int) -> bytes:
    return MAGIC + version.to_bytes(4, "big")
