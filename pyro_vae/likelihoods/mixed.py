"""A likelihood made of likelihoods: rows of a table, each column of a family of its own."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn

from pyro_vae.construction import Constructed
from pyro_vae.distributions.rows import Row
from pyro_vae.likelihoods.base import as_rows
from pyro_vae.likelihoods.columns import FAMILIES, Family
from pyro_vae.networks import applied, start_near_zero
from pyro_vae.random import without_autocast
from pyro_vae.tables import Column, Schema


class Mixed(Constructed):
    """p(x | z) = Π_d p_d(x_d | z) over the D columns of a table, each with the family of its kind.

    x holds a number a column, as ``schema.encode(frame)`` gives it. NaN is a missing cell, which scores nothing: log
    p(x) is that of the cells that are seen. It is in the table's own units: the standardisation of the columns is part
    of the program, as buffers, and samples are in the units of the frame. Numbers count with a density, so that nats
    change by ln 10 a cell if a column is written in tenths; counts and levels count with a mass.

    Args:
        network: z (..., D) to features (..., F). The layer from these to the parameters belongs to the likelihood.
        schema: of the table.
        families: other families than those of ``columns.FAMILIES``, by the name of a column or by a kind:
            ``{"income": columns.StudentT, "count": columns.Poisson}``. A function of columns, such as
            ``partial(columns.Normal, min_log_scale=-6)``, is a family too.
        features: F, for a network without the attribute ``out_features``.

    Raises ValueError for an unknown name or kind, for a family that does not fit, and where F is not known.

    >>> import pandas as pd
    >>> from pyro_vae import tables
    >>> frame = pd.DataFrame({"height": [1.6, 1.8, 1.7], "eyes": ["green", None, "blue"]})
    >>> schema = tables.Schema.from_frame(frame)
    >>> likelihood = Mixed(nn.Sequential(nn.Linear(2, 16), nn.ReLU()), schema, features=16)
    >>> p = likelihood(torch.zeros(5, 2))
    >>> p.batch_shape, p.event_shape
    (torch.Size([5]), torch.Size([2]))
    >>> p.log_prob(torch.tensor([1.7, torch.nan])).shape
    torch.Size([5])
    """

    field = "table"
    event_dim = 1
    takes_nan = True
    order: Tensor
    typical: Tensor

    def __init__(
        self,
        network: nn.Module,
        schema: Schema,
        families: Mapping[Any, Callable[[Sequence[Column]], Family]] | None = None,
        features: int | None = None,
    ):
        super().__init__()
        self.schema = schema
        groups = grouped(schema, families or {})
        self.families = nn.ModuleList([make([schema.columns[i] for i in places]) for make, places in groups])
        self.register_buffer("order", torch.tensor([i for _, places in groups for i in places]))
        self.register_buffer("typical", torch.tensor([column.typical for column in schema.columns]))
        self.network = network
        features = getattr(network, "out_features", None) if features is None else features
        if features is None:
            raise ValueError(
                f"{type(network).__name__} has no attribute out_features; write Mixed(network, schema, features=N), "
                "the width of its output"
            )
        self.head = start_near_zero(nn.Linear(features, sum(self.splits)))

    @property
    def splits(self) -> list[int]:
        """The number of outputs of the head for each family."""
        return [family.outputs for family in self.families]  # pyright: ignore[reportReturnType]

    def forward(self, z: Tensor) -> Row:
        """Return p(x | z) for z (..., D): batch (...), event (columns,)."""
        features = applied(self.network, z, event_dim=1)
        if features.shape != (*z.shape[:-1], self.head.in_features):
            raise ValueError(
                f"{type(self.network).__name__}: wanted features of shape {(*z.shape[:-1], self.head.in_features)} "
                f"from z of {tuple(z.shape)}, got {tuple(features.shape)}; give Mixed features=N, the width of the "
                "network's output"
            )
        with without_autocast():
            outputs = self.head(features).split(self.splits, -1)
            return Row([family(out) for family, out in zip(self.families, outputs)], self.order, self.typical)

    def observe(self, table: Tensor | np.ndarray, generator: Generator | None = None) -> Tensor:
        """Return x (N, D) from a table of that shape: the same numbers."""
        table = as_rows(self.field, table) if isinstance(table, np.ndarray) else table
        if not torch.is_tensor(table) or table.shape[1:] != (len(self.schema),) or not table.is_floating_point():
            got = f"{table.dtype} of shape {tuple(table.shape)}" if torch.is_tensor(table) else type(table).__name__
            raise ValueError(
                f"table: wanted a float tensor (N, {len(self.schema)}), a number for each column of the schema, got "
                f"{got}; make it by schema.encode(frame)"
            )
        return table


def grouped(
    schema: Schema, families: Mapping[Any, Callable[[Sequence[Column]], Family]]
) -> list[tuple[Callable[[Sequence[Column]], Family], list[int]]]:
    """Return each family with the numbers of its columns; columns of one family have equally many levels."""
    known = [*FAMILIES, *schema.names]
    strange = [name for name in families if name not in known]
    if strange:
        raise ValueError(
            f"families: wanted names of columns, or kinds, {', '.join(map(repr, known))}, got {strange[0]!r}"
        )
    groups: dict[Any, list[int]] = {}
    for i, column in enumerate(schema.columns):
        make = families.get(column.name, families.get(column.kind, FAMILIES[column.kind]))
        groups.setdefault((make, len(column.levels)), []).append(i)
    return [(make, places) for (make, _), places in groups.items()]
