"""All that changes in the course of a training, and the way in and out of a checkpoint."""

import warnings
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from pyro_vae.errors import warn
from pyro_vae.program import Program
from pyro_vae.random import random_state, set_random_state
from pyro_vae.training.held import held_parameters
from pyro_vae.training.history import ROW, History, TrainingWarning, history_row
from pyro_vae.training.selection import Weights, alike

SCHEDULED = ("lr", "momentum", "betas")  # settings of an optimiser that torch's schedulers change


@dataclass
class TrainingState:
    """All that changes in the course of a training: the content of a checkpoint.

    Args:
        program: the program that is trained.
        optimizer: its optimiser.
        scheduler: the schedule of the optimiser, if any.
        epoch_steps: the number of steps in an epoch.
        taken: the number of steps taken in the present epoch.
        order: the indices of the images of the present epoch; None before it begins.
        seconds: the time spent in training steps.
        history: the epochs that have ended.
        best: the parameters of the epoch to be kept.
        weights: the weights of the sites by which the epochs to be compared were trained; None before the first step.
        changed: whether the weights changed in the last epoch.
        compiles: whether ``engine="auto"`` compiles its steps; None before it decided, or with another engine.
        unread: batch and random numbers of the steps whose losses have not been read yet.
    """

    program: Program
    optimizer: torch.optim.Optimizer
    scheduler: LRScheduler | None
    epoch_steps: int
    taken: int = 0
    order: Tensor | None = None
    seconds: float = 0.0
    history: History = field(default_factory=History)
    best: dict[str, Tensor] = field(default_factory=dict)
    weights: Weights | None = None
    changed: bool = False
    compiles: bool | None = None
    unread: list[tuple[Tensor, dict[str, Any]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.best = self.parameters()
        self.device = next(self.program.parameters()).device

    @property
    def step(self) -> int:
        """The number of steps taken in all."""
        return len(self.history.rows) * self.epoch_steps + self.taken

    @property
    def epoch(self) -> int:
        """The number of the present epoch, from 1."""
        return len(self.history.rows) + 1

    @property
    def scheduler_of_steps(self) -> LRScheduler | None:
        """The scheduler, if it is one that is stepped after each step."""
        return None if isinstance(self.scheduler, ReduceLROnPlateau) else self.scheduler

    def parameters(self) -> dict[str, Tensor]:
        """Return a copy of the program's parameters and buffers, as they are now."""
        with torch.inference_mode(False):
            return deepcopy(self.program.state_dict())

    def put(self, parameters: Mapping[str, Tensor]) -> None:
        """Set the program's parameters and buffers."""
        with torch.inference_mode(False):
            self.program.load_state_dict(parameters)

    def end_epoch(self, summaries: Mapping[str, Mapping[str, float]], weights: Weights, images: int) -> None:
        """Add a row to the history, keep the parameters if they are the best, and step a scheduler of epochs."""
        epoch = self.epoch
        self.history.rows.append(history_row(epoch, summaries, self.seconds, images))
        self.taken, self.order, self.changed = 0, None, not alike(self.weights or {}, weights)
        if self.changed:
            self.weights, self.history.comparable_from = weights, epoch
        if self.history.kept_epoch == epoch:
            self.best = self.parameters()
        if isinstance(self.scheduler, ReduceLROnPlateau) and not self.changed:
            objective = summaries["valid"]["objective"]
            self.scheduler.step(objective if self.scheduler.mode == "max" else -objective)

    def state_dict(self) -> dict[str, Any]:
        """Return tensors, numbers and lists from which ``load_state_dict`` continues bit for bit."""
        return {
            "step": self.step,
            "taken": self.taken,
            "order": self.order,
            "program": dict(self.program.state_dict()),
            "frozen": [name for name, parameter in self._held().items() if not parameter.requires_grad],
            "buffers": self._unsaved_buffers(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict() if self.scheduler else None,
            "best": dict(self.best),
            "weights": self.weights,
            "compiles": self.compiles,
            "history": {
                "rows": torch.tensor(
                    [[row[name] for name in ROW] for row in self.history.rows], dtype=torch.float64, device="cpu"
                ).reshape(-1, len(ROW)),
                "skipped": self.history.skipped,
                "engine": self.history.engine,
                "comparable_from": self.history.comparable_from,
            },
            "seconds": self.seconds,
            "random": random_state(self.device),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict()``, also of an earlier version. Raises ValueError for an impossible state."""
        self.program.load_state_dict(state["best"])
        self.best = self.parameters()
        self.program.load_state_dict(state["program"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler:
            self.scheduler.load_state_dict(state["scheduler"])
        self._load_flags_and_buffers(state)
        self.taken, self.seconds = int(state["taken"]), float(state["seconds"])
        rows = [dict(zip(ROW, row)) for row in state["history"]["rows"].tolist()]
        # Before format 4 there were neither weights nor an objective other than the bound.
        rows = [{"valid_objective": row["valid_bound"], **row, "epoch": int(row["epoch"])} for row in rows]
        self.weights = state.get("weights")
        compiles = state.get("compiles")  # earlier versions decided anew
        self.compiles = None if compiles is None else bool(compiles)
        same = {"keep": self.history.keep, "objective": self.history.objective}
        self.history = History(**{**state["history"], **same, "rows": rows})
        self.order = None if state["order"] is None else state["order"].to(self.device)
        if not 0 <= self.taken <= self.epoch_steps or (self.taken and self.order is None):
            raise ValueError(f"{self.taken} steps taken of an epoch's {self.epoch_steps}")
        set_random_state(state["random"], self.device)

    def extend(self, state: Mapping[str, Any]) -> None:
        """Continue from the state of a run with another number of epochs, with the schedule for the new number.

        Warns if this changes the learning rate.
        """
        state = {**state, "compiles": state.get("compiles") or None}  # more steps may earn it back
        scheduler = self.scheduler_of_steps
        if scheduler is None:  # nothing else depends on the number of epochs
            self.load_state_dict(state)
            return
        scheduled = self._fast_forwarded(scheduler, int(state["step"]))
        self.scheduler = None  # so that the saved schedule is not loaded
        self.load_state_dict(state)
        self.scheduler, before = scheduler, [group["lr"] for group in self.optimizer.param_groups]
        for group, settings in zip(self.optimizer.param_groups, scheduled):
            group.update(settings)
        if before != [settings["lr"] for settings in scheduled]:
            warn(
                f"the schedule is now that of the new number of epochs: the optimiser's step goes on at "
                f"{scheduled[0]['lr']:g}, where the run of {state['settings']['epochs']} epochs was at "
                f"{before[0]:g}, so that the result is not that of one training of this length",
                TrainingWarning,
            )

    def _fast_forwarded(self, scheduler: LRScheduler, steps: int) -> list[dict[str, Any]]:
        """Step a schedule alone, and return the settings that the optimiser then has, group by group."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
            for _ in range(steps):
                scheduler.step()
        return [{name: group[name] for name in SCHEDULED if name in group} for group in self.optimizer.param_groups]

    def _held(self) -> dict[str, torch.nn.Parameter]:
        return held_parameters(self.program, self.optimizer)

    def _unsaved_buffers(self) -> dict[str, Tensor]:
        """Return the buffers that the program's state dict leaves out, such as a KL weight."""
        saved = self.program.state_dict().keys()
        buffers = ((name, buffer) for name, buffer in self.program.named_buffers() if name not in saved)
        return {name: buffer.detach() for name, buffer in buffers if buffer.layout is torch.strided}

    @torch.no_grad()
    def _load_flags_and_buffers(self, state: Mapping[str, Any]) -> None:
        """Restore frozen parameters and buffers outside of the state dict, which earlier versions did not save."""
        for name, parameter in self._held().items() if "frozen" in state else ():
            parameter.requires_grad_(name not in state["frozen"])
        for name, buffer in self._unsaved_buffers().items():
            value = state.get("buffers", {}).get(name)
            if value is not None and value.shape == buffer.shape:
                buffer.copy_(value)
