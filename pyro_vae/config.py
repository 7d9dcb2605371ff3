"""Programs from words: the parts that a command line or saved settings name, and models read from a run's folder.

The only place of the library where strings choose mathematics, and they choose from the tables below: nothing that a
file says is evaluated, imported or unpickled.
"""

import hashlib
import io
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae import guides, likelihoods, networks, priors
from pyro_vae.distributions.transforms import default_width
from pyro_vae.files import CheckpointError, expanded, load_tree, read_bytes
from pyro_vae.networks import Shape
from pyro_vae.random import seeded
from pyro_vae.vae import VAE

BINARIZE = {
    "dynamic": likelihoods.dynamic,
    "threshold": likelihoods.threshold,
    "intensity": likelihoods.intensity,
}
PRIORS = ("standard", "diagonal", "mixture", "vamp", "autoregressive", "spline")
GUIDES = ("meanfield", "full-rank", "low-rank", "inverse-autoregressive", "planar")
LIKELIHOODS = ("bernoulli", "continuous-bernoulli", "normal", "beta", "categorical", "logistic")
NETWORKS = ("conv", "mlp")
ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU, "tanh": nn.Tanh}
FEW = 5  # latent dimensions of which a decoder has to make so much that the conv networks have two dense layers
SHARED_LOG_SCALE = -1.5  # where a learned scale that all pixels share starts

METRICS, PARAMETERS = "metrics.json", "parameters.pt"
FORMAT = 3  # of a run's folder; 2 had no checksum of the model; 1 named no model, only all options of the command line
CHOICES = {
    "lik": LIKELIHOODS,
    "binarize": tuple(BINARIZE),
    "prior": PRIORS,
    "guide": GUIDES,
    "net": NETWORKS,
    "activation": tuple(ACTIVATIONS),
}
FLOWS = {"prior": ("autoregressive", "spline"), "guide": ("inverse-autoregressive", "planar")}
TAKEN_BY: dict[str, dict[str, tuple[str, ...]]] = {  # settings that some words take and the others ignore
    "binarize": {"lik": ("bernoulli",)},
    "bins": {"lik": ("categorical",)},
    "scale": {"lik": ("normal",)},
    "components": {"prior": ("mixture", "vamp")},
    "rank": {"guide": ("low-rank",)},
    "flow_depth": FLOWS,
    "flow_width": FLOWS,
    "channels": {"net": ("conv",)},
}
LARGEST_SIZE = 1 << 20  # of any layer, code or image
LARGEST_JSON = 1 << 24  # bytes


@dataclass(frozen=True)
class PartSettings:
    """What the parts of a program are: the options of the command line that choose them.

    >>> PartSettings(lik="poisson")
    Traceback (most recent call last):
        ...
    ValueError: lik: wanted one of bernoulli, continuous-bernoulli, normal, beta, categorical, logistic, got 'poisson'
    """

    lik: str = "bernoulli"
    binarize: str = "dynamic"
    bins: int = 16
    scale: str = "pixel"
    prior: str = "standard"
    components: int = 100
    guide: str = "meanfield"
    rank: int = 1
    flow_depth: int = 2
    flow_width: int | None = None
    net: str = "conv"
    latent: int = 2
    hidden: tuple[int, ...] | None = None
    channels: tuple[int, ...] = (32, 64)
    activation: str = "relu"

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: wanted one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        for name in ("bins", "components", "rank", "flow_depth", "latent"):
            _check_size(name, getattr(self, name))
        if self.flow_width is not None:
            _check_size("flow_width", self.flow_width)
        for name in ("hidden", "channels"):
            for width in getattr(self, name) or ():
                _check_size(name, width)
        layers = len(self.hidden or ()) + len(self.channels)
        if not isinstance(self.scale, str) or layers > 100 or self.flow_depth > 1000:
            raise ValueError(
                "settings: wanted a word for scale, at most 100 layers and 1000 steps of a flow, "
                f"got {str(self.scale)[:20]!r}, {layers} and {self.flow_depth}"
            )

    @classmethod
    def of(cls, options: Any) -> "PartSettings":
        """Those among the attributes of ``options``, the hidden layers that are by default written out."""
        names = [field.name for field in fields(cls)]
        return cls(
            **{name: getattr(options, name) for name in names}
            | {"hidden": hidden(options), "channels": tuple(options.channels)}
        )


