"""A budget of one program: its options, its methods, what is saved on the way, and its result."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from pyro_vae.arguments import ProgramArguments
from pyro_vae.checks import positive_number
from pyro_vae.evidence.budget import Draws, count, planned
from pyro_vae.evidence.budgeted import BudgetedEvidence, EvidenceInterrupted, EvidencePlan
from pyro_vae.evidence.measuring import progress_bar
from pyro_vae.evidence.methods import UNIT, Method
from pyro_vae.evidence.plan import MeasurementPlan, is_automatic
from pyro_vae.evidence.proposals import LocalProposal
from pyro_vae.evidence.results import joined, warn_untrusted
from pyro_vae.evidence.saving import SavedMeasurement, check_resumable, identity, own_seed

Statistics = dict[int, tuple[np.ndarray, ...]]  # of each image that is done


class Budget(NamedTuple):
    """What may be spent: a standard error for each image, seconds, or a plan; where it is saved; how rows weigh."""

    target: float | None = None
    seconds: float | None = None
    plan: EvidencePlan | None = None
    checkpoint: Path | str | None = None
    precision: torch.dtype | None = None
    proposal: LocalProposal | None = None

    @classmethod
    def of(cls, particles: int | None, **options: Any) -> "Budget | None":
        """Return the budget among options; None if ``particles`` are given. Raises ValueError for both or neither.

        >>> Budget.of(None, target=0.1).target
        0.1
        """
        found = cls(**options)
        given = [name for name in ("target", "seconds", "plan") if getattr(found, name) is not None]
        if (particles is None) != bool(given) or ("plan" in given and len(given) > 1):
            got = ", ".join([*(["particles"] if particles is not None else []), *given]) or "none"
            raise ValueError(
                f"particles: wanted either particles, or target and seconds or one of them, or a plan, got {got}; "
                "write e.g. log_evidence(program, x, 1000) or log_evidence(program, x, target=0.1)"
            )
        for name in ("target", "seconds"):
            if getattr(found, name) is not None:
                positive_number(name, getattr(found, name))
        return found if given else None


def rows_of_budget(given: ProgramArguments, chunk: int) -> int:
    """Return how many rows run at once: as many as make 25 slices, and fewer than all, to see that they can."""
    return max(1, min(25 * chunk // UNIT, 250, ((given.rows or 1) + 1) // 2))


def spend(
    budget: Budget,
    methods: Sequence[Method],
    plan: MeasurementPlan,
    seed: int | None,
    progress: bool,
    *functions: Callable,
) -> BudgetedEvidence:
    """Measure the rows of a program by a budget. Raises ValueError if they cannot be measured apart."""
    rows = plan.given.rows or 1
    if plan.joint or plan.size >= rows > 1 or is_automatic(functions[1]):
        raise ValueError(
            "target, seconds, plan: wanted a program whose rows can be measured apart, got one that needs all of them "
            "at once; give the number of draws, as in log_evidence(program, x, 1000)"
        )
    check_resumable(budget.checkpoint, seed)
    own = own_seed(seed)
    tensors = () if budget.plan is None else tuple(budget.plan.to_tensors().values())
    key = identity(options_of(budget, methods), plan.given, own, *functions, tensors=tensors)
    return Spending(budget, methods, plan.given, own, SavedMeasurement(budget.checkpoint, key)).run(progress)


@dataclass
class Spending:
    """A measurement by a budget, which can be stopped and resumed.

    Args:
        budget: what may be spent.
        methods: how images are weighed, from the cheapest to the surest.
        given: the arguments of the program.
        seed: of all random numbers.
        saved: its file.
    """

    budget: Budget
    methods: Sequence[Method]
    given: ProgramArguments
    seed: int
    saved: SavedMeasurement
    done: Statistics = field(default_factory=dict)
    plan: EvidencePlan | None = None

    def __post_init__(self) -> None:
        self.draws, self.plan = Draws(self.given, self.seed), self.budget.plan
        self.saved.content = self._content
        if self.plan is not None:
            _check_plan(self.plan, self.methods, self.given.rows or 1)
        self._load()

    def run(self, progress: bool) -> BudgetedEvidence:
        """Measure what is not yet done and return the result; warn of images that cannot be trusted."""
        images = self.given.rows or 1
        with self.saved.kept(self._stopped) as self.draws.check:
            if self.plan is None:
                self.plan = planned(self.methods, self.draws, images, self.budget.target, self.budget.seconds)
                self.saved.save()
            with progress_bar(int(self.plan.draws.sum()), "weight", progress) as bar:
                count(self.methods, self.draws, self.plan, bar, self.done)
        result = self.result()
        warn_untrusted(result)
        return result

    def result(self) -> BudgetedEvidence:
        """Return the images that are done, in order."""
        assert self.plan is not None
        index = sorted(self.done)
        log_px, error, ess, k_hat = joined([self.done[i] for i in index])
        plan, weights = self.plan.of(index), self.draws.weights
        pilots = {name: n for (purpose, name), n in weights.items() if purpose == "pilot"}
        seconds = {name: sum(batches) for name, batches in self.draws.seconds.items()}
        most = int(plan.draws.max())
        return BudgetedEvidence(log_px, error, ess, k_hat, most, self.seed, plan=plan, pilots=pilots, seconds=seconds)

    def _content(self) -> dict[str, Any] | None:
        if self.plan is None:
            return None
        index = sorted(self.done)
        columns = [torch.from_numpy(np.stack([self.done[i] for i in index])[..., 0])] if index else []
        return {"plan": self.plan.to_tensors(), "images": index, "columns": columns}

    def _load(self) -> None:
        saved = self.saved.load()
        if saved is not None:
            self.plan = EvidencePlan.from_tensors(saved["plan"])
            rows = saved["columns"][0].numpy() if saved["columns"] else ()
            self.done = {i: tuple(row[:, None]) for i, row in zip(saved["images"], rows)}

    def _stopped(self, advice: str) -> EvidenceInterrupted:
        part = self.result() if self.done else None
        return EvidenceInterrupted(part, sorted(self.done), self.given.rows or 1, advice)


def options_of(budget: Budget, methods: Sequence[Method]) -> tuple:
    """Return what the bits of a budgeted measurement depend on beside data, parameters and plan."""
    by = [(method.name, method.draws, method.pilots, method.most, method.rows) for method in methods]
    return budget.target, budget.seconds, budget.precision, budget.proposal, by


def _check_plan(plan: EvidencePlan, methods: Sequence[Method], images: int) -> None:
    names = tuple(method.name for method in methods)
    if plan.methods != names or len(plan.draws) != images:
        raise ValueError(
            f"plan: wanted one of {images} images by {', '.join(names)}, got one of {len(plan.draws)} images by "
            f"{', '.join(plan.methods)}; measure the images of the plan, or give target= or seconds="
        )
