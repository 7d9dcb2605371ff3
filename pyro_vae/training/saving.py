"""When and where the state of a training is saved, and which saved state may be resumed."""

import json
import platform
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.optim import Optimizer

from pyro_vae.data.mapped import parts
from pyro_vae.data.splits import Split
from pyro_vae.errors import warn
from pyro_vae.files import CheckpointError
from pyro_vae.program import Program
from pyro_vae.structure import difference, structure
from pyro_vae.training import ranks
from pyro_vae.training.checkpoint import ESTIMATOR_SETTINGS, Checkpoints, check_same, encode
from pyro_vae.training.eager import as_module
from pyro_vae.training.history import HistoryFile, TrainingWarning
from pyro_vae.training.state import TrainingState

OPTIMIZER_SETTINGS, OPTIMIZER_FLAGS = "settings of the optimiser", "flags of the optimiser"
STRUCTURE = "structure of the program"  # in JSON
HISTORY = "history.csv"  # in the folder of the checkpoints
LATER = {"keep": "best", "accumulate": 1}  # settings that older checkpoints lack, at the values they had


@dataclass
class Saver:
    """Saves a run when it is due, and when it is asked to end; it does nothing without checkpoints."""

    run: TrainingState
    checkpoints: Checkpoints | None
    settings: dict[str, Any] = field(default_factory=dict)

    def resume(self, settings: Mapping[str, Any], rows: Split, valid: Split, fields: Sequence[str]) -> None:
        """Continue the saved run, if there is one and it is to be resumed.

        Raises ValueError if settings or the ``fields`` of the rows differ, those of the validation rows included, by
        which epochs are compared; more epochs are allowed. Raises CheckpointError if the run cannot be saved, or the
        checkpoint does not fit it.
        """
        if self.checkpoints is None:
            return
        self.checkpoints.check_free()
        self.checkpoints.folder.mkdir(parents=True, exist_ok=True)
        data = {name: _fingerprint(rows.fields[name]) for name in fields}
        data |= {f"{name} of validation": _fingerprint(valid.fields[name]) for name in fields if name in valid.fields}
        self.settings = {**settings, **_kinds(self.run), **data, **self.checkpoints.settings}
        encode({**self.run.state_dict(), "settings": self.settings})  # raises now where it could not be saved later
        saved = self.checkpoints.load()
        if saved is None:
            return
        _check_same_run(saved, self.settings, settings["epochs"] * self.run.epoch_steps, data)
        _warn_of_other_versions(saved)
        try:
            if saved["settings"]["epochs"] == settings["epochs"]:
                self.run.load_state_dict(saved)
            else:
                self.run.extend(saved)
            if self.run.order is not None and not _is_permutation(self.run.order, len(rows)):
                raise ValueError("its order of the images is no permutation")
        except Exception as error:  # of any kind, since the content may be anything
            raise CheckpointError(
                f"{self.checkpoints.folder}: the checkpoint does not fit this run ({error}); begin anew"
            ) from error
        self.checkpoints.note(self.run.step)

    def begin(self) -> None:
        """Begin the file of the history, with the rows of a resumed run."""
        if self.checkpoints:
            self._history_file(self.checkpoints).begin(self.run.history.rows)

    def end_epoch(self) -> None:
        """Add the last row to the file of the history."""
        if self.checkpoints:
            self._history_file(self.checkpoints).append(self.run.history.rows[-1])

    def between_steps(self, raise_if_asked: Callable[..., None]) -> None:
        """Save the run if it is due or asked to end. Raises KeyboardInterrupt in the latter case."""
        try:
            raise_if_asked(ranks.all_reduce_max)  # all ranks stop together: none waits for one that has stopped
        except KeyboardInterrupt:
            self.save()
            raise
        if self.checkpoints and self.checkpoints.due(self.run.step):
            self.save()

    def save(self, anew: bool = False) -> None:
        """Save the run, unless it was saved after its last step; with ``anew``, save it in any case."""
        if self.checkpoints and (anew or not self.checkpoints.saved(self.run.step)):
            self.checkpoints.save({"settings": self.settings, "versions": _versions(), **self.run.state_dict()})

    def _history_file(self, checkpoints: Checkpoints) -> HistoryFile:
        return HistoryFile(checkpoints.folder / HISTORY)


