"""Checkpoint files: written whole or not at all, with a checksum, and read without running any code."""

import hashlib
import io
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any

import torch

from pyro_vae.checks import is_whole
from pyro_vae.errors import warn
from pyro_vae.files import LARGEST, CheckpointError, check_payload, expanded, load_tree, read_bytes, write_whole
from pyro_vae.printing import differences
from pyro_vae.training.history import TrainingWarning

MAGIC = b"pyro_vae checkpoint\n"
FORMAT = 4  # in 3 epochs were compared by the bound alone; in 2 the history was a list; for 1 see saved.load_vae
READ = (3, FORMAT)
ESTIMATOR_SETTINGS = "settings of the estimator"  # in settings; older checkpoints say nothing of them


def encode(content: Mapping[str, Any]) -> bytes:
    """Return a header (magic, format), a SHA-256 checksum, and the content as ``torch.save`` writes it.

    The content consists of dictionaries, lists, numbers, strings, None and tensors. Raises CheckpointError for anything
    else.

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
    """Return the content that ``encode`` was given, with tensors on the CPU. ``name`` is for messages.

    Raises CheckpointError for data that ``encode`` has not made; no code in the data is run.

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
    """Where and how often a training is saved, and whether it is resumed from there.

    Args:
        folder: holds ``checkpoint.pt``, the one before it, ``checkpoint.previous.pt``, and ``history.csv``; it is made
            where it is missing.
        seconds: the least time between two checkpoints; None: not by time.
        steps: the number of steps between two checkpoints; None: not by steps.
        resume: continue from the newest whole checkpoint in the folder, if there is one.
        settings: further settings that must match on resume.
        overwrite: begin anew, and replace another run's checkpoint in the folder; otherwise that is an error.

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
        """The paths of the newest checkpoint and of the one before it."""
        return self.folder / "checkpoint.pt", self.folder / "checkpoint.previous.pt"

    def exist(self) -> bool:
        """Return whether there is anything to resume."""
        return any(path.is_file() for path in self.paths)

    def check_free(self) -> None:
        """Raise CheckpointError where a run that begins would replace the checkpoint of another run."""
        if self.exist() and not (self.resume or self.overwrite):
            raise CheckpointError(
                f"{self.folder} holds the checkpoint of a run; go on with it by "
                f"Checkpoints(folder, resume=True), replace it by Checkpoints(folder, overwrite=True)"
                ", or give another folder"
            )

    def due(self, step: int) -> bool:
        """Return whether it is time to save, after this number of steps in all."""
        late = self.seconds is not None and time.monotonic() - self._saved_at >= self.seconds
        return late or (self.steps is not None and step - self._saved_step >= self.steps)

    def save(self, content: Mapping[str, Any]) -> None:
        """Write a checkpoint; the one before it becomes the previous checkpoint once this one is whole.

        It does not if it is damaged or belongs to another run.
        """
        newest, previous = self.paths
        write_whole(newest, encode(content), keep=previous if self._newest_is_good else None)
        if not self.resume and not self._newest_is_good:
            previous.unlink(missing_ok=True)
        self._newest_is_good = True
        self.note(content.get("step", 0))

    def note(self, step: int) -> None:
        """Note that the state after this number of steps is on disk."""
        self._saved_at, self._saved_step = time.monotonic(), step

    def saved(self, step: int) -> bool:
        """Return whether the state after this number of steps, at least one, is on disk."""
        return step == self._saved_step > 0

    def load(self) -> dict[str, Any] | None:
        """Return the newest whole checkpoint, or None where there is none.

        Warns if a newer one is damaged. Raises CheckpointError if all are damaged.
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
                    message = f"{problems[0]}; going on from {path.name}, the one before it"
                    warn(message, TrainingWarning)
                return content
        if problems:
            raise CheckpointError(f"nothing to resume from: {'; '.join(problems)}; train again from the beginning")
        return None

    def remove(self) -> None:
        """Remove the checkpoints of a run that has ended."""
        for path in self.paths[::-1]:
            path.unlink(missing_ok=True)


def check_same(saved: Any, wanted: Mapping[str, Any]) -> None:
    """Raise ValueError if settings of a checkpoint and of this run differ, and name them.

    >>> check_same({"seed": 0, "lr": 0.1}, {"seed": 1, "lr": 0.1})
    Traceback (most recent call last):
        ...
    ValueError: the checkpoint is of another run: seed is 0 there and 1 here; ...
    """
    saved = saved if isinstance(saved, dict) else {}
    there = {name: saved.get(name, "absent") for name in (*wanted, *saved)}
    words = differences(there, wanted)
    if words:
        raise ValueError(f"the checkpoint is of another run: {words}; give its settings, or begin anew")


def _header(version: int) -> bytes:
    return MAGIC + version.to_bytes(4, "big")
