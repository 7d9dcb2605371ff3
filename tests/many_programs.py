"""Small programs of all parts of the library, each with rows for it, and what must be the same after loading."""

import hashlib
import sys
import warnings
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae import guides, likelihoods, networks, priors, tables
from pyro_vae.likelihoods import columns
from pyro_vae.linear_gaussian import LinearGaussian

SHAPE, LATENT = (1, 8, 8), 3
FRAME = pd.DataFrame(
    {
        "height": [1.61, 1.82, None, 1.7, 1.75, 1.68],
        "change": [-0.5, 0.2, 1.3, -2.0, 0.7, 0.1],
        "visits": [0, 2, 1, 5, 3, 1],
        "eyes": ["green", None, "blue", "brown", "green", "blue"],
        "grade": pd.Categorical(["low", "high", "mid", "low", None, "mid"], ["low", "mid", "high"], ordered=True),
        "smokes": [True, False, False, True, True, False],
    }
)


def generator():
    return torch.Generator().manual_seed(0)


PIXELS = torch.randint(256, (6, *SHAPE), dtype=torch.uint8, generator=generator())
COUNTS = torch.randint(20, (6, 4), generator=generator())
TABLE = torch.randn(6, 4, generator=generator())


def encoder(shape=SHAPE, **options):
    return networks.MLPEncoder(shape, **{"hidden": (8,), **options})


def decoder(maps=1, latent=LATENT, shape=SHAPE):
    return networks.MLPDecoder(latent, shape, maps, hidden=(8,))


def vae(prior=None, likelihood=None, posterior=None):
    return pv.VAE(
        prior or priors.StandardNormal(LATENT),
        likelihood or likelihoods.Bernoulli(decoder()),
        posterior or guides.MeanField(encoder(), LATENT),
    )


def vamp():
    guide = guides.MeanField(encoder(), LATENT)
    return vae(priors.Vamp(guide, torch.rand(5, *SHAPE)), posterior=guide)


def rows(likelihood, scaling=None):
    return vae(likelihood=likelihood, posterior=guides.MeanField(encoder((4,), scaling=scaling), LATENT))


def mixed():
    schema = tables.Schema.from_frame(FRAME)
    network = nn.Sequential(nn.Linear(LATENT, 8), nn.ReLU())
    families = {"change": columns.StudentT, "positive": partial(columns.LogNormal, min_log_scale=-3)}
    likelihood = likelihoods.Mixed(network, schema, families, features=8)
    posterior = guides.MeanField(nn.Sequential(tables.Features(schema), nn.LazyLinear(8)), LATENT, features=8)
    posterior.network[1](posterior.network[0](schema.encode(FRAME).float()))
    return vae(likelihood=likelihood, posterior=posterior)


def of_torch():
    """Networks of torch's layers, in float64, one of them frozen and in evaluation mode."""
    down = nn.Sequential(nn.Conv2d(1, 4, 4, 2, 1), nn.BatchNorm2d(4), nn.LeakyReLU(0.2), nn.Flatten())
    up = nn.Sequential(nn.Linear(LATENT, 64), nn.Unflatten(1, SHAPE), nn.Upsample(scale_factor=1.0))
    program = vae(likelihood=likelihoods.Beta(nn.Sequential(up, nn.Conv2d(1, 2, 3, padding=1))))
    program.posterior = guides.MeanField(down, LATENT, features=64)
    program.likelihood.network[0][0].weight.requires_grad_(False)
    program.posterior.eval()
    return program.double()


def conditional():
    posterior = guides.MeanField(encoder((2, 8, 8)), LATENT)
    return pv.Conditional(
        priors.StandardNormal(LATENT), likelihoods.Bernoulli(decoder(latent=LATENT + 3)), posterior, 3, (8, 8)
    )


def masked():
    return pv.Masked(vae(posterior=guides.MeanField(encoder((2, 8, 8)), LATENT)), mask_as_input=True)


