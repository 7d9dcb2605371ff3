"""A budget of one program: its options, its methods, what is saved on the way, and its result."""

import hashlib
import io
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from torch import Tensor

from pyro_vae.arguments import ProgramArguments
from pyro_vae.checks import positive_number
from pyro_vae.compiling import owners
from pyro_vae.evidence.budget import Draws, count, planned
from pyro_vae.evidence.budgeted import BudgetedEvidence, EvidenceInterrupted, EvidencePlan
from pyro_vae.evidence.measuring import progress_bar
from pyro_vae.evidence.methods import UNIT, Method
from pyro_vae.evidence.plan import MeasurementPlan, is_automatic
from pyro_vae.evidence.proposals import LocalProposal
from pyro_vae.evidence.results import joined, warn_untrusted
from pyro_vae.files import CheckpointError, expanded, load_tree, read_bytes, write_whole
from pyro_vae.random import deferred_interrupt

SAVED_EVERY = 30.0  # seconds
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
        if particles is not None and found.checkpoint is not None:
            raise ValueError(
                "checkpoint: wanted a budget, got particles; write target=..., which saves what it has, or leave "
                "checkpoint out"
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
    own = int(torch.randint(2**62, ())) if seed is None else seed
    key = identity(budget, plan.given, methods, own, *functions)
    return Spending(budget, methods, plan.given, own, key).run(progress)


@dataclass
class Spending:
    """A measurement by a budget, which can be stopped and resumed.

    Args:
        budget: what may be spent.
        methods: how images are weighed, from the cheapest to the surest.
        given: the arguments of the program.
        seed: of all random numbers.
        identity: what a saved measurement must have been made of.
    """

    budget: Budget
    methods: Sequence[Method]
    given: ProgramArguments
    seed: int
    identity: str
    done: Statistics = field(default_factory=dict)
    plan: EvidencePlan | None = None

    def __post_init__(self) -> None:
        self.draws, self.plan = Draws(self.given, self.seed), self.budget.plan
        self.path = None if self.budget.checkpoint is None else expanded(self.budget.checkpoint)
        if self.plan is not None:
            _check_plan(self.plan, self.methods, self.given.rows or 1)
        if self.path is not None:
            self._load(self.path)

    def run(self, progress: bool) -> BudgetedEvidence:
        """Measure what is not yet done and return the result; warn of images that cannot be trusted."""
        images = self.given.rows or 1
        with self._kept():
            if self.plan is None:
                self.plan = planned(self.methods, self.draws, images, self.budget.target, self.budget.seconds)
                self._save()
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

    @contextmanager
    def _kept(self) -> Iterator[None]:
        """Context manager in which Ctrl-C ends a batch, saves what is done, and raises it as EvidenceInterrupted."""
        with deferred_interrupt() as raise_if_asked:
            self.draws.check = self._after_batch(raise_if_asked)
            try:
                yield
            except KeyboardInterrupt as interrupt:
                self._save()
                advice = f"the same call continues from {self.path}" if self.path else "give checkpoint=... to continue"
                part = self.result() if self.done else None
                raise EvidenceInterrupted(part, sorted(self.done), self.given.rows or 1, advice) from interrupt
        self._save()

    def _after_batch(self, raise_if_asked: Callable[[], None]) -> Callable[[], None]:
        def check() -> None:
            raise_if_asked()
            if time.monotonic() - self._saved > SAVED_EVERY:
                self._save()

        self._saved = time.monotonic()
        return check

    def _save(self) -> None:
        self._saved = time.monotonic()
        if self.path is None or self.plan is None:
            return
        index = sorted(self.done)
        columns = [torch.from_numpy(np.stack([self.done[i] for i in index])[..., 0])] if index else []
        content = {"identity": self.identity, "plan": self.plan.to_tensors(), "images": index, "columns": columns}
        buffer = io.BytesIO()
        torch.save(content, buffer)
        write_whole(self.path, buffer.getvalue())

    def _load(self, path: Path) -> None:
        if not path.exists():
            return
        saved = load_tree(io.BytesIO(read_bytes(path)), path)
        if saved.get("identity") != self.identity:
            raise CheckpointError(
                f"{path} is of another measurement: program, data, seed, options or version differ; give another "
                "checkpoint, or delete it"
            )
        self.plan = EvidencePlan.from_tensors(saved["plan"])
        rows = saved["columns"][0].numpy() if saved["columns"] else ()
        self.done = {i: tuple(row[:, None]) for i, row in zip(saved["images"], rows)}


def identity(budget: Budget, given: ProgramArguments, methods: Sequence[Method], seed: int, *functions: Any) -> str:
    """Return a fingerprint of all that the bits of a measurement depend on: data, parameters, options."""
    options = budget.target, budget.seconds, budget.precision, budget.proposal
    digest = hashlib.sha256(repr((options, seed, torch.__version__, torch.get_num_threads())).encode())
    for method in methods:
        digest.update(f"{method.name} {method.draws} {method.pilots} {method.most} {method.rows}".encode())
    modules = [tensor for owner in owners(*functions) for tensor in owner.state_dict().values()]
    plan = () if budget.plan is None else budget.plan.to_tensors().values()
    store = [value for _, value in sorted(pyro.get_param_store().items())]
    for tensor in (*given.tensors, *plan, *modules, *(() if modules else store)):
        if isinstance(tensor, Tensor):
            digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _check_plan(plan: EvidencePlan, methods: Sequence[Method], images: int) -> None:
    names = tuple(method.name for method in methods)
    if plan.methods != names or len(plan.draws) != images:
        raise ValueError(
            f"plan: wanted one of {images} images by {', '.join(names)}, got one of {len(plan.draws)} images by "
            f"{', '.join(plan.methods)}; measure the images of the plan, or give target= or seconds="
        )
