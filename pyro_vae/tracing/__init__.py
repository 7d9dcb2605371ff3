"""A program run once: its sites and rows, its particles, the paths of its gradients, its parameters.

- ``traces``: the traces of model and guide, of one particle or of many.
- ``messages``: the sites of a trace (messages, in Pyro), and what each of them scores.
- ``supports``: where the values of a distribution lie.
- ``numbers``: numbers and tensors compared, also while a graph is traced.
- ``matching``: checks that the guide draws the latent sites of the model.
- ``particles``: one run of a program, its particles together in a plate or one after the other.
- ``runs``: how a program's particles are drawn and which plate is over its rows.
- ``rows``: the weight of each row, log p(x, z) − log q(z | x).
- ``independence``: checks that the rows of a batch are independent.
- ``enumeration``: programs with sites that are summed out, and the weights of their rows.
- ``trials``: a program scored at given values of its latent sites.
- ``paths``: draws of a guide with and without a path to its parameters.
- ``leaves``: the parameters of a program, found in its autograd graph.
- ``probing``: trial runs that leave a program as it was, and the modules and tensors that it refers to.
"""

from pyro_vae.tracing.leaves import ProgramParameters, find_parameters
from pyro_vae.tracing.matching import check_sites
from pyro_vae.tracing.rows import log_weights, per_image
from pyro_vae.tracing.traces import check_rows, paired_traces

__all__ = [
    "ProgramParameters",
    "check_rows",
    "check_sites",
    "find_parameters",
    "log_weights",
    "paired_traces",
    "per_image",
]
