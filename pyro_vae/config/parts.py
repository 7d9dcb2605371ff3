"""The tables of the parts of a program: likelihoods, priors, guides and networks by their words."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from pyro_vae._lazy import LazyModule
from pyro_vae.records import Option, Part, Words, options_of, shapes_of, table, taken_by

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from pyro_vae import guides, likelihoods, networks, priors
    from pyro_vae.distributions import transforms
    from pyro_vae.networks import Activation, Shape
else:  # imported when a part is built: --help and errors of a command line come without torch
    torch, nn, guides, likelihoods, networks, priors, transforms = map(
        LazyModule,
        (
            "torch",
            "torch.nn",
            "pyro_vae.guides",
            "pyro_vae.likelihoods",
            "pyro_vae.networks",
            "pyro_vae.priors",
            "pyro_vae.distributions.transforms",
        ),
    )

BINARIZE = Words(
    dynamic=lambda: likelihoods.dynamic,
    threshold=lambda: likelihoods.threshold,
    intensity=lambda: likelihoods.intensity,
)
ACTIVATIONS = Words(relu=lambda: nn.ReLU, silu=lambda: nn.SiLU, tanh=lambda: nn.Tanh)
WIDTH = 400  # of the dense layer
# With so few latent dimensions a decoder has more to do, and the conv networks have two dense layers.
FEW, WIDTHS_OF_FEW = 5, (256, 256)
SHARED_LOG_SCALE = -1.5  # where a learned scale that all pixels share starts

BINARIZATION = Option(
    "binarize",
    str,
    "dynamic",
    "how pixels become black or white: dynamic, drawn anew for each batch; threshold, white above 127; intensity, the "
    "grey level itself as a probability",
    BINARIZE,
)
BINS = Option("bins", int, 16, "number of bins, 2 to 256", metavar="N")
LOGISTICS = Option("logistics", int, 5, "number of logistic distributions in the mixture", metavar="K")
SCALE = Option(
    "scale",
    str,
    "pixel",
    "standard deviation: pixel, learned for each pixel; shared, one learned for all; or a fixed number",
)
COMPONENTS = Option("components", int, 100, "number of Gaussians, or of pseudo-inputs", metavar="K")
RANK = Option("rank", int, 1, "rank beside the diagonal", metavar="R")
FLOW_DEPTH = Option("flow_depth", int, 2, "steps of the flow", metavar="STEPS", largest=1000)
FLOW_WIDTH = Option(
    "flow_width",
    int,
    None,
    "width of the hidden layers of the flow's steps (default: twice the latent dimensions, at least 64)",
    metavar="UNITS",
)
LATENT = Option("latent", int, 2, "dimensions of the code z", metavar="D")
CLASSES = Option("classes", int, None, "number of classes y of p(x | z, y); None for p(x | z)")
CHANNELS = Option(
    "channels",
    int,
    (32, 64),
    "maps of the 4 × 4 convolutions of stride 2, in the decoder reversed",
    metavar="MAPS",
    nargs="+",
)
ACTIVATION = Option("activation", str, "relu", "what follows each layer", ACTIVATIONS)
HIDDEN = Option(
    "hidden",
    int,
    None,
    f"widths of the dense layers, in the decoder reversed; without a number there are none (default: {WIDTH}; conv "
    f"with up to {FEW} latent dimensions: {' '.join(map(str, WIDTHS_OF_FEW))})",
    metavar="UNITS",
    nargs="*",
)


def _normal(decoder: "Callable[[int], nn.Module]", scale: str) -> "nn.Module":
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
    Part("logistic", lambda decoder: likelihoods.DiscretizedLogistic(decoder(2)), "a rounded logistic distribution"),
    Part(
        "logistic-mixture",
        lambda decoder, logistics: likelihoods.DiscretizedLogisticMixture(decoder(3 * logistics), logistics),
        "a mixture of rounded logistic distributions",
        (LOGISTICS,),
    ),
)


def _vamp(latent: int, guide: "nn.Module", images: "Tensor", components: int) -> "nn.Module":
    """Return a VampPrior whose pseudo-inputs start as some of the images."""
    if not 1 <= components <= len(images):
        raise ValueError(f"--components: wanted 1 to {len(images)} training images, got {components}")
    return priors.Vamp(guide, images[torch.randperm(len(images))[:components]] / 255)


def _masked_shapes(latent: int, *_: Any, flow_depth: int, flow_width: int | None) -> list[tuple[int, ...]]:
    """Return the shapes of the largest layer of each masked network; Pyro's code reads values to build one."""
    width = transforms.default_width(latent, flow_width)
    return [(width, width)] * flow_depth


