"""Folders of runs of formats 1 to 3: settings and checksums in metrics.json, a state dict in parameters.pt."""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_vae.conditional import Conditional
from pyro_vae.config import (
    GUIDES,
    LIKELIHOODS,
    PRIORS,
    SETTINGS,
    PartSettings,
    build_encoder,
    build_vae,
    decoders,
)
from pyro_vae.files import CheckpointError, load_tree, read_bytes
from pyro_vae.networks import Shape
from pyro_vae.random import seeded
from pyro_vae.records import LARGEST_SIZE, check_size
from pyro_vae.vae import VAE

METRICS, OLD_PARAMETERS = "metrics.json", "parameters.pt"
NEWEST = 3  # of these formats; 2 had no checksum of the model; 1 named no model, only all options of the command line
LARGEST_JSON = 1 << 24  # bytes


def load_old(folder: Path) -> VAE | Conditional:
    """Load the trained program in the folder of a run of formats 1 to 3, onto the CPU.

    Settings choose from the tables of ``config``, the parameters can run no code, and neither can claim more memory
    than the files have. Raises CheckpointError for a folder that is not that of a finished run, or is damaged.

    >>> load_old(Path("nowhere"))
    Traceback (most recent call last):
        ...
    pyro_vae.files.CheckpointError: nowhere/metrics.json cannot be read (No such file or directory)
    """
    metrics = read_metrics(folder / METRICS)
    data = read_bytes(folder / OLD_PARAMETERS)
    try:
        settings, shape, digest = _model(metrics)
        if digest is not None and hashlib.sha256(data).hexdigest() != digest:
            raise ValueError(f"{OLD_PARAMETERS} is damaged: it does not have the checksum in {METRICS}")
        state = load_tree(io.BytesIO(data), folder / OLD_PARAMETERS)
        _check_memory(settings, shape, state)
        with seeded(0):
            vae = build_vae(settings, _images(shape))
        vae.load_state_dict(state)
    except CheckpointError:
        raise
    except Exception as error:  # of any kind, since the settings may be anything
        reason = " ".join(str(error).split())[:500]
        raise CheckpointError(f"{folder} holds no model that can be loaded: {reason}") from error
    return vae


def read_metrics(path: Path) -> dict[str, Any]:
    """Return the content of a metrics.json; CheckpointError unless it is a JSON object."""
    data = read_bytes(path, LARGEST_JSON)
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no JSON ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: wanted an object, got {type(content).__name__}")
    return content


def checksum(model: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the JSON of a model's shape, parts and the checksum of its parameters."""
    return hashlib.sha256(json.dumps(model, sort_keys=True).encode()).hexdigest()


def _model(metrics: Mapping[str, Any]) -> tuple[PartSettings, Shape, str | None]:
    """Return settings of the parts, shape of the images and SHA-256 of the parameters, from any format."""
    version = metrics.get("format", 1)
    if version in (2, NEWEST):
        model = _object(metrics, "model")
        parts, shape, digest = _object(model, "parts"), model.get("shape"), str(model.get("parameters_sha256"))
        described = {name: value for name, value in model.items() if name != "sha256"}
        if version == NEWEST and model.get("sha256") != checksum(described):
            raise ValueError(f"the model in {METRICS} is damaged: it does not have the checksum that it names")
        if unknown := sorted(set(parts) - set(SETTINGS)):
            raise ValueError(f"unknown settings {unknown}; a later version wrote them")
    elif version == 1:
        settings = _object(metrics, "settings")
        parts, digest = {name: settings[name] for name in SETTINGS if name in settings}, None
        shape = _object(metrics, "dataset").get("shape")
    else:
        raise ValueError(
            f"format {version!r}, where this version of pyro_vae reads 1 to {NEWEST} beside a file {OLD_PARAMETERS}"
        )
    parts = {name: tuple(value) if isinstance(value, list) else value for name, value in parts.items()}
    return PartSettings(**parts), _shape(shape), digest


def _shape(sizes: Any) -> Shape:
    if not isinstance(sizes, list) or len(sizes) != 3:
        raise ValueError(f"shape: wanted [C, H, W], got {str(sizes)[:100]}")
    for size in sizes:
        check_size("shape", size)
    channels, height, width = sizes
    return channels, height, width


def _object(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = content.get(name)
    if not isinstance(value, dict):
        raise ValueError(f"{METRICS}: wanted an object {name!r}, got {type(value).__name__}")
    return value


def _images(shape: Shape) -> Tensor:
    """Return as many images as a prior may want, in the memory of one."""
    return torch.zeros(1, *shape, dtype=torch.uint8).expand(LARGEST_SIZE, -1, -1, -1)


def _check_memory(settings: PartSettings, shape: Shape, state: Mapping[str, Any]) -> None:
    """Raise ValueError, before any memory is taken, if the settings need tensors that the file does not hold."""
    if not all(torch.is_tensor(value) and value.is_contiguous() for value in state.values()):
        raise ValueError(f"{OLD_PARAMETERS} holds something else than plain tensors")
    with torch.device("meta"):
        encoder = build_encoder(settings, shape)
    needed = [
        *PRIORS[settings.prior].parameter_shapes(settings, settings.latent, None, _images(shape)),
        *GUIDES[settings.guide].parameter_shapes(settings, encoder, settings.latent),
        *LIKELIHOODS[settings.lik].parameter_shapes(settings, decoders(settings, shape)),
        *([(shape[1] * shape[2], settings.classes)] if settings.classes else []),
    ]
    lacking = Counter(needed) - Counter(tuple(value.shape) for value in state.values())
    if lacking:
        raise ValueError(f"the settings ask for tensors of shapes {list(lacking)[:3]}, and {OLD_PARAMETERS} has none")
