"""Folders of small runs, for several tests."""

import json
from pathlib import Path

import torch

from pyro_vae.config import SLOTS, PartSettings, build_vae
from pyro_vae.saved import METRICS, PARAMETERS, checksum, describe_model

FIXTURE = Path(__file__).parent / "fixtures/format1"
PIXELS = torch.randint(256, (20, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
CHOSEN = [(slot.name, word) for slot in SLOTS for word in slot.choices]


def saved(folder, **settings):
    settings = PartSettings(**{"net": "mlp", "hidden": (16,), "components": 5, "latent": 3, **settings})
    torch.manual_seed(1)
    vae = build_vae(settings, PIXELS)
    metrics, parameters = describe_model(vae, settings, (1, 8, 8))
    (folder / PARAMETERS).write_bytes(parameters)
    (folder / METRICS).write_text(json.dumps(metrics))
    return vae


def change(folder, *path, value):
    metrics = json.loads((folder / METRICS).read_text())
    part = metrics
    for name in path[:-1]:
        part = part[name]
    part[path[-1]] = value
    if isinstance(metrics["model"], dict):  # as somebody would who means it
        metrics["model"]["sha256"] = checksum({name: v for name, v in metrics["model"].items() if name != "sha256"})
    (folder / METRICS).write_text(json.dumps(metrics))