def build_vae(settings: Any, images: Tensor) -> VAE:
    """The program that the settings describe, for images like these (N, C, H, W), uint8: those it will be trained on.

    ``settings``: PartSettings, or anything with its attributes, such as the options of a command line. The parameters
    are drawn from torch's generator.

    >>> vae = build_vae(PartSettings(net="mlp", hidden=(16,)), torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
    >>> vae.prior().event_shape
    torch.Size([2])
    """
    guide = build_guide(settings, tuple(images.shape[1:]))
    return VAE(build_prior(settings, guide, images), build_likelihood(settings, tuple(images.shape[1:])), guide)


def build_prior(settings: Any, guide: nn.Module, images: Tensor) -> nn.Module:
    """The prior; Vamp's pseudo-inputs start as some of the images."""
    if settings.prior == "standard":
        return priors.StandardNormal(settings.latent)
    if settings.prior == "diagonal":
        return priors.DiagonalNormal(settings.latent)
    if settings.prior == "mixture":
        return priors.Mixture(settings.latent, settings.components)
    if settings.prior == "vamp":
        if not 1 <= settings.components <= len(images):
            raise ValueError(f"--components: wanted 1 to {len(images)} training images, got {settings.components}")
        chosen = images[torch.randperm(len(images))[: settings.components]]
        return priors.Vamp(guide, chosen / 255)
    steps = {"autoregressive": priors.autoregressive, "spline": priors.spline}[settings.prior]
    return priors.Flow(settings.latent, steps, settings.flow_depth, settings.flow_width)


def build_guide(settings: Any, shape: Shape) -> nn.Module:
    """The guide with its encoder, for images of shape (C, H, W)."""
    encoder = build_encoder(settings, shape)
    if settings.guide == "meanfield":
        return guides.MeanField(encoder, settings.latent)
    if settings.guide == "full-rank":
        return guides.FullRank(encoder, settings.latent)
    if settings.guide == "low-rank":
        return guides.LowRank(encoder, settings.latent, settings.rank)
    steps = {"inverse-autoregressive": guides.inverse_autoregressive, "planar": guides.planar}[settings.guide]
    return guides.Flow(encoder, settings.latent, steps, settings.flow_depth, settings.flow_width)


def build_likelihood(settings: Any, shape: Shape) -> nn.Module:
    """The likelihood with its decoder, for images of shape (C, H, W)."""

    def decoder(parameters_per_pixel: int) -> nn.Module:
        return build_decoder(settings, shape, shape[0] * parameters_per_pixel)

    if settings.lik == "bernoulli":
        return likelihoods.Bernoulli(decoder(1), binarize=BINARIZE[settings.binarize])
    if settings.lik == "continuous-bernoulli":
        return likelihoods.ContinuousBernoulli(decoder(1))
    if settings.lik == "normal":
        log_scale = log_scale_option(settings.scale)
        return likelihoods.Normal(decoder(2 if log_scale is None else 1), log_scale=log_scale)
    if settings.lik == "beta":
        return likelihoods.Beta(decoder(2))
    if settings.lik == "categorical":
        return likelihoods.Categorical(decoder(settings.bins), bins=settings.bins)
    return likelihoods.DiscretizedLogistic(decoder(2))


