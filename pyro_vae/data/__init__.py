"""Data sets as tensors: splits, sets by name, folders of arrays, arrays that stay on disk."""

from pyro_vae.data.mapped import map_array
from pyro_vae.data.raw import DataError
from pyro_vae.data.sets import Data, MissingData, Split, batches, load

__all__ = [
    "Data",
    "DataError",
    "MissingData",
    "Split",
    "batches",
    "load",
    "map_array",
]
