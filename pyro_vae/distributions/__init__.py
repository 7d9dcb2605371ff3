"""Distributions and transforms that torch lacks, and KL divergences between them."""

from pyro_vae.distributions.divergences import has_closed_form_kl
from pyro_vae.distributions.families import (
    Beta,
    ContinuousBernoulli,
    FullPrecision,
    LowRankMultivariateNormal,
    MultivariateNormal,
)
from pyro_vae.distributions.transforms import AffineAutoregressive, Planar, Pushforward

__all__ = [
    "AffineAutoregressive",
    "Beta",
    "ContinuousBernoulli",
    "FullPrecision",
    "LowRankMultivariateNormal",
    "MultivariateNormal",
    "Planar",
    "Pushforward",
    "has_closed_form_kl",
]