def log_scale_option(scale: str) -> float | nn.Parameter | None:
    """What ``likelihoods.Normal`` takes for ``--scale``."""
    if scale == "pixel":
        return None
    if scale == "shared":
        return nn.Parameter(torch.tensor(SHARED_LOG_SCALE))
    try:
        log_scale = math.log(float(scale))
    except ValueError:
        log_scale = math.nan
    if not math.isfinite(log_scale):
        raise ValueError(f"--scale: wanted 'pixel', 'shared' or a positive number, got {scale!r}")
    return log_scale


def build_encoder(settings: Any, shape: Shape) -> nn.Module:
    """The network of the guide."""
    layers = {"hidden": hidden(settings), "activation": ACTIVATIONS[settings.activation]}
    if settings.net == "mlp":
        return networks.MLPEncoder(shape, **layers)
    return networks.ConvEncoder(shape, settings.channels, **layers)


def build_decoder(settings: Any, shape: Shape, maps: int) -> nn.Module:
    """The network of the likelihood."""
    layers = {"hidden": hidden(settings)[::-1], "activation": ACTIVATIONS[settings.activation]}
    if settings.net == "mlp":
        return networks.MLPDecoder(settings.latent, shape, maps, **layers)
    return networks.ConvDecoder(settings.latent, shape, maps, settings.channels[::-1], **layers)


def hidden(settings: Any) -> tuple[int, ...]:
    """The encoder's dense layers; the decoder has them in reverse."""
    if settings.hidden is not None:
        return tuple(settings.hidden)
    return (256, 256) if settings.net == "conv" and settings.latent <= FEW else (400,)


def describe_model(vae: VAE, settings: Any, shape: Shape) -> tuple[dict[str, Any], bytes]:
    """What ``load_vae`` needs: entries for metrics.json, and the bytes of parameters.pt, a state dict.

    >>> settings = PartSettings(net="mlp", hidden=(16,))
    >>> vae = build_vae(settings, torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
    >>> entries, _ = describe_model(vae, settings, (1, 8, 8))
    >>> entries["model"]["shape"], entries["model"]["parts"]["hidden"]
    ([1, 8, 8], (16,))
    """
    file = io.BytesIO()
    torch.save(dict(vae.state_dict()), file)
    digest = hashlib.sha256(file.getbuffer()).hexdigest()
    model = {"shape": list(shape), "parts": asdict(PartSettings.of(settings)), "parameters_sha256": digest}
    return {"format": FORMAT, "model": {**model, "sha256": _checksum(model)}}, file.getvalue()


def load_vae(folder: Path | str, device: torch.device | str = "cpu") -> VAE:
    """The trained program in the folder of a run: what ``run.py`` wrote there, on a device.

    Reads folders of earlier versions too. Settings choose from this file's tables, the parameters can run no code, and
    neither can claim more memory than the files have. Raises CheckpointError for a folder that is not that of a
    finished run, is damaged, or is of a later version.

    >>> load_vae("nowhere")
    Traceback (most recent call last):
        ...
    pyro_vae.files.CheckpointError: nowhere/metrics.json cannot be read (No such file or directory)
    """
    folder = expanded(folder)
    metrics = read_metrics(folder / METRICS)
    data = read_bytes(folder / PARAMETERS)
    try:
        settings, shape, digest = _model(metrics)
        if digest is not None and hashlib.sha256(data).hexdigest() != digest:
            raise ValueError(f"{PARAMETERS} is damaged: it does not have the checksum in {METRICS}")
        state = load_tree(io.BytesIO(data), folder / PARAMETERS)
        _check_memory(settings, shape, state)
        with seeded(0):
            vae = build_vae(settings, torch.zeros(1, *shape, dtype=torch.uint8).expand(settings.components, -1, -1, -1))
        vae.load_state_dict(state)
    except CheckpointError:
        raise
    except Exception as error:  # whatever strange settings lead to
        reason = " ".join(str(error).split())[:500]
        raise CheckpointError(f"{folder} holds no model that can be loaded: {reason}") from error
    return vae.to(device)


