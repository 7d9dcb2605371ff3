"""What a run of the command line keeps of its model."""

from typing import Any

from torch import nn

from pyro_vae.config import PartSettings
from pyro_vae.networks import Shape
from pyro_vae.saved.programs import FORMAT, encoded_program


def describe_model(vae: nn.Module, settings: Any, shape: Shape) -> tuple[dict[str, Any], bytes]:
    """Return what a run keeps of its model: entries for metrics.json, and the bytes of model.safetensors.

    ``load_vae`` reads the latter alone. The entries say in the words of the command line what it is.

    >>> import torch
    >>> from pyro_vae.config import build_vae
    >>> settings = PartSettings(net="mlp", hidden=(16,))
    >>> vae = build_vae(settings, torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
    >>> entries, _ = describe_model(vae, settings, (1, 8, 8))
    >>> entries["model"]["shape"], entries["model"]["parts"]["hidden"]
    ([1, 8, 8], (16,))
    """
    model = {"shape": list(shape), "parts": vars(PartSettings.of(settings))}
    return {"format": FORMAT, "model": model}, encoded_program(vae)