def _check_same_run(saved: Mapping[str, Any], settings: Mapping[str, Any], steps: int, data: Mapping[str, str]) -> None:
    """Raise ValueError if a checkpoint belongs to another run, or has more than ``steps`` steps behind it.

    Older checkpoints say nothing of the fields of ``data`` other than the images, of the settings of estimator and
    optimiser, and of what the program is made of.
    """
    before, ours = saved.get("settings"), dict(settings)
    there = here = ours.pop(STRUCTURE)
    if isinstance(before, dict) and "epochs" in before:
        later = (*data, ESTIMATOR_SETTINGS, OPTIMIZER_SETTINGS, OPTIMIZER_FLAGS)
        unsaid = {name: ours[name] for name in later if name in ours}
        before = {**LATER, **unsaid, **before, "epochs": ours["epochs"]}
        there = before.pop(STRUCTURE, here)
    check_same(before, ours)
    _check_same_parts(there, here)
    done = saved.get("step")
    if isinstance(done, int) and done > steps:
        raise ValueError(
            f"epochs: wanted at least those of the checkpoint, got {settings['epochs']}, "
            f"which are {steps} steps, and it is at step {done}; give more epochs, or begin anew in "
            "another folder"
        )


def _check_same_parts(saved: str, here: str) -> None:
    other = None if saved == here else difference(json.loads(saved), json.loads(here))
    if other:
        raise ValueError(
            f"the checkpoint is of another program than this one: {other}; build it as it was, or begin anew in "
            "another folder"
        )


def _warn_of_other_versions(saved: Mapping[str, Any]) -> None:
    if saved.get("versions") != _versions():
        warn(
            f"the checkpoint was written under {saved.get('versions')} and is resumed under "
            f"{_versions()}: the same bits are not promised",
            TrainingWarning,
        )


def _is_permutation(order: Tensor, count: int) -> bool:
    return torch.equal(order.sort().values, torch.arange(count, device=order.device))


def _kinds(run: TrainingState) -> dict[str, Any]:
    """Return the non-numeric settings that must match on resume."""
    return {
        "program": _names_and_shapes(run.program),
        STRUCTURE: json.dumps(structure(as_module(run.program))),
        "optimizer": type(run.optimizer).__name__,
        OPTIMIZER_SETTINGS: _numbers(run.optimizer),
        OPTIMIZER_FLAGS: _flags(run.optimizer),
        "schedule": type(run.scheduler).__name__,
        "device": run.device.type,
        "processes": ranks.world_size(),
    }


def _numbers(optimizer: Optimizer) -> str:
    """Return the numbers that an optimiser was made with, as words, once for all groups of parameters that have them.

    >>> _numbers(torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1))
    'lr=0.1, momentum=0, dampening=0, weight_decay=0'
    """
    groups = [{**group, "lr": group.get("initial_lr", group.get("lr"))} for group in optimizer.param_groups]
    words = [", ".join(f"{name}={value}" for name, value in group.items() if _counts(name, value)) for group in groups]
    return "; ".join(dict.fromkeys(words))


def _flags(optimizer: Optimizer) -> str:
    """Return the flags that are set in an optimiser, as words, once for all groups of parameters that have them.

    >>> _flags(torch.optim.SGD([torch.zeros(1, requires_grad=True)], momentum=0.9, nesterov=True))
    'nesterov'
    """
    words = [", ".join(n for n, value in group.items() if value is True) or "none" for group in optimizer.param_groups]
    return "; ".join(dict.fromkeys(words))


def _counts(name: str, value: Any) -> bool:
    """Return whether an entry of an optimiser is a number, or several, and not one that a schedule notes."""
    values = value if isinstance(value, tuple) else (value,)
    numbers = all(isinstance(number, int | float) and not isinstance(number, bool) for number in values)
    return numbers and name != "initial_lr"


def _names_and_shapes(program: Program) -> str:
    shapes = {name: list(value.shape) for name, value in program.state_dict().items()}
    return f"{len(shapes)} tensors, checksum of names and shapes {zlib.crc32(repr(shapes).encode())}"


def _fingerprint(rows: Tensor) -> str:
    checksum = 0
    for part in parts(rows):
        checksum = zlib.crc32(part.cpu().contiguous().numpy().data, checksum)
    return f"{len(rows)} {'images' if rows.dim() == 4 else 'rows'}, checksum {checksum}"


def _versions() -> dict[str, Any]:
    """Return what, besides its settings, determines the bits of a training on a CPU."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "pyro": pyro.__version__,
        "threads": torch.get_num_threads(),
    }
