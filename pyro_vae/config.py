"""Programs from words: the tables of the parts that a command line or saved settings name.

A part is added by its class and by one record here, which says its word, what builds it and its options. Command lines,
``--help``, saved settings, checks, error messages and ``runs.page.parts_page`` follow. Strings choose mathematics in
this file only, and from these tables only: nothing that a file says is evaluated or imported.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from pyro.infer import ELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn

from pyro_vae import estimators, guides, likelihoods, networks, priors
from pyro_vae._lazy import lazy
from pyro_vae.distributions.transforms import default_width
from pyro_vae.networks import Shape
from pyro_vae.records import Option, Part, options_of, shapes_of, table, taken_by
from pyro_vae.vae import VAE

BINARIZE = {
    "dynamic": likelihoods.dynamic,
    "threshold": likelihoods.threshold,
    "intensity": likelihoods.intensity,
}
ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU, "tanh": nn.Tanh}
WIDTH = 400  # of the dense layer
# With so few latent dimensions a decoder has more to do, and the conv networks have two dense layers.
FEW, WIDTHS_OF_FEW = 5, (256, 256)
SHARED_LOG_SCALE = -1.5  # where a learned scale that all pixels share starts

BINARIZATION = Option(
    "binarize",
    str,
    "dynamic",
    "drawn anew for each batch, grey level > 127, or the grey level as a probability",
    BINARIZE,
)
BINS = Option("bins", int, 16, "number of bins, 2 to 256")
SCALE = Option(
    "scale", str, "pixel", "'pixel' (learned, one for each), 'shared' (learned, one for all) or a fixed number"
)
COMPONENTS = Option("components", int, 100, "number of Gaussians or of pseudo-inputs", metavar="K")
RANK = Option("rank", int, 1, "rank beside the diagonal")
FLOW_DEPTH = Option("flow_depth", int, 2, "steps of the flow", metavar="STEPS", largest=1000)
FLOW_WIDTH = Option(
    "flow_width",
    int,
    None,
    "width of the hidden layers of the flow's steps (twice the latent dimensions, at least 64)",
    metavar="UNITS",
)
LATENT = Option("latent", int, 2, "dimensions of z", metavar="D")
CHANNELS = Option(
    "channels",
    int,
    (32, 64),
    "maps of the 4 × 4 convolutions of stride 2, in the decoder reversed",
    metavar="MAPS",
    nargs="+",
)
ACTIVATION = Option("activation", str, "relu", "after each layer", ACTIVATIONS)
HIDDEN = Option(
    "hidden",
    int,
    None,
    f"widths of the dense layers, in the decoder reversed; without a number there are none ({WIDTH}; for conv with up "
    f"to {FEW} latent dimensions {' '.join(map(str, WIDTHS_OF_FEW))})",
    metavar="UNITS",
    nargs="*",
)
PARTICLES = Option("particles", int, 1, "draws of z per image", metavar="K")


def _normal(decoder: Callable[[int], nn.Module], scale: str) -> nn.Module:
    if scale == "pixel":
        return likelihoods.Normal(decoder(2))
    if scale == "shared":
        return likelihoods.Normal(decoder(1), nn.Parameter(torch.tensor(SHARED_LOG_SCALE)))
    try:
        log_scale = math.log(float(scale))
    except ValueError:
        log_scale = math.nan
    if not math.isfinite(log_scale):
        raise ValueError(f"--scale: wanted 'pixel', 'shared' or a positive number, got {scale!r}")
    return likelihoods.Normal(decoder(1), log_scale)


# build(decoder, **options), where decoder(n) has n maps for each channel of the image
LIKELIHOODS = table(
    Part(
        "bernoulli",
        lambda decoder, binarize: likelihoods.Bernoulli(decoder(1), binarize),
        "black and white pixels",
        (BINARIZATION,),
    ),
    Part(
        "continuous-bernoulli",
        lambda decoder: likelihoods.ContinuousBernoulli(decoder(1)),
        "a density on [0, 1] with one parameter",
    ),
    Part("normal", _normal, "a normal density with its mean in (0, 1)", (SCALE,)),
    Part("beta", lambda decoder: likelihoods.Beta(decoder(2)), "a beta density by mean and concentration"),
    Part(
        "categorical",
        lambda decoder, bins: likelihoods.Categorical(decoder(bins), bins),
        "equal bins of the grey levels",
        (BINS,),
    ),
    Part(
        "logistic",
        lambda decoder: likelihoods.DiscretizedLogistic(decoder(2)),
        "the mass of each grey level under a logistic distribution",
    ),
)


def _vamp(latent: int, guide: nn.Module, images: Tensor, components: int) -> nn.Module:
    """Return a VampPrior whose pseudo-inputs start as some of the images."""
    if not 1 <= components <= len(images):
        raise ValueError(f"--components: wanted 1 to {len(images)} training images, got {components}")
    return priors.Vamp(guide, images[torch.randperm(len(images))[:components]] / 255)


def _masked_shapes(latent: int, *_: Any, flow_depth: int, flow_width: int | None) -> list[tuple[int, ...]]:
    """Return the shapes of the largest layer of each masked network; Pyro's code reads values to build one."""
    width = default_width(latent, flow_width)
    return [(width, width)] * flow_depth


