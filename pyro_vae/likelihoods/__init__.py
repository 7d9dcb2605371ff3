"""Likelihoods p(x | z): modules that own their decoder network and whose call returns a distribution over x.

- ``base``: what all of them share; bits per dimension.
- ``pictures``: families of grey levels, one for all pixels.
- ``normals``: normal densities of pictures and of real numbers.
- ``counts``: families of counts.
- ``mixed``: rows of a table, a family a column; ``columns``: these families.
"""

from pyro_vae.data.pixels import (
    LEVELS,
    MARGIN,
    checked_pixels,
    dequantize,
    dynamic,
    intensity,
    interior,
    observed_by,
    threshold,
)
from pyro_vae.distributions.pixels import BinCentres, IntensityBernoulli, InteriorBeta, LogisticLevels
from pyro_vae.likelihoods import columns
from pyro_vae.likelihoods.base import LARGEST_LOG_SCALE, Likelihood, bits_per_dim, soft_minimum
from pyro_vae.likelihoods.counts import NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial
from pyro_vae.likelihoods.mixed import Mixed
from pyro_vae.likelihoods.normals import Normal, RealNormal
from pyro_vae.likelihoods.pictures import (
    LARGEST_MEAN_LOGIT,
    Bernoulli,
    Beta,
    Categorical,
    ContinuousBernoulli,
    DiscretizedLogistic,
    DiscretizedLogisticMixture,
)

__all__ = [
    "LARGEST_LOG_SCALE",
    "LARGEST_MEAN_LOGIT",
    "LEVELS",
    "MARGIN",
    "Bernoulli",
    "Beta",
    "BinCentres",
    "Categorical",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "DiscretizedLogisticMixture",
    "IntensityBernoulli",
    "InteriorBeta",
    "Likelihood",
    "LogisticLevels",
    "Mixed",
    "NegativeBinomial",
    "Normal",
    "Poisson",
    "RealNormal",
    "ZeroInflatedNegativeBinomial",
    "bits_per_dim",
    "checked_pixels",
    "columns",
    "dequantize",
    "dynamic",
    "intensity",
    "interior",
    "observed_by",
    "soft_minimum",
    "threshold",
]
