"""Variational autoencoders as Pyro programs: prior, likelihood, guide and ELBO estimator, each swapped in one line."""

from pyro_vae import estimators, guides, handlers, likelihoods, networks, priors
from pyro_vae.checkpoint import Checkpoints
from pyro_vae.data import load
from pyro_vae.evidence import annealed_evidence, bidirectional, log_evidence
from pyro_vae.parts import load_vae
from pyro_vae.training import evaluate, fit
from pyro_vae.vae import VAE
from pyro_vae.variance import compare_estimators

__all__ = [
    "VAE",
    "Checkpoints",
    "annealed_evidence",
    "bidirectional",
    "compare_estimators",
    "estimators",
    "evaluate",
    "fit",
    "guides",
    "handlers",
    "likelihoods",
    "load",
    "load_vae",
    "log_evidence",
    "networks",
    "priors",
]
