"""Programs on disk: ``save_vae``, ``load_vae``, and what a run of the command line keeps of its model.

- ``programs``: the two functions; ``runs``: a run's model beside its metrics.
- ``descriptions``, ``schemas``: parts and their arguments as JSON, and back; ``names``: the classes they may name.
- ``structure``: what two programs must have in common; ``memory``: what a description may take.
- ``contents``: the bytes of the file.
- ``old_runs``: folders of runs of earlier versions.
"""

from pyro_vae.saved.old_runs import METRICS, checksum, read_metrics
from pyro_vae.saved.programs import PARAMETERS, load_vae, save_vae
from pyro_vae.saved.runs import describe_model

__all__ = ["METRICS", "PARAMETERS", "checksum", "describe_model", "load_vae", "read_metrics", "save_vae"]