def _flow_prior(word: str, steps: Callable[[], Callable], help: str) -> Part:
    def build(latent: int, *_: Any, flow_depth: int, flow_width: int | None) -> "nn.Module":
        return priors.Flow(latent, steps(), flow_depth, flow_width)

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
    _flow_prior("autoregressive", lambda: priors.autoregressive, "an affine autoregressive flow"),
    _flow_prior("spline", lambda: priors.spline, "an autoregressive flow of splines"),
)


def _flow_guide(steps: Callable[[], Callable]) -> "Callable[..., nn.Module]":
    def build(encoder: "nn.Module", latent: int, flow_depth: int, flow_width: int | None) -> "nn.Module":
        return guides.Flow(encoder, latent, steps(), flow_depth, flow_width)

    return build


# build(encoder, latent, **options)
GUIDES = table(
    Part("meanfield", lambda encoder, latent: guides.MeanField(encoder, latent), "a normal with a diagonal covariance"),
    Part("full-rank", lambda encoder, latent: guides.FullRank(encoder, latent), "a normal with any covariance"),
    Part(
        "low-rank",
        lambda encoder, latent, rank: guides.LowRank(encoder, latent, rank),
        "a normal with a covariance of low rank beside the diagonal",
        (RANK,),
    ),
    Part(
        "inverse-autoregressive",
        _flow_guide(lambda: guides.inverse_autoregressive),
        "an inverse autoregressive flow",
        (FLOW_DEPTH, FLOW_WIDTH),
        shapes=lambda encoder, latent, **options: [*shapes_of(encoder), *_masked_shapes(latent, **options)],
    ),
    Part("planar", _flow_guide(lambda: guides.planar), "a planar flow", (FLOW_DEPTH, FLOW_WIDTH)),
)


class Networks(NamedTuple):
    """Encoder and decoder of one kind, and the widths of the encoder's dense layers.

    The encoder is made for the shape of images, the decoder for a number of inputs, a shape and a number of maps.
    """

    hidden: tuple[int, ...]
    encoder: "Callable[[Shape], nn.Module]"
    decoder: "Callable[[int, Shape, int], nn.Module]"


def _conv(latent: int, channels: Iterable[int], activation: "Activation", hidden: Iterable[int] | None) -> Networks:
    widths = tuple(hidden) if hidden is not None else WIDTHS_OF_FEW if latent <= FEW else (WIDTH,)
    maps = tuple(channels)
    return Networks(
        widths,
        lambda shape: networks.ConvEncoder(shape, maps, widths, activation),
        lambda inputs, shape, out: networks.ConvDecoder(inputs, shape, out, maps[::-1], widths[::-1], activation),
    )


def _mlp(latent: int, activation: "Activation", hidden: Iterable[int] | None) -> Networks:
    widths = tuple(hidden) if hidden is not None else (WIDTH,)
    return Networks(
        widths,
        lambda shape: networks.MLPEncoder(shape, widths, activation),
        lambda inputs, shape, out: networks.MLPDecoder(inputs, shape, out, widths[::-1], activation),
    )


# build(latent, **options), which returns Networks
NETWORKS = table(
    Part("conv", _conv, "convolutions and dense layers", (CHANNELS, ACTIVATION, HIDDEN)),
    Part("mlp", _mlp, "dense layers", (ACTIVATION, HIDDEN)),
)


LIKELIHOOD = Option("lik", str, "bernoulli", "family of p(x | z)", LIKELIHOODS)
PRIOR = Option("prior", str, "standard", "p(z)", PRIORS)
GUIDE = Option("guide", str, "meanfield", "q(z | x)", GUIDES)
NETWORK = Option("net", str, "conv", "encoder and decoder", NETWORKS)
SLOTS = (LIKELIHOOD, PRIOR, GUIDE, NETWORK)
SETTINGS: Mapping[str, Option] = {
    option.name: option for slot in SLOTS for option in (slot, *options_of(slot).values())
} | {LATENT.name: LATENT, CLASSES.name: CLASSES}
TAKEN_BY = taken_by(*SLOTS)