def read_metrics(path: Path) -> dict[str, Any]:
    """The content of a metrics.json; CheckpointError where that is no JSON object."""
    data = read_bytes(path, LARGEST_JSON)
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no JSON ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: wanted an object, got {type(content).__name__}")
    return content


def _model(metrics: Mapping[str, Any]) -> tuple[PartSettings, Shape, str | None]:
    """Settings of the parts, shape of the images and SHA-256 of the parameters, from any format; ValueError."""
    known = {field.name for field in fields(PartSettings)}
    version = metrics.get("format", 1)
    if version in (2, FORMAT):
        model = _object(metrics, "model")
        parts, shape, digest = _object(model, "parts"), model.get("shape"), str(model.get("parameters_sha256"))
        described = {name: value for name, value in model.items() if name != "sha256"}
        if version == FORMAT and model.get("sha256") != _checksum(described):
            raise ValueError(f"the model in {METRICS} is damaged: it does not have the checksum that it names")
        if set(parts) - known:
            raise ValueError(f"unknown settings {sorted(set(parts) - known)}; a later version wrote them")
    elif version == 1:
        settings = _object(metrics, "settings")
        parts, shape, digest = {name: settings[name] for name in known & set(settings)}, None, None
        shape = _object(metrics, "dataset").get("shape")
    else:
        raise ValueError(f"format {version!r}, where this version of pyro_vae reads 1 to {FORMAT}")
    if not isinstance(shape, list) or len(shape) != 3:
        raise ValueError(f"shape: wanted [C, H, W], got {str(shape)[:100]}")
    for size in shape:
        _check_size("shape", size)
    parts = {name: tuple(value) if isinstance(value, list) else value for name, value in parts.items()}
    return PartSettings(**parts), tuple(shape), digest


def _checksum(model: Mapping[str, Any]) -> str:
    """SHA-256 of the JSON of a model's shape, parts and the checksum of its parameters."""
    return hashlib.sha256(json.dumps(model, sort_keys=True).encode()).hexdigest()


def _object(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    if not isinstance(content.get(name), dict):
        raise ValueError(f"{METRICS}: wanted an object {name!r}, got {type(content.get(name)).__name__}")
    return content[name]


def _check_memory(settings: PartSettings, shape: Shape, state: Mapping[str, Any]) -> None:
    """ValueError where the settings ask for tensors that the parameters are not: before any memory is taken."""
    if not all(torch.is_tensor(value) and value.is_contiguous() for value in state.values()):
        raise ValueError(f"{PARAMETERS} holds something else than plain tensors")
    lacking = Counter(_needed(settings, shape)) - Counter(tuple(value.shape) for value in state.values())
    if lacking:
        raise ValueError(f"the settings ask for tensors of shapes {list(lacking)[:3]}, and {PARAMETERS} has none")


def _needed(settings: PartSettings, shape: Shape) -> Iterator[tuple[int, ...]]:
    """Shapes of the large tensors of a program; those of masked networks, which need values to be built, by hand."""
    masked = (settings.prior in ("autoregressive", "spline")) + (settings.guide == "inverse-autoregressive")
    width = default_width(settings.latent, settings.flow_width)
    yield from [(width, width)] * masked * settings.flow_depth
    if settings.prior == "vamp":
        yield (settings.components, *shape)
    if settings.prior == "mixture":
        yield (settings.components, settings.latent)
    with torch.device("meta"):
        build = build_encoder if settings.guide == "inverse-autoregressive" else build_guide
        for module in (build(settings, shape), build_likelihood(settings, shape)):
            yield from (tuple(parameter.shape) for parameter in module.parameters())


def _check_size(name: str, value: Any) -> None:
    if type(value) is not int or not 1 <= value <= LARGEST_SIZE:
        raise ValueError(f"{name}: wanted a whole number from 1 to {LARGEST_SIZE}, got {str(value)[:100]}")
