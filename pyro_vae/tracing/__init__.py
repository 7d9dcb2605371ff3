"""Programs run once: their sites and rows, particles, paths of gradients, parameters."""

from pyro_vae.tracing.leaves import Parameters, find_parameters
from pyro_vae.tracing.matching import check_sites
from pyro_vae.tracing.rows import log_weights, per_image
from pyro_vae.tracing.traces import check_rows, paired_traces

__all__ = [
    "Parameters",
    "check_rows",
    "check_sites",
    "find_parameters",
    "log_weights",
    "paired_traces",
    "per_image",
]
