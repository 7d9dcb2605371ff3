"""M2, the semi-supervised VAE of Kingma et al. (2014), as a program."""

import argparse
from typing import Any

import pyro
import torch
from pyro import distributions as dist
from pyro import poutine
from torch import Generator, Tensor, nn

from pyro_vae import likelihoods, networks
from pyro_vae.data import Data, Split
from pyro_vae.random import mode

CLASSES = 10


class M2(nn.Module):
    """p(y) p(z) p(x | y, z) and q(y | x) q(z | x, y); labels of −1 are unknown (Kingma et al. 2014).

    In training mode α log q(y | x) is added in rows with a label, so that they teach the classifier too; the objective
    is then no bound. In evaluation mode, in which everything is measured, the bound is that of log p(x), or of
    log p(x, y) where y is known.
    """

    classes: Tensor
    likelihood: Any

    def __init__(
        self, classifier: nn.Module, features: nn.Module, encoder: nn.Module, likelihood: Any, latent: int, alpha: float
    ):
        super().__init__()
        self.classifier, self.features, self.encoder, self.likelihood = classifier, features, encoder, likelihood
        self.latent, self.alpha = latent, alpha
        self.register_buffer("classes", torch.arange(CLASSES), persistent=False)

    def model(self, x: Tensor, labels: Tensor) -> None:
        """Sample y, z and x; y is observed where the label is known."""
        known: Any = labels >= 0
        label, zeros = labels.clamp(min=0), torch.zeros_like(x[0].flatten())
        with pyro.plate("images", len(x)):
            y = pyro.sample("y", dist.Categorical(logits=zeros[:CLASSES]), obs=label, obs_mask=known)
            z = pyro.sample("z", dist.Normal(zeros[: self.latent], 1.0).to_event(1))
            pyro.sample("x", self.likelihood(self.joined(z, y)), obs=x)
            if self.training:
                log_q = dist.Categorical(logits=self.classifier(x)).log_prob(label)
                pyro.factor("classification", self.alpha * log_q * known)

    def guide(self, x: Tensor, labels: Tensor) -> None:
        """Sample y given x where it is unknown, with all its values in one run under ``TraceEnum_ELBO``; then z."""
        unknown: Any = labels < 0
        with pyro.plate("images", len(x)):
            with poutine.mask(mask=unknown):
                q = dist.Categorical(logits=self.classifier(x))
                y = pyro.sample("y_unobserved", q, infer={"enumerate": "parallel"})
            y = torch.where(unknown, y, labels)
            pyro.sample("z", self.posterior(x, y))

    def posterior(self, x: Tensor, y: Tensor) -> dist.TorchDistribution:
        """Return q(z | x, y)."""
        loc, log_scale = self.encoder(self.joined(self.features(x), y)).chunk(2, -1)
        return dist.Normal(loc, log_scale.exp()).to_event(1)

    def joined(self, h: Tensor, y: Tensor) -> Tensor:
        """Return h and y as one-hot, side by side; both broadcast to the values of y that run together."""
        one_hot = torch.eq(y.unsqueeze(-1), self.classes).to(h.dtype)
        lead = torch.broadcast_shapes(h.shape[:-1], y.shape)
        return torch.cat([h.expand(*lead, -1), one_hot.expand(*lead, -1)], -1)

    def observe(self, batch: Split, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        """Return x, as the likelihood scores it, and the labels."""
        return self.likelihood.observe(batch.images, generator), batch.labels


class Jitter(nn.Module):
    """In training mode it shifts, turns, scales and shears each image at random, by up to ``size`` of its width."""

    def __init__(self, size: float):
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """Return the images (B, C, H, W), moved."""
        if not self.training or not self.size:
            return x
        moved = torch.eye(2, 3, device=x.device) + self.size * (2 * torch.rand(len(x), 2, 3, device=x.device) - 1)
        grid = nn.functional.affine_grid(moved.to(x.dtype), list(x.shape), align_corners=False)
        return nn.functional.grid_sample(x, grid, align_corners=False)


def build(images: Data, args: argparse.Namespace) -> M2:
    """Return the program, with networks of the sizes that the options say."""
    shape, hidden, latent = images.shape, args.hidden, args.latent
    network = networks.ConvEncoder(shape, channels=(16, 32), hidden=(128,))
    classifier = nn.Sequential(Jitter(args.jitter), network, nn.Dropout(0.5), nn.Linear(128, CLASSES))
    decoder = networks.MLPDecoder(latent + CLASSES, shape, maps=1, hidden=(hidden,))
    head = networks.start_near_zero(nn.Linear(hidden, 2 * latent))
    encoder = nn.Sequential(nn.Linear(hidden + CLASSES, hidden), nn.ReLU(), head)
    first = {
        part: next(layer for layer in part.modules() if isinstance(layer, nn.Linear)) for part in (decoder, encoder)
    }
    with torch.no_grad():  # the decoder begins with y: a code of ten classes that z could hold too would stay unused
        first[encoder].weight[:, -CLASSES:] = 0
        first[decoder].weight[:, :-CLASSES] *= 0.3
        first[decoder].weight[:, -CLASSES:].normal_(0, 0.5)
    features = networks.MLPEncoder(shape, hidden=(hidden,))
    return M2(classifier, features, encoder, likelihoods.Bernoulli(decoder), latent, args.alpha)


@torch.no_grad()
def analogies(program: M2, split: Split, rows: int = 10) -> Tensor:
    """Return images beside those with the same z and each class y: (rows × 11, C, H, W)."""
    with mode(program, training=False):
        x, y = program.observe(split[:rows], Generator(split.images.device).manual_seed(0))
        z = program.posterior(x, y).mean
        pictures = program.likelihood(program.joined(z.unsqueeze(1), program.classes.expand(rows, -1))).mean
    return torch.cat([x.unsqueeze(1), pictures], 1).flatten(0, 1)
