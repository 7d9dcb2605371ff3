"""The settings of a program's parts, and the program that they describe."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from pyro_vae._lazy import LazyModule
from pyro_vae.config.parts import GUIDES, LIKELIHOODS, NETWORKS, PRIORS, SETTINGS, Networks

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pyro_vae import conditional, vae
    from pyro_vae.networks import Shape
else:
    conditional, vae = map(LazyModule, ("pyro_vae.conditional", "pyro_vae.vae"))


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
        values = {name: getattr(options, name) for name in SETTINGS if name != "classes" or hasattr(options, name)}
        values |= {"hidden": hidden(options)}
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def build_vae(settings: Any, images: "Tensor") -> "vae.VAE | conditional.Conditional":
    """Return the program that the settings describe, for the images that train it, uint8 (N, C, H, W).

    ``settings``: PartSettings, or anything with its attributes, such as the options of a command line. With a number of
    ``classes`` it is p(x | z, y). The parameters are drawn from torch's generator.

    >>> import torch
    >>> vae = build_vae(PartSettings(net="mlp", hidden=(16,)), torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
    >>> vae.prior().event_shape
    torch.Size([2])
    """
    channels, height, width = images.shape[1:]
    shape = (channels, height, width)
    guide = build_guide(settings, shape)
    prior, likelihood = build_prior(settings, guide, images), build_likelihood(settings, shape)
    if _classes(settings):
        return conditional.Conditional(prior, likelihood, guide, _classes(settings), (height, width))
    return vae.VAE(prior, likelihood, guide)


def build_prior(settings: Any, guide: "nn.Module", images: "Tensor") -> "nn.Module":
    """Return the prior; Vamp's pseudo-inputs start as some of the images."""
    if settings.prior == "vamp" and _classes(settings):
        raise ValueError("--prior vamp: its pseudo-inputs have no class; with --conditional choose another prior")
    return PRIORS[settings.prior](settings, settings.latent, guide, images)


def build_guide(settings: Any, shape: "Shape") -> "nn.Module":
    """Return the guide with its encoder, for images of shape (C, H, W)."""
    return GUIDES[settings.guide](settings, build_encoder(settings, shape), settings.latent)


def build_likelihood(settings: Any, shape: "Shape") -> "nn.Module":
    """Return the likelihood with its decoder, for images of shape (C, H, W)."""
    return LIKELIHOODS[settings.lik](settings, decoders(settings, shape))


def build_encoder(settings: Any, shape: "Shape") -> "nn.Module":
    """Return the network of the guide; a class is one more channel."""
    channels, height, width = shape
    return build_networks(settings).encoder((channels + bool(_classes(settings)), height, width))


def decoders(settings: Any, shape: "Shape") -> "Callable[[int], nn.Module]":
    """Return a function from the number of maps for each channel to the network of the likelihood."""
    inputs = settings.latent + _classes(settings)
    return lambda maps: build_networks(settings).decoder(inputs, shape, shape[0] * maps)


def build_networks(settings: Any) -> Networks:
    """Return the encoder and the decoder that the settings describe."""
    return NETWORKS[settings.net](settings, settings.latent)


def hidden(settings: Any) -> tuple[int, ...]:
    """Return the widths of the encoder's dense layers; the decoder has them in reverse."""
    return build_networks(settings).hidden


def _classes(settings: Any) -> int:
    """Return the number of classes of p(x | z, y), 0 for p(x | z)."""
    return getattr(settings, "classes", None) or 0
