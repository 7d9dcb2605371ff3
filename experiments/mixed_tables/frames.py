"""Real tables that come with statsmodels and scikit-learn, in three splits."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae.data import Data, Split
from pyro_vae.tables import Schema

HELD_OUT = 0.15  # of the rows, in valid and in test each


@dataclass(frozen=True)
class Frame:
    """A table by name: how it is loaded, and the kinds that cannot be seen in its values."""

    load: Callable[[], Any]
    kinds: Mapping[str, str] = field(default_factory=dict)


def randhie() -> Any:
    """Return the RAND Health Insurance Experiment: 20,190 person-years (Deb & Trivedi 2002)."""
    from statsmodels.datasets import randhie as table

    return table.load_pandas().data


def wine() -> Any:
    """Return the chemistry of 178 wines and their cultivar."""
    from sklearn.datasets import load_wine

    table: Any = load_wine(as_frame=True)
    return table.frame


def breast_cancer() -> Any:
    """Return 30 measurements of 569 tumours, and whether they are benign."""
    from sklearn.datasets import load_breast_cancer

    table: Any = load_breast_cancer(as_frame=True)
    return table.frame


FRAMES = {
    "randhie": Frame(randhie),
    "wine": Frame(wine, {"target": "category"}),
    "breast-cancer": Frame(breast_cancer),
}


def prepared(name: str, seed: int, rows: int | None = None) -> tuple[Schema, Data]:
    """Return the schema of the training rows, and the rows, shuffled by the seed; only the first ``rows`` of them."""
    frame = FRAMES[name].load()
    frame = frame.iloc[np.random.default_rng(seed).permutation(len(frame))[:rows]].reset_index(drop=True)
    held = round(HELD_OUT * len(frame))
    parts = frame[2 * held :], frame[held : 2 * held], frame[:held]
    schema = Schema.from_frame(frame, FRAMES[name].kinds, rows=slice(2 * held, None))
    train, valid, test = (Split(table=schema.encode(part)) for part in parts)
    return schema, Data(name, train, valid, test)


def hidden(table: Tensor, share: float, seed: int) -> Tensor:
    """Return a table without a share of its cells, drawn at random; each row keeps one cell at least."""
    generator = torch.Generator().manual_seed(seed)
    u = torch.rand(table.shape, generator=generator, dtype=torch.float64)
    return torch.where((u < share) & (u < u.amax(1, keepdim=True)), torch.nan, table)


def without_cells(data: Data, share: float, seed: int) -> Data:
    """Return the data set without a share of the cells of each split."""
    train, valid, test = (Split(table=hidden(part.table, share, seed)) for part in (data.train, data.valid, data.test))
    return Data(data.name, train, valid, test)
