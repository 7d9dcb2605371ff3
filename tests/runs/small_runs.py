"""Small runs of the command experiments/run.py, for several tests."""

import json

import numpy as np
from programs import FEW
from safetensors.torch import load_file

from experiments import run

SMALL = ["--net", "mlp", "--hidden", "16", "--epochs", "2", "--quiet"]


def command(tmp_path, *words):
    return run.main(["--dataset", "digits", *SMALL, "--out", str(tmp_path / "out"), *words])


def few_digits(folder):
    """A folder of 200 digits to train on, with their labels, for --dataset."""
    folder.mkdir()
    for split in ("train", "valid", "test"):
        part = getattr(FEW, split)
        np.save(folder / f"{split}.npy", part.images)
        np.save(folder / f"{split}_labels.npy", part.labels)
    return str(folder)


def state_of(folder):
    return load_file(folder / "model.safetensors")


def own_images(folder, sizes, shape=(1, 8, 8), labels=None, pixels=None):
    """A folder of images for --dataset; ``labels``: those of each split by name, repeated."""
    draw = np.random.RandomState(0)
    folder.mkdir()
    for split, size in zip(("train", "valid", "test"), sizes):
        random = draw.randint(256, size=(size, *shape)).astype(np.uint8)
        np.save(folder / f"{split}.npy", random if pixels is None else np.full_like(random, pixels))
        if split in (labels or {}):
            np.save(folder / f"{split}_labels.npy", np.resize(labels[split], size))
    return str(folder)


def twice(tmp_path, capsys, dataset, *words):
    """Runs on a dataset, then resumes what has ended, which only reports; the metrics, and what was printed."""
    words = ["--dataset", dataset, *SMALL, "--evidence", "0", "--out", str(tmp_path / "out"), *words]
    assert run.main(words) == 0
    printed, metrics = capsys.readouterr().out, (tmp_path / "out/metrics.json").read_text()
    assert run.main([*words, "--resume"]) == 0
    assert capsys.readouterr().out == printed and (tmp_path / "out/metrics.json").read_text() == metrics
    return json.loads(metrics), printed


def drawn(tmp_path):
    return {path.stem for path in (tmp_path / "out").glob("*.png")}