def _flow_prior(word: str, steps: Callable[..., list[nn.Module]], help: str) -> Part:
    def build(latent: int, *_: Any, flow_depth: int, flow_width: int | None) -> nn.Module:
        return priors.Flow(latent, steps, flow_depth, flow_width)

    return Part(word, build, help, (FLOW_DEPTH, FLOW_WIDTH), _masked_shapes)


# build(latent, guide, images, **options), for images (N, C, H, W), uint8
PRIORS = table(
    Part("standard", lambda latent, *_: priors.StandardNormal(latent), "the standard normal"),
    Part("diagonal", lambda latent, *_: priors.DiagonalNormal(latent), "a normal with learned mean and scales"),
    Part(
        "mixture",
        lambda latent, *_, components: priors.Mixture(latent, components),
        "a mixture of Gaussians",
        (COMPONENTS,),
    ),
    Part(
        "vamp",
        _vamp,
        "the mean of the guide over learned pseudo-inputs, which start as training images",
        (COMPONENTS,),
        shapes=lambda latent, guide, images, components: [(components, *images.shape[1:])],
    ),
    _flow_prior("autoregressive", priors.autoregressive, "an affine autoregressive flow"),
    _flow_prior("spline", priors.spline, "an autoregressive flow of splines"),
)


def _flow_guide(steps: Callable[..., list[nn.Module]]) -> Callable[..., nn.Module]:
    def build(encoder: nn.Module, latent: int, flow_depth: int, flow_width: int | None) -> nn.Module:
        return guides.Flow(encoder, latent, steps, flow_depth, flow_width)

    return build


# build(encoder, latent, **options)
GUIDES = table(
    Part("meanfield", guides.MeanField, "a normal with a diagonal covariance"),
    Part("full-rank", guides.FullRank, "a normal with any covariance"),
    Part("low-rank", guides.LowRank, "a normal with a covariance of low rank beside the diagonal", (RANK,)),
    Part(
        "inverse-autoregressive",
        _flow_guide(guides.inverse_autoregressive),
        "an inverse autoregressive flow",
        (FLOW_DEPTH, FLOW_WIDTH),
        shapes=lambda encoder, latent, **options: [*shapes_of(encoder), *_masked_shapes(latent, **options)],
    ),
    Part("planar", _flow_guide(guides.planar), "a planar flow", (FLOW_DEPTH, FLOW_WIDTH)),
)


class Networks(NamedTuple):
    """Encoder and decoder of one kind, and the widths of the encoder's dense layers."""

    hidden: tuple[int, ...]
    encoder: Callable[[Shape], nn.Module]
    decoder: Callable[[Shape, int], nn.Module]


def _conv(
    latent: int, channels: Iterable[int], activation: networks.Activation, hidden: Iterable[int] | None
) -> Networks:
    widths = tuple(hidden) if hidden is not None else WIDTHS_OF_FEW if latent <= FEW else (WIDTH,)
    maps = tuple(channels)
    return Networks(
        widths,
        lambda shape: networks.ConvEncoder(shape, maps, widths, activation),
        lambda shape, out: networks.ConvDecoder(latent, shape, out, maps[::-1], widths[::-1], activation),
    )


def _mlp(latent: int, activation: networks.Activation, hidden: Iterable[int] | None) -> Networks:
    widths = tuple(hidden) if hidden is not None else (WIDTH,)
    return Networks(
        widths,
        lambda shape: networks.MLPEncoder(shape, widths, activation),
        lambda shape, out: networks.MLPDecoder(latent, shape, out, widths[::-1], activation),
    )


# build(latent, **options), which returns Networks
NETWORKS = table(
    Part("conv", _conv, "convolutions and dense layers", (CHANNELS, ACTIVATION, HIDDEN)),
    Part("mlp", _mlp, "dense layers", (ACTIVATION, HIDDEN)),
)


def _of_pyro(elbo: type[ELBO]) -> Callable[[int], ELBO]:
    """Return a builder of an estimator of Pyro's; its particles lie in a plate of their own at dim −2."""
    return lambda particles: elbo(particles, vectorize_particles=particles > 1, max_plate_nesting=1)


def _estimator(word: str, elbo: Callable[[int], ELBO], help: str) -> Part:
    return Part(word, lambda particles: elbo(particles), help, (PARTICLES,))


