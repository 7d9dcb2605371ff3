"""Real tables from which values are removed, and MIWAE on them (Mattei & Frellsen 2019)."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from sklearn import datasets
from torch import Generator, Tensor, nn

from experiments.imputation.methods import rmse
from pyro_vae import Masked, Training, guides, impute, priors
from pyro_vae.data import Data, Split
from pyro_vae.estimators import ImportanceWeighted
from pyro_vae.sites import parameter_sites

HELD_OUT = 0.1  # share of the seen values by which the number of steps is chosen
EPOCH = 100  # steps, at least, between two looks at the held-out values
LOOKED_AT, FEW = 1000, 200  # rows, and particles for each, of those looks
PATIENCE = 8  # looks without a better one after which the training ends
FEW_ROWS = 1000  # up to which a table is small
LATENT, HIDDEN = 10, 128  # dimensions of z, and units of a hidden layer, as in the paper


def randhie() -> np.ndarray:
    """Return the health insurance data of statsmodels: 20,190 people, 10 columns, the number of visits first."""
    try:
        from statsmodels.datasets import randhie as data
    except ImportError as error:
        raise ValueError("randhie: statsmodels is not installed; pip install 'pyro_vae[data]'") from error
    return data.load_pandas().data.to_numpy(dtype=float)


TABLES: dict[str, Callable[[], np.ndarray]] = {
    "breast cancer": lambda: datasets.load_breast_cancer(return_X_y=True)[0],
    "wine": lambda: datasets.load_wine(return_X_y=True)[0],
    "diabetes": lambda: datasets.load_diabetes(return_X_y=True)[0],
    "randhie": randhie,
}


def standardised(table: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the table in standard deviations of each column from its mean, both of the seen values alone.

    >>> standardised(np.array([[0.0], [2.0], [9.0]]), np.array([[True], [True], [False]])).ravel()
    array([-1.,  1.,  8.])
    """
    seen = np.where(mask, table, np.nan)
    return (table - np.nanmean(seen, 0)) / np.nanstd(seen, 0)


class TableProgram(nn.Module):
    """z ~ N(0, I), and each column of x Student-t given z, with its location, scale and degrees of freedom learned."""

    def __init__(self, columns: int, family: str = "student"):
        super().__init__()
        self.prior, self.family = priors.StandardNormal(LATENT), family
        self.decoder = perceptron(LATENT, 3 * columns)
        self.posterior = guides.MeanField(perceptron(columns, HIDDEN), LATENT, features=HIDDEN)

    def model(self, x: Tensor) -> Tensor:
        """Sample p(x, z), observed at x (B, D)."""
        parameter_sites(self)
        with pyro.plate("rows", len(x)):
            loc, raw_scale, raw_df = self.decoder(pyro.sample("z", self.prior())).chunk(3, -1)
            scale = F.softplus(raw_scale) + 1e-3
            student = dist.StudentT(F.softplus(raw_df) + 3, loc, scale)
            p = student if self.family == "student" else dist.Normal(loc, scale)
            return pyro.sample("x", p.to_event(1), obs=x)

    def guide(self, x: Tensor) -> Tensor:
        """Sample q(z | x)."""
        parameter_sites(self)
        with pyro.plate("rows", len(x)):
            return pyro.sample("z", self.posterior(x))

    def observe(self, batch: Split, generator: Generator | None = None) -> Tensor:
        """Return the table of the batch."""
        return batch.table


def perceptron(inputs: int, outputs: int) -> nn.Module:
    """Return a network of two hidden layers."""
    layers = nn.Linear(inputs, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, outputs)
    return nn.Sequential(*layers)


def miwae(table: np.ndarray, mask: np.ndarray, seed: int, args: Any) -> tuple[np.ndarray, dict[str, Any]]:
    """Train on what was seen, and return the table with the rest filled in, and what is told of it.

    A tenth of the seen values is held out, and the parameters are those that predict it best; the imputation sees all
    of the seen values. The removed ones are looked at only at the end, for the share within two standard deviations.
    """
    torch.manual_seed(seed)
    x, seen = torch.from_numpy(np.where(mask, table, np.nan)).float(), torch.from_numpy(mask)
    fitted = seen & (torch.rand(x.shape) >= HELD_OUT)
    program = Masked(TableProgram(x.shape[1], args.family))
    told = train(program, x, fitted, seen, seed, args)
    found = impute(program, (x, seen), args.draws, seed=seed)
    filled = found.x.numpy()
    far = np.abs(filled - table)[~mask] > 2 * found.standard_deviation.numpy()[~mask]
    return filled, {
        **told,
        "within_two_standard_deviations": float(1 - far.mean()),
        "ess_median": found.evidence.ess.median().item(),
        "share_untrusted": found.untrusted.double().mean().item(),
    }


def train(program: Masked, x: Tensor, fitted: Tensor, seen: Tensor, seed: int, args: Any) -> dict[str, Any]:
    """Train on the values in ``fitted``, and keep the parameters by which the RMSE of the other seen ones is least."""
    batch = min(args.rows, len(x))
    repeats = math.ceil(EPOCH * batch / len(x))  # an epoch goes over a small table several times
    look = Split(table=x[:LOOKED_AT], mask=fitted[:LOOKED_AT])
    data = Data("table", Split(table=x.repeat(repeats, 1), mask=fitted.repeat(repeats, 1)), look[:100], look[:100])
    epochs = max(1, round(args.steps * batch / (repeats * len(x))))
    options = {"epochs": epochs, "batch_size": batch, "lr": args.lr, "seed": seed, "keep": "last"}
    training = Training(program, data, ImportanceWeighted(args.particles), progress=False, **options)
    truth, others = x[:LOOKED_AT].numpy(), (fitted | ~seen)[:LOOKED_AT].numpy()
    curve, best = [], {}
    for _ in training:
        curve.append(rmse(impute(program, look, FEW).x.numpy(), truth, others))
        if curve[-1] == min(curve):
            best = {name: value.clone() for name, value in program.state_dict().items()}
        if len(curve) > curve.index(min(curve)) + PATIENCE:
            break
    program.load_state_dict(best)
    return {"held_out_rmse": min(curve), "kept_epoch": curve.index(min(curve)) + 1, "epochs": len(curve)}
