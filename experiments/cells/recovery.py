"""How much of what simulated cells were made from is found again: types, mixing of the labs, their effect, θ."""

from typing import Any

import torch
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from experiments.cells.program import CountProgram, beside
from experiments.cells.simulation import World
from pyro_vae import analysis
from pyro_vae.data import Data, Split
from pyro_vae.training import evaluate, fixed_x

NEIGHBOURS = 30
BATCH = 500
SEEN = 1.0  # mean count from which on the dispersion of a gene is compared


def of_codes(train: Tensor, test: Tensor, cells: Data) -> dict[str, float]:
    """Return the accuracy of the types by nearest neighbours of codes (N, D), and the mixing of the labs."""
    labels = cells.train.labels[: len(train)], cells.test.labels[: len(test)]
    return {
        "type_accuracy": analysis.knn_accuracy(train, labels[0], test, labels[1]),
        "mixing": mixing(test, cells.test),
    }


def mixing(codes: Tensor, cells: Split) -> float:
    """Return the share of another lab among each cell's neighbours over that among the other cells of its type.

    It is 1 where the labs are mixed within each type, and 0 where no neighbour comes from another lab.
    """
    nearest = NearestNeighbors(n_neighbors=NEIGHBOURS + 1).fit(codes.numpy()).kneighbors(codes.numpy())[1][:, 1:]
    other = (cells.lab[torch.from_numpy(nearest)] != cells.lab[:, None]).double().mean(1)
    same_type = cells.labels[:, None] == cells.labels
    other_lab = cells.lab[:, None] != cells.lab
    expected = (same_type & other_lab).sum(1) / (same_type.sum(1) - 1)
    return (other.mean() / expected.double().mean()).item()


@torch.no_grad()
def of_program(program: CountProgram, cells: Data, world: World) -> dict[str, Any]:
    """Return what a trained program has found, and its bound in nats per cell."""
    args = fixed_x(program, cells.test)
    posterior = {"train": codes(program, cells.train[: 2 * len(cells.test)]), "test": codes(program, cells.test)}
    return {
        "test": evaluate(program, args, particles=10).summary(),
        "log_px_given_the_truth": cells.test.log_px.mean().item(),
        **of_codes(posterior["train"], posterior["test"], cells),
        "dispersion": dispersion(program, cells.train, world),
        **({"lab_effect": lab_effect(program, posterior["test"], world)} if program.labs else {}),
    }


@torch.no_grad()
def codes(program: CountProgram, cells: Split) -> Tensor:
    """Return the means of q(z | x), (N, D)."""
    parts = (fixed_x(program, cells[start : start + BATCH]) for start in range(0, len(cells), BATCH))
    return torch.cat([program.posterior(beside(x, lab)).mean for x, lab, _ in parts])


def dispersion(program: CountProgram, cells: Split, world: World) -> dict[str, float]:
    """Compare ln θ with the truth, over the genes with a mean count of at least one."""
    mean = torch.stack([part.double().mean(0) for part in cells.counts[: 10 * BATCH].split(BATCH)]).mean(0)
    return compared(program.likelihood.log_dispersion[mean >= SEEN], world.log_dispersion[mean >= SEEN])


def lab_effect(program: CountProgram, z: Tensor, world: World) -> dict[str, float]:
    """Compare the change of ln share from the first lab to the second with the truth, over the genes."""
    first, second = (
        torch.cat(
            [
                program.likelihood.network(beside(part, indicator.expand(len(part), -1))).log_softmax(-1)
                for part in z.split(BATCH)
            ]
        ).mean(0)
        for indicator in torch.eye(2)
    )
    found, truth = second - first, world.labs[1] - world.labs[0]
    return compared(found - found.mean(), truth - truth.mean())


def compared(found: Tensor, truth: Tensor) -> dict[str, float]:
    """Return correlation, root mean squared error and number of genes."""
    correlation = torch.corrcoef(torch.stack([found, truth]))[0, 1].item()
    return {
        "correlation": correlation,
        "rmse": (found - truth).square().mean().sqrt().item(),
        "genes": len(truth),
    }


def by_components(cells: Data, latent: int) -> dict[str, float]:
    """Return what principal components of ln(1 + 10⁴ x / size) show, without any program."""
    parts = {"train": cells.train.counts[: 2 * len(cells.test)], "test": cells.test.counts}
    scaled = {name: torch.log1p(1e4 * x.float() / x.sum(-1, keepdim=True)) for name, x in parts.items()}
    components = PCA(latent, random_state=0).fit(scaled["train"].numpy())
    train, test = (torch.from_numpy(components.transform(scaled[name].numpy())) for name in parts)
    return of_codes(train, test, cells)
