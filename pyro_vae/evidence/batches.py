"""A given number of weights of each row, batch by batch: it can be stopped and resumed."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pyro_vae.arguments import ProgramArguments
from pyro_vae.evidence.budget import seed_of
from pyro_vae.evidence.budgeted import EvidenceInterrupted
from pyro_vae.evidence.measuring import progress_bar
from pyro_vae.evidence.plan import MeasurementPlan
from pyro_vae.evidence.results import Evidence, as_array, weight_statistics
from pyro_vae.evidence.saving import SavedMeasurement
from pyro_vae.random import seeded


@dataclass
class BatchedMeasurement:
    """K weights of each row. Each batch has random numbers of its own, so that it has the same bits in a resumed run.

    Args:
        sampler: draws log weights (K, B) of a batch.
        plan: how the program is measured.
        particles: K.
        seed: of all random numbers; ``given`` is what the user gave.

    Attributes:
        done: the statistics of each batch that is measured, in order: log p̂, its error, ESS and k̂, (4, B).
    """

    sampler: Callable[[ProgramArguments, int, tqdm], Tensor]
    plan: MeasurementPlan
    particles: int
    seed: int
    given: int | None
    done: list[Tensor] = field(default_factory=list)

    def run(self, saved: SavedMeasurement, progress: bool) -> Evidence:
        """Measure what is not yet done, and return the result."""
        self.done, total = list((saved.load() or {}).get("done", ())), self.plan.weights * self.particles
        saved.content = lambda: {"done": self.done}
        with saved.kept(self._stopped) as between_batches, progress_bar(total, "particle", progress) as bar:
            bar.update(self.rows * self.particles)
            for number, batch in enumerate(self.plan.batches()):
                if number >= len(self.done):
                    between_batches()
                    self.done.append(self._measured(batch, bar))
                    if not bar.disable:
                        bar.set_postfix_str(f"{torch.cat(self.done, 1)[0].mean():.2f} nats", refresh=False)
        return self.result()

    @property
    def rows(self) -> int:
        """The number of rows that are measured."""
        return sum(values.shape[1] for values in self.done)

    def result(self) -> Evidence:
        """Return the rows that are measured."""
        log_px, error, ess, k_hat = (column.clone() for column in torch.cat(self.done, 1))
        return Evidence(log_px, error, ess, k_hat, self.particles, self.given, self.plan.joint)

    def _measured(self, batch: ProgramArguments, bar: tqdm) -> Tensor:
        with numbers_of_batch(self.seed, len(self.done), self.plan.given.device):
            log_w = as_array(self.sampler(batch, self.particles, bar))
        return torch.from_dlpack(np.stack(weight_statistics(log_w, first=self.rows)))

    def _stopped(self, advice: str) -> EvidenceInterrupted:
        part = self.result() if self.done else None
        return EvidenceInterrupted(part, range(self.rows), self.plan.weights, advice)


def numbers_of_batch(seed: int, number: int, device: torch.device) -> AbstractContextManager[None]:
    """Return a context manager in which random numbers are those of the batch with this number."""
    return seeded(seed_of(seed, f"batch {number}"), device)
