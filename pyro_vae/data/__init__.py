"""Data sets as tensors.

- ``splits``: a split, the three splits of a data set, random batches of row numbers; ``fields``: checks of its tensors.
- ``sources``: the class methods of ``Data``, from ``arrays`` in memory, ``picture_folders``, ``frames`` of pandas, and
  ``datasets`` of torch, with ``levels``, ``pictures``, ``shares``, ``items``, ``columns``, ``fingerprints``, ``kept``.
- ``sets``: data sets by name; ``known``: their files; ``formats`` and ``archives``: the formats of these.
- ``own``: files of a user; ``reading`` and ``array_files``: files of arrays; ``folders``: folders of .npy files.
- ``mapped``: arrays that stay on disk.
- ``raw``: checks of images and labels.
- ``pixels``: conversions of grey levels to x.

``load``, ``read_array`` and ``MissingData`` are imported when first used: they need torchvision, scikit-learn, SciPy.
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
    from pyro_vae.data.known import MissingData as MissingData
    from pyro_vae.data.reading import read_array as read_array
    from pyro_vae.data.reading import read_arrays as read_arrays
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
    "read_array",
    "read_arrays",
]
__getattr__, __dir__ = lazy(
    __name__,
    {
        "MissingData": "pyro_vae.data.known",
        "folders": "pyro_vae.data.folders",
        "formats": "pyro_vae.data.formats",
        "load": "pyro_vae.data.sets",
        "read_array": "pyro_vae.data.reading",
        "read_arrays": "pyro_vae.data.reading",
        "sets": "pyro_vae.data.sets",
    },
    eager=["Data", "DataError", "DataWarning", "Split", "batches", "map_array"],
)
