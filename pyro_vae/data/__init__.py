"""Data sets as tensors.

- ``splits``: a split, the three splits of a data set, random batches of row numbers.
- ``sets``: data sets by name.
- ``formats``: the files of known data sets.
- ``folders``: folders of .npy files.
- ``mapped``: arrays that stay on disk.
- ``raw``: checks of images and labels.
- ``pixels``: conversions of grey levels to x.

``load`` and ``MissingData`` are imported when first used, as they need torchvision, scikit-learn and SciPy.
"""

from typing import TYPE_CHECKING

from pyro_vae._lazy import lazy
from pyro_vae.data.mapped import map_array
from pyro_vae.data.raw import DataError, DataWarning
from pyro_vae.data.splits import Data, Split, batches

if TYPE_CHECKING:
    from pyro_vae.data import folders as folders
    from pyro_vae.data import formats as formats
    from pyro_vae.data import sets as sets
    from pyro_vae.data.sets import MissingData as MissingData
    from pyro_vae.data.sets import load as load

__all__ = [
    "Data",
    "DataError",
    "DataWarning",
    "MissingData",
    "Split",
    "batches",
    "load",
    "map_array",
]
__getattr__, __dir__ = lazy(
    __name__,
    {
        "MissingData": "pyro_vae.data.sets",
        "folders": "pyro_vae.data.folders",
        "formats": "pyro_vae.data.formats",
        "load": "pyro_vae.data.sets",
        "sets": "pyro_vae.data.sets",
    },
    eager=["Data", "DataError", "DataWarning", "Split", "batches", "map_array"],
)
