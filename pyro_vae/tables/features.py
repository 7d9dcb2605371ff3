"""The numbers that an encoder reads of a row: standardised values, one-hot levels, and which cells are seen."""

import torch
from torch import Tensor

from pyro_vae.construction import Constructed
from pyro_vae.distributions.rows import near_level
from pyro_vae.tables.schema import Schema


class Features(Constructed):
    """Rows x (..., D) to numbers of order one (..., out_features), the first layer of an encoder.

    A number is standardised: x (real), ln x (positive), ln(1 + x) (counts); K levels give K zeros and ones.
    Both are zero in a missing cell. D more numbers are 1 where a cell is seen and 0 where it is missing.

    >>> import pandas as pd
    >>> from pyro_vae import tables
    >>> frame = pd.DataFrame({"height": [1.6, 1.8, None], "eyes": ["green", None, "blue"]})
    >>> schema = tables.Schema.from_frame(frame)
    >>> Features(schema)(schema.encode(frame).float())
    tensor([[-1.0000,  0.0000,  1.0000,  1.0000,  1.0000],
            [ 1.0000,  0.0000,  0.0000,  1.0000,  0.0000],
            [ 0.0000,  1.0000,  0.0000,  0.0000,  1.0000]])
    """

    numbers: Tensor
    centre: Tensor
    scale: Tensor
    positive: Tensor
    count: Tensor
    coded: Tensor
    levels: Tensor
    used: Tensor

    def __init__(self, schema: Schema):
        super().__init__()
        numbers = [i for i, column in enumerate(schema.columns) if not column.levels]
        coded = [i for i, column in enumerate(schema.columns) if column.levels]
        self.register_buffer("numbers", torch.tensor(numbers, dtype=torch.long))
        self.register_buffer("coded", torch.tensor(coded, dtype=torch.long))
        columns = [schema.columns[i] for i in numbers]
        for kind in ("positive", "count"):
            self.register_buffer(kind, torch.tensor([column.kind == kind for column in columns], dtype=torch.bool))
        locs = torch.tensor([column.loc for column in columns], dtype=torch.float64)
        self.register_buffer("centre", torch.where(self.count, locs.exp().log1p(), locs).float())
        self.register_buffer("scale", torch.tensor([column.scale for column in columns]))
        self._add_levels([schema.columns[i].levels for i in coded])
        self.out_features = len(numbers) + len(self.used) + len(schema)

    def _add_levels(self, levels: list[tuple[float, ...]]) -> None:
        """Keep the levels side by side, (columns, K), filled up with others above, and the places of the first."""
        most = max(map(len, levels), default=2)
        more = [[row[-1] + (row[-1] - row[0]) * (i + 1) for i in range(most - len(row))] for row in levels]
        padded = torch.tensor([[*row, *others] for row, others in zip(levels, more)]).reshape(-1, most)
        self.register_buffer("levels", padded)
        used = [k < len(row) for row in levels for k in range(most)]
        self.register_buffer("used", torch.tensor(used, dtype=torch.bool).nonzero().flatten())

    def forward(self, x: Tensor) -> Tensor:
        """Return the features (..., out_features) of rows x (..., D)."""
        value = x.index_select(-1, self.numbers)
        missing = value.isnan()
        value = torch.where(missing, 1.0, value)
        tiny = torch.finfo(x.dtype).tiny
        logs = torch.where(self.count, value.clamp_min(0).log1p(), value.clamp_min(tiny).log())
        value = torch.where(self.positive | self.count, logs, value)
        standard = torch.where(missing, 0.0, (value - self.centre) / self.scale)
        one_hot = near_level(x.index_select(-1, self.coded), self.levels).flatten(-2).index_select(-1, self.used)
        return torch.cat([standard, one_hot.to(x.dtype), (~x.isnan()).to(x.dtype)], -1)
