"""Distributions and transforms that torch lacks, and KL divergences between them.

- ``families``: distributions that stay precise where torch's lose precision.
- ``pixels``: distributions of single pixels.
- ``counts``: distributions of counts.
- ``transforms``: normalising flows.
- ``divergences``: KL divergences in closed form.
"""

from pyro_vae.distributions.counts import NegativeBinomialCounts, PoissonCounts, ZeroInflatedCounts
from pyro_vae.distributions.divergences import has_closed_form_kl
from pyro_vae.distributions.families import (
    Beta,
    ContinuousBernoulli,
    FullPrecision,
    LowRankMultivariateNormal,
    MultivariateNormal,
)
from pyro_vae.distributions.pixels import BinCentres, IntensityBernoulli, InteriorBeta, LogisticLevels
from pyro_vae.distributions.transforms import AffineAutoregressive, Planar, Pushforward

__all__ = [
    "AffineAutoregressive",
    "Beta",
    "BinCentres",
    "ContinuousBernoulli",
    "FullPrecision",
    "IntensityBernoulli",
    "InteriorBeta",
    "LogisticLevels",
    "LowRankMultivariateNormal",
    "MultivariateNormal",
    "NegativeBinomialCounts",
    "Planar",
    "PoissonCounts",
    "Pushforward",
    "ZeroInflatedCounts",
    "has_closed_form_kl",
]