PICTURES = {
    "bernoulli": lambda: likelihoods.Bernoulli(decoder(), likelihoods.threshold),
    "intensity": lambda: likelihoods.Bernoulli(decoder(), binarize=likelihoods.intensity),
    "continuous-bernoulli": lambda: likelihoods.ContinuousBernoulli(decoder(), clip=1e-3),
    "normal": lambda: likelihoods.Normal(decoder(2), min_log_scale=-3.0),
    "normal-shared": lambda: likelihoods.Normal(decoder(), nn.Parameter(torch.tensor(-1.0))),
    "normal-fixed": lambda: likelihoods.Normal(decoder(), -1.0),
    "beta": lambda: likelihoods.Beta(decoder(2)),
    "categorical": lambda: likelihoods.Categorical(decoder(4), bins=4),
    "logistic": lambda: likelihoods.DiscretizedLogistic(decoder(2)),
    "logistic-mixture": lambda: likelihoods.DiscretizedLogisticMixture(decoder(9), components=3),
}
PRIORS = {
    "diagonal": lambda: priors.DiagonalNormal(LATENT),
    "mixture": lambda: priors.Mixture(LATENT, 4),
    "autoregressive": lambda: priors.Flow(LATENT, depth=1, width=8),
    "spline": lambda: priors.Flow(LATENT, priors.spline, 1, 8),
}
GUIDES = {
    "full-rank": lambda: guides.FullRank(encoder(), LATENT),
    "low-rank": lambda: guides.LowRank(encoder(), LATENT, rank=2),
    "inverse-autoregressive": lambda: guides.Flow(encoder(), LATENT, depth=1, width=8),
    "planar": lambda: guides.Flow(encoder(), LATENT, guides.planar, width=8),
    "partial": lambda: guides.MeanField(encoder(activation=partial(nn.LeakyReLU, 0.3)), LATENT),
}
ROWS = {
    "poisson": lambda: rows(likelihoods.Poisson(decoder(4, shape=(4,))), networks.Log1p()),
    "negative-binomial": lambda: rows(
        likelihoods.NegativeBinomial(decoder(4, shape=(4,)), nn.Parameter(torch.zeros(4))), networks.Log1p()
    ),
    "zero-inflated": lambda: rows(likelihoods.ZeroInflatedNegativeBinomial(decoder(12, shape=(4,)))),
}


def programs():
    """Return programs by name, each with its rows; their parameters are drawn from seed 0."""
    torch.manual_seed(0)
    images = pv.Split(PIXELS)
    found = {name: (vae(likelihood=make()), images) for name, make in PICTURES.items()}
    found |= {name: (vae(prior=make()), images) for name, make in PRIORS.items()} | {"vamp": (vamp(), images)}
    found |= {name: (vae(posterior=make()), images) for name, make in GUIDES.items()}
    found |= {name: (make(), pv.Split(counts=COUNTS)) for name, make in ROWS.items()}
    found["real"] = rows(likelihoods.RealNormal(decoder(8, shape=(4,)))), pv.Split(table=TABLE)
    found["mixed"] = mixed(), pv.Split(table=tables.Schema.from_frame(FRAME).encode(FRAME))
    found["conditional"] = conditional(), pv.Split(PIXELS, [0, 1, 2, 0, 1, 2])
    found["masked"] = masked(), pv.Split(PIXELS, mask=PIXELS > 99)
    found["torch"] = of_torch(), images
    found["linear"] = LinearGaussian(torch.randn(64, LATENT), scale=0.5, shape=SHAPE), images
    return found


def measured(program, batch):
    """Return a digest of codes, reconstructions and evidence, to the last bit."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pv.UntrustedEvidence)
        values = [pv.log_evidence(program, batch, particles=8).log_px]
    if hasattr(program, "encode"):
        values += [program.encode(batch, samples=4), program.reconstruct(batch, samples=4)]
    return hashlib.sha256(b"".join(value.numpy().tobytes() for value in values)).hexdigest()


if __name__ == "__main__":
    for name, (_, batch) in programs().items():
        print(name, measured(pv.load_vae(Path(sys.argv[1]) / name), batch))
