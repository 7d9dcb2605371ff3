"""Folders of small runs, for several tests."""

import hashlib
import json
from pathlib import Path

import torch

from pyro_vae.config import SLOTS, PartSettings, build_vae
from pyro_vae.saved import METRICS, PARAMETERS, checksum, describe_model
from pyro_vae.saved.old_runs import OLD_PARAMETERS

FIXTURE = Path(__file__).parent / "fixtures/format1"
PIXELS = torch.randint(256, (20, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
CHOSEN = [(slot.name, word) for slot in SLOTS for word in slot.choices]


def chosen(**settings):
    """Settings and program of small dense networks."""
    settings = PartSettings(**{"net": "mlp", "hidden": (16,), "components": 5, "latent": 3, **settings})
    torch.manual_seed(1)
    return settings, build_vae(settings, PIXELS)


def saved_in_format_3(folder, **settings):
    """A run's folder as version 0.1 wrote it."""
    settings, vae = chosen(**settings)
    torch.save(dict(vae.state_dict()), folder / OLD_PARAMETERS)
    digest = hashlib.sha256((folder / OLD_PARAMETERS).read_bytes()).hexdigest()
    model = {"shape": [1, 8, 8], "parts": vars(PartSettings.of(settings)), "parameters_sha256": digest}
    (folder / METRICS).write_text(json.dumps({"format": 3, "model": {**model, "sha256": checksum(model)}}))
    return vae


def saved(folder, **settings):
    """A run's folder."""
    settings, vae = chosen(**settings)
    metrics, parameters = describe_model(vae, settings, (1, 8, 8))
    (folder / PARAMETERS).write_bytes(parameters)
    (folder / METRICS).write_text(json.dumps(metrics))
    return vae


def change(folder, *path, value):
    """Change a value of metrics.json in the format of version 0.1, and its checksum."""
    metrics = json.loads((folder / METRICS).read_text())
    part = metrics
    for name in path[:-1]:
        part = part[name]
    part[path[-1]] = value
    if isinstance(metrics["model"], dict):  # as somebody would who means it
        metrics["model"]["sha256"] = checksum({name: v for name, v in metrics["model"].items() if name != "sha256"})
    (folder / METRICS).write_text(json.dumps(metrics))
