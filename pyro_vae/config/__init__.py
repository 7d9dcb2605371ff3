"""Programs from words: the tables of the parts that a command line or saved settings name.

A part is added by its class and by one record in a table, which says its word, what builds it and its options. Command
lines, ``--help``, saved settings, checks, error messages and ``runs.page.parts_page`` follow. Strings choose
mathematics in this room only, and from these tables only: nothing that a file says is evaluated or imported.

- ``parts``: likelihoods, priors, guides and networks.
- ``estimators``: bounds and their gradients.
- ``building``: settings, and the program that they describe.
"""

from typing import TYPE_CHECKING

from pyro_vae._lazy import lazy
from pyro_vae.config.building import (
    PartSettings,
    build_encoder,
    build_guide,
    build_likelihood,
    build_networks,
    build_prior,
    build_vae,
    decoders,
    hidden,
)
from pyro_vae.config.estimators import (
    ALPHA,
    ESTIMATOR,
    ESTIMATORS,
    FREE_BITS,
    PARTICLES,
    TEMPERATURE,
    build_estimator,
)
from pyro_vae.config.parts import (
    ACTIVATION,
    ACTIVATIONS,
    BINARIZE,
    GUIDE,
    GUIDES,
    LATENT,
    LIKELIHOOD,
    LIKELIHOODS,
    NETWORK,
    NETWORKS,
    PRIOR,
    PRIORS,
    SETTINGS,
    SLOTS,
    TAKEN_BY,
    Networks,
)

__all__ = [
    "ACTIVATION",
    "ACTIVATIONS",
    "ALPHA",
    "BINARIZE",
    "ESTIMATOR",
    "ESTIMATORS",
    "FREE_BITS",
    "GUIDE",
    "GUIDES",
    "LATENT",
    "LIKELIHOOD",
    "LIKELIHOODS",
    "NETWORK",
    "NETWORKS",
    "PARTICLES",
    "PRIOR",
    "PRIORS",
    "SETTINGS",
    "SLOTS",
    "TAKEN_BY",
    "TEMPERATURE",
    "Networks",
    "PartSettings",
    "build_encoder",
    "build_estimator",
    "build_guide",
    "build_likelihood",
    "build_networks",
    "build_prior",
    "build_vae",
    "decoders",
    "hidden",
]

if TYPE_CHECKING:
    from pyro_vae.saved import METRICS as METRICS
    from pyro_vae.saved import PARAMETERS as PARAMETERS
    from pyro_vae.saved import describe_model as describe_model
    from pyro_vae.saved import load_vae as load_vae
    from pyro_vae.saved import read_metrics as read_metrics

# Names of this module in 0.1. They are imported when used, since ``saved`` imports this module.
_OLD = "METRICS", "PARAMETERS", "describe_model", "load_vae", "read_metrics"
__getattr__, __dir__ = lazy(__name__, dict.fromkeys(_OLD, "pyro_vae.saved"), eager=__all__)
