"""A program of counts with a library size and a label: z ~ N(0, I), x ~ NB(size × softmax(net(z, lab)), θ)."""

import pyro
import torch
from torch import Generator, Tensor, nn

from pyro_vae import guides, likelihoods, networks, priors
from pyro_vae.data import Split
from pyro_vae.sites import parameter_sites


class CountProgram(nn.Module):
    """z ~ N(0, I), x ~ NB(size × softmax(net(z, lab)), θ), as in Lopez et al. (2018) with the observed library size.

    θ is one number a gene. With ``labs=0`` the lab is not told to the program.
    """

    def __init__(self, genes: int, labs: int, latent: int = 10, width: int = 128):
        super().__init__()
        self.labs = labs
        self.prior = priors.StandardNormal(latent)
        decoder = networks.MLPDecoder(latent + labs, (genes,), maps=genes, hidden=(width,))
        self.likelihood = likelihoods.NegativeBinomial(decoder, nn.Parameter(torch.zeros(genes)), softmax=True)
        encoder = networks.MLPEncoder((genes + labs,), hidden=(width,), scaling=networks.Log1p())
        self.posterior = guides.MeanField(encoder, latent)

    def observe(self, batch: Split, generator: Generator | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return the counts, the lab as one of ``labs`` indicators, and the library size."""
        x = self.likelihood.observe(batch.counts)
        return x, (batch.lab[:, None] == torch.arange(self.labs, device=x.device)).to(x.dtype), x.sum(-1)

    def model(self, x: Tensor, lab: Tensor, size: Tensor) -> Tensor:
        """Sample z, and x observed."""
        parameter_sites(self.likelihood)
        with pyro.plate("cells", len(x)):
            z = pyro.sample("z", self.prior())
            return pyro.sample("x", self.likelihood(beside(z, lab), size), obs=x)

    def guide(self, x: Tensor, lab: Tensor, size: Tensor) -> Tensor:
        """Sample z given x and the lab."""
        parameter_sites(self.posterior)
        with pyro.plate("cells", len(x)):
            return pyro.sample("z", self.posterior(beside(x, lab)))


def beside(value: Tensor, lab: Tensor) -> Tensor:
    """Return values (..., N, D) with the indicators (N, labs) of their rows behind them."""
    return torch.cat([value, lab.expand(*value.shape[:-1], -1)], -1)
