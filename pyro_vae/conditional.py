"""The variational autoencoder of labelled images, p(x | z, y), as a Pyro program."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyro
import torch
from pyro.distributions import TorchDistribution
from torch import Generator, Tensor, nn

from pyro_vae import analysis
from pyro_vae.analysis import BATCH
from pyro_vae.construction import Constructed, check_parts
from pyro_vae.data.fields import check_unmasked
from pyro_vae.data.splits import Split
from pyro_vae.imputation import Imputation, impute
from pyro_vae.labels import one_hot
from pyro_vae.missing import Masked
from pyro_vae.observation import fixed_x, observed
from pyro_vae.sites import parameter_sites
from pyro_vae.tracing.numbers import is_tracing


class Conditional(Constructed):
    """p(z) p(x | z, y) with the guide q(z | x, y): images x given their class y (Sohn et al. 2015).

    The class is one-hot beside z, and one more channel of the image, learned, for the guide. ``model(None, y)`` draws
    an image of each class y (B,), int64.

    Args:
        prior: ``prior()`` -> p(z), batch (), event (D,).
        likelihood: of z and the one-hot class (..., D + classes), such as ``Bernoulli(MLPDecoder(D + classes, ...))``.
        posterior: of images (..., C + 1, H, W), such as ``MeanField(ConvEncoder((C + 1, H, W)), D)``.
        classes: the number of classes; labels are 0 to classes − 1.
        side: the shape (H, W) of the images.

    >>> from pyro_vae import evaluate, guides, likelihoods, load, networks, priors
    >>> digits = load("digits")
    >>> likelihood = likelihoods.Bernoulli(networks.MLPDecoder(2 + 10, (1, 8, 8), maps=1))
    >>> posterior = guides.MeanField(networks.MLPEncoder((2, 8, 8)), 2)
    >>> program = Conditional(priors.StandardNormal(2), likelihood, posterior, classes=10, side=(8, 8))
    >>> evaluate(program, digits.test[:5]).bound.shape, program.model(None, torch.arange(10)).shape
    (torch.Size([5]), torch.Size([10, 1, 8, 8]))
    """

    likelihood: Any

    def __init__(
        self, prior: nn.Module, likelihood: nn.Module, posterior: nn.Module, classes: int, side: Sequence[int]
    ):
        super().__init__()
        check_parts(prior=prior, likelihood=likelihood, posterior=posterior)
        self.prior, self.likelihood, self.posterior, self.classes = prior, likelihood, posterior, classes
        self.channel = nn.Sequential(nn.Linear(classes, side[0] * side[1]), nn.Unflatten(-1, (1, *side)))

    def model(self, x: Tensor | None, y: Tensor) -> Tensor:
        """Sample p(x, z | y), observed at x (B, C, H, W), for classes y (B,); without x draw it. Return x."""
        parameter_sites(self.prior, name="prior")
        parameter_sites(self.likelihood, name="likelihood")
        with pyro.plate("images", len(y)):
            z = pyro.sample("z", self.prior())
            return pyro.sample("x", self.likelihood(torch.cat([z, self.one_hot(y, z)], -1)), obs=x)

    def guide(self, x: Tensor, y: Tensor) -> Tensor:
        """Sample q(z | x, y), and return z."""
        parameter_sites(self.posterior, name="posterior")
        parameter_sites(self.channel, name="channel")
        with pyro.plate("images", len(y)):
            return pyro.sample("z", self.q(x, y))

    def q(self, x: Tensor, y: Tensor) -> TorchDistribution:
        """Return the distribution of z given x and y: batch (B,), event (D,)."""
        return self.posterior(torch.cat([x, self.channel(self.one_hot(y, x[..., 0, 0]))], -3))

    def observe(self, batch: Split, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        """Return x and the classes of a batch.

        Raises ValueError for a batch without images or with a mask of them, and where a class is missing or unknown.
        """
        labels = batch.labels
        if batch.images is None:
            raise ValueError(f"batch: wanted images, got {batch}; write Split(images, labels)")
        check_unmasked(batch.fields, "images")
        if labels is None or not (is_tracing() or bool(((labels >= 0) & (labels < self.classes)).all())):
            got, cure = "none", "give them with the images, as in Data.from_arrays(images, labels=labels)"
            if labels is not None:
                got = f"{int(labels.min())} to {int(labels.max())}"
                cure = "leave out the rows whose class is unknown, split[split.labels >= 0]"
                if int(labels.max()) >= self.classes:
                    cure = f"make the program with classes={int(labels.max()) + 1}, or leave out the other classes"
            raise ValueError(f"labels: wanted a class of each image, 0 to {self.classes - 1}, got {got}; {cure}")
        return observed(self.likelihood, batch.images, generator), labels

    def encode(self, batch: Split, *, batch_size: int = BATCH, samples: int = 256, seed: int = 0) -> Tensor:
        """Return the codes of images with labels, the means of q(z | x, y): (N, D), as ``VAE.encode`` does."""
        x, y = fixed_x(self, batch, seed)
        return analysis.codes(self, self._with_channel(x, y), batch_size=batch_size, samples=samples, seed=seed)

    def decode(self, z: Tensor | np.ndarray, labels: Tensor | np.ndarray, *, batch_size: int = BATCH) -> Tensor:
        """Return the means of p(x | z, y) for z (N, D) and classes (N,): images (N, C, H, W), on the CPU."""
        z, y = torch.as_tensor(z), torch.as_tensor(labels)
        if y.shape != z.shape[:1]:
            raise ValueError(f"labels: wanted a class for each z, {tuple(z.shape[:1])}, got shape {tuple(y.shape)}")
        return analysis.decode(self, torch.cat([z, self.one_hot(y.to(z.device), z)], -1), batch_size=batch_size)

    def reconstruct(self, batch: Split, *, batch_size: int = BATCH, samples: int = 256, seed: int = 0) -> Tensor:
        """Return the decoded codes of images with labels, each decoded as its own class: (N, C, H, W), on the CPU."""
        z = self.encode(batch, batch_size=batch_size, samples=samples, seed=seed)
        return self.decode(z, batch.labels.cpu(), batch_size=batch_size)

    def impute(
        self, batch: Split, particles: int = 1000, *, batch_size: int | None = None, seed: int = 0
    ) -> Imputation:
        """Fill in the pixels that are False in the field ``mask``, given the others and the class: ``VAE.impute``."""
        return impute(Masked(self), batch, particles, batch_size=batch_size, seed=seed)

    @torch.no_grad()
    def _with_channel(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the images with the channel of their classes, (N, C + 1, H, W), as the posterior takes them."""
        weight = next(self.channel.parameters())
        channel = self.channel(self.one_hot(y.to(weight.device), weight.new_zeros(len(y), 1)))
        return torch.cat([x, channel.to(x)], -3)

    def one_hot(self, y: Tensor, like: Tensor) -> Tensor:
        """Return y (B,) as (..., B, classes), with the batch and dtype of ``like`` (..., B, D)."""
        return one_hot(y, self.classes).to(like.dtype).expand(*like.shape[:-1], -1)
