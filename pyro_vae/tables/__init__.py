"""Tables with columns of different kinds: what each column is, and how it becomes numbers and back.

- ``kinds``: which kind a column is, recognised from its values.
- ``columns``: the record of one column, with the statistics that standardise it.
- ``schema``: the columns of a table; frames to numbers and back.
- ``features``: the numbers that an encoder reads.

The likelihood of such a table is ``likelihoods.Mixed``.
"""

from pyro_vae.tables.columns import Column
from pyro_vae.tables.features import Features
from pyro_vae.tables.kinds import KINDS
from pyro_vae.tables.schema import Schema

__all__ = ["KINDS", "Column", "Features", "Schema"]