# build(**options)
ESTIMATORS = table(
    _estimator("trace", _of_pyro(Trace_ELBO), "L^A, Monte Carlo for every term"),
    _estimator("meanfield", _of_pyro(TraceMeanField_ELBO), "L^B, the KL in closed form"),
    _estimator("sticking-the-landing", estimators.StickingTheLanding, "L^A without the score of the guide"),
    _estimator("importance-weighted", estimators.ImportanceWeighted, "L_K"),
    _estimator("doubly-reparameterized", estimators.DoublyReparameterized, "L_K by a gradient of lower variance"),
    _estimator("score-function", estimators.ScoreFunction, "L^A by the log-derivative trick"),
    _estimator(
        "score-function-baseline",
        partial(estimators.ScoreFunction, baseline="leave-one-out"),
        "the same with a leave-one-out baseline",
    ),
    Part("wake-sleep", estimators.WakeSleep, "wake phase for the model, sleep phase for the guide; no bound"),
)

LIKELIHOOD = Option("lik", str, "bernoulli", "family of p(x | z)", LIKELIHOODS)
PRIOR = Option("prior", str, "standard", "p(z)", PRIORS)
GUIDE = Option("guide", str, "meanfield", "q(z | x)", GUIDES)
NETWORK = Option("net", str, "conv", "encoder and decoder", NETWORKS)
ESTIMATOR = Option("estimator", str, "trace", "of the bound and its gradient", ESTIMATORS)
SLOTS = (LIKELIHOOD, PRIOR, GUIDE, NETWORK)
SETTINGS: Mapping[str, Option] = {
    option.name: option for slot in SLOTS for option in (slot, *options_of(slot).values())
} | {LATENT.name: LATENT}
TAKEN_BY = taken_by(*SLOTS)


class PartSettings(SimpleNamespace):
    """The settings of a program's parts: those of ``SETTINGS``, each checked, with its default where none is given.

    >>> PartSettings(lik="poisson")
    Traceback (most recent call last):
        ...
    ValueError: lik: wanted one of bernoulli, ..., got 'poisson'
    """

    def __init__(self, **settings: Any) -> None:
        if unknown := sorted(set(settings) - set(SETTINGS)):
            raise ValueError(f"settings: wanted some of {', '.join(SETTINGS)}, got {', '.join(unknown)}")
        super().__init__(**{name: settings.get(name, option.default) for name, option in SETTINGS.items()})
        for name, value in vars(self).items():
            SETTINGS[name].check(value)

    @classmethod
    def of(cls, options: Any) -> "PartSettings":
        """Return the settings among the attributes of ``options``, with the dense layers written out."""
        values = {name: getattr(options, name) for name in SETTINGS} | {"hidden": hidden(options)}
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def build_vae(settings: Any, images: Tensor) -> VAE:
    """Return the program that the settings describe, for the images that train it, uint8 (N, C, H, W).

    ``settings``: PartSettings, or anything with its attributes, such as the options of a command line. The parameters
    are drawn from torch's generator.

    >>> vae = build_vae(PartSettings(net="mlp", hidden=(16,)), torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
    >>> vae.prior().event_shape
    torch.Size([2])
    """
    channels, height, width = images.shape[1:]
    shape = (channels, height, width)
    guide = build_guide(settings, shape)
    return VAE(build_prior(settings, guide, images), build_likelihood(settings, shape), guide)


def build_prior(settings: Any, guide: nn.Module, images: Tensor) -> nn.Module:
    """Return the prior; Vamp's pseudo-inputs start as some of the images."""
    return PRIORS[settings.prior](settings, settings.latent, guide, images)


def build_guide(settings: Any, shape: Shape) -> nn.Module:
    """Return the guide with its encoder, for images of shape (C, H, W)."""
    return GUIDES[settings.guide](settings, build_encoder(settings, shape), settings.latent)


def build_likelihood(settings: Any, shape: Shape) -> nn.Module:
    """Return the likelihood with its decoder, for images of shape (C, H, W)."""
    return LIKELIHOODS[settings.lik](settings, decoders(settings, shape))


def build_encoder(settings: Any, shape: Shape) -> nn.Module:
    """Return the network of the guide."""
    return build_networks(settings).encoder(shape)


def decoders(settings: Any, shape: Shape) -> Callable[[int], nn.Module]:
    """Return a function from the number of maps for each channel to the network of the likelihood."""
    return lambda maps: build_networks(settings).decoder(shape, shape[0] * maps)


def build_networks(settings: Any) -> Networks:
    """Return the encoder and the decoder that the settings describe."""
    return NETWORKS[settings.net](settings, settings.latent)


def build_estimator(settings: Any, particles: int | None = None) -> ELBO:
    """Return the estimator; ``particles`` replaces the number of particles in the settings."""
    values = vars(settings) if particles is None else {**vars(settings), "particles": particles}
    if values["particles"] < 1:
        raise ValueError(f"--particles: wanted at least 1, got {values['particles']}")
    return ESTIMATORS[settings.estimator](SimpleNamespace(**values))


def hidden(settings: Any) -> tuple[int, ...]:
    """Return the widths of the encoder's dense layers; the decoder has them in reverse."""
    return build_networks(settings).hidden


# Names of this module in 0.1. They are imported when used, since ``saved`` imports this module.
__getattr__, _ = lazy(
    __name__,
    dict.fromkeys(("METRICS", "PARAMETERS", "describe_model", "load_vae", "read_metrics"), "pyro_vae.saved"),
)
