"""Simulated cells: counts of genes, the lab that each cell was measured in, and all that the counts were made from."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_vae.data import Data, Split
from pyro_vae.random import seeded

LABS = 2
TYPES = 6
STATES = 2  # continuous dimensions within a type
CHUNK = 500  # cells that are drawn at once
MEDIAN_SIZE = 2000.0  # counts in a cell
DEPTH = (1.0, 2.0)  # of each lab: its factor on the counts in a cell


@dataclass(frozen=True)
class World:
    """What all cells share: ln of the genes' proportions, effects of types, states and labs, ln θ of each gene.

    ``shares`` (labs, types): how many of a lab's cells are of a type.
    """

    base: Tensor
    types: Tensor
    states: Tensor
    labs: Tensor
    log_dispersion: Tensor
    shares: Tensor

    @classmethod
    def drawn(cls, genes: int, seed: int) -> "World":
        """Return a world by a seed; a type differs from the others in a fifth of the genes, the labs in all of them."""
        with seeded(seed):
            return cls(
                base=torch.randn(genes),
                types=torch.randn(TYPES, genes) * (torch.rand(TYPES, genes) < 0.2),
                states=0.3 * torch.randn(STATES, genes),
                labs=0.5 * torch.randn(LABS, genes),
                log_dispersion=1.0 + 0.7 * torch.randn(genes),
                shares=torch.randn(LABS, TYPES).softmax(-1),
            )

    def cells(self, count: int, seed: int) -> Split:
        """Draw cells: ``counts`` int16 (N, genes), ``lab``, ``labels`` (types), ``state`` and ``log_px``.

        ``log_px`` is log p(x | all that x was made from), in nats per cell.
        """
        with seeded(seed):
            lab = torch.randint(LABS, (count,))
            labels = torch.multinomial(self.shares[lab], 1).flatten()
            state = torch.randn(count, STATES)
            size = MEDIAN_SIZE * torch.tensor(DEPTH)[lab] * (0.4 * torch.randn(count)).exp()
            counts, log_px = torch.empty(count, len(self.base), dtype=torch.int16), torch.empty(count)
            for rows in torch.arange(count).split(CHUNK):
                log_share = self.base + self.types[labels[rows]] + state[rows] @ self.states + self.labs[lab[rows]]
                p = self.family(size[rows, None] * log_share.softmax(-1))
                x = p.sample()
                counts[rows], log_px[rows] = x.to(torch.int16), p.log_prob(x).sum(-1).float()
        return Split(counts=counts, lab=lab, labels=labels, state=state, log_px=log_px)

    def family(self, mean: Tensor) -> torch.distributions.NegativeBinomial:
        """Return NB(mean, θ) for means (N, genes), in float64."""
        log_dispersion = self.log_dispersion.double()
        return torch.distributions.NegativeBinomial(log_dispersion.exp(), logits=mean.double().log() - log_dispersion)


def simulated(train: int, held_out: int, genes: int, seed: int) -> tuple[Data, World]:
    """Return so many cells for training, and for validation and test each."""
    world = World.drawn(genes, seed)
    sizes = (train, held_out, held_out)
    first, *held = (world.cells(size, 10 * seed + number) for number, size in enumerate(sizes, 1))
    return Data("simulated cells", first, held[0], held[1], classes=tuple(f"type {k}" for k in range(TYPES))), world
