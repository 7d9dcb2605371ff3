"""Variational autoencoders as Pyro programs: prior, likelihood, guide and ELBO estimator, each swapped in one line."""

from pyro_vae import guides, likelihoods, networks, priors
from pyro_vae.data import load
from pyro_vae.training import evaluate, fit
from pyro_vae.vae import VAE

__all__ = ["VAE", "evaluate", "fit", "guides", "likelihoods", "load", "networks", "priors"]
