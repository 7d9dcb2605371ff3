"""What a budgeted measurement returns: who is measured how, and how it was settled."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from pyro_vae.evidence.results import NORMAL_975, TRUSTED, Evidence
from pyro_vae.showing import Shown


@dataclass(frozen=True)
class EvidencePlan:
    """How each image is measured; ``log_evidence(..., plan=plan)`` measures by it, with the same bits.

    Attributes:
        methods: names of methods.
        method: the number of each image's method among them, (images,).
        draws: the number of weights of each image, (images,).
        trusted: whether the pilot draws say that value and error will be right, (images,).
        target: the wanted standard error of each image, in nats.

    >>> import torch
    >>> plan = EvidencePlan(("importance",), torch.tensor([0]), torch.tensor([500]), torch.tensor([True]), 0.05)
    >>> EvidencePlan.from_tensors(plan.to_tensors()).draws
    tensor([500])
    """

    methods: tuple[str, ...]
    method: Tensor
    draws: Tensor
    trusted: Tensor
    target: float

    def to_tensors(self) -> dict[str, Any]:
        """Return the plan as a dictionary for ``torch.save``, which ``from_tensors`` takes."""
        return vars(self) | {"methods": [*self.methods]}

    @classmethod
    def from_tensors(cls, values: Mapping[str, Any]) -> "EvidencePlan":
        """Return the plan of a dictionary that ``to_tensors`` gave."""
        return cls(**{**values, "methods": tuple(values["methods"])})

    def of(self, images: Sequence[int]) -> "EvidencePlan":
        """Return the plan of some of the images."""
        return replace(self, **{name: getattr(self, name)[[*images]] for name in ("method", "draws", "trusted")})


@dataclass(frozen=True, kw_only=True, repr=False)
class BudgetedEvidence(Evidence):
    """``Evidence`` for which each image got its own method and number of draws.

    ``num_particles`` is the largest number of weights of an image; ``plan.draws`` has that of each.

    Attributes:
        plan: the method, the number of draws and the pilots' verdict of each image.
        pilots: the number of weights by each method that decided, and count for nothing.
        seconds: spent by each method on pilots and on draws that count.
    """

    ADVICE: ClassVar[str] = (
        "a better guide (refit_guide) cures it, or annealed_evidence with more temperatures; as it stands, their "
        "log p(x) is a lower bound in expectation"
    )
    DOUBT: ClassVar[str] = "weights that may have a heavy tail"
    COLUMNS: ClassVar[tuple[str, ...]] = (*Evidence.COLUMNS, "draws", "trusted")

    plan: EvidencePlan
    pilots: Mapping[str, int] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def method(self) -> tuple[str, ...]:
        """The name of the method that settled each image."""
        return tuple(self.plan.methods[i] for i in self.plan.method.tolist())

    @property
    def draws(self) -> Tensor:
        """The number of weights of each image that count, (images,)."""
        return self.plan.draws

    @property
    def trusted(self) -> Tensor:
        """Whether value and error of each image can be trusted, (images,).

        The pilot draws decide, since a sample that missed the large weights looks better than it is; k̂ of the draws
        that count must be at most 0.7 as well.
        """
        return self.plan.trusted & ~(self.pareto_k > TRUSTED)

    def _quantile(self) -> np.ndarray:
        """Return 1.96: other draws decided, and so many count that log p̂ is about normal."""
        return np.full(len(self.log_px), NORMAL_975)

    @property
    def untrusted(self) -> float:
        """Share of the images that are not ``trusted``."""
        return 1 - self.trusted.double().mean().item()

    @property
    def reached(self) -> float:
        """Share of the images that are trusted and have a standard error of at most 1.2 times the target."""
        return (self.trusted & (self.standard_error <= 1.2 * self.plan.target)).double().mean().item()

    def to_dict(self) -> dict[str, Any]:
        """Return the summary of ``Evidence``, with target, methods, draws and seconds."""
        settled = {name: self.method.count(name) for name in self.plan.methods}
        return super().to_dict() | {
            "target": self.plan.target,
            "share_pareto_k_above_0.7": (self.pareto_k > TRUSTED).double().mean().item(),
            "share_reached": self.reached,
            "draws": int(self.draws.sum()),
            "settled_by": settled,
            "pilots": dict(self.pilots),
            "seconds": dict(self.seconds),
        }

    def _shown(self) -> Shown:
        """Return what ``print`` and notebooks show."""
        shown, counts = super()._shown(), {name: self.method.count(name) for name in self.plan.methods}
        settled = ", ".join(f"{name} {count}" for name, count in counts.items() if count)
        draws = f"{self.draws.min()} to {self.draws.max()}, {self.draws.double().mean():.0f} on average"
        reached = f"{self.plan.target:.3g} nats, reached by {self.reached:.1%} of the images"
        doubt = f"{self.untrusted:.1%} of the images cannot be trusted: {self.ADVICE}"
        title = f"log p(x) ≥ {self._value(3)} nats per image (n = {len(self.log_px)}, seed {self.seed})"
        rows = (*shown.rows, ("wanted standard error", reached), ("settled by", settled), ("weights that count", draws))
        return replace(shown, title=title, rows=rows, notes=[doubt] if self.untrusted > 0 else [])


class EvidenceInterrupted(KeyboardInterrupt):
    """Ctrl-C stopped a measurement, after a whole batch.

    Attributes:
        evidence: of the images that were done; None if there were none.
        images: their numbers.
    """

    def __init__(self, evidence: Evidence | None, images: Sequence[int], number: int, advice: str):
        super().__init__(f"stopped after {len(images)} of {number} images; {advice}")
        self.evidence, self.images = evidence, images
