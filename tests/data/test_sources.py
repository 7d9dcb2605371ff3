"""All sources give the same data set of the same rows."""

import numpy as np
import pandas as pd
from PIL import Image
from torch_sets import GREY, Rows

from pyro_vae import Data

LABELS = np.arange(40) // 20


def test_all_sources_take_the_same_rows(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    for n, image in enumerate(GREY):
        Image.fromarray(image).save(tmp_path / f"{'ab'[n // 20]}/{n:02}.png")
    arguments = {"valid": 5, "test": 0.2, "seed": 7}
    frame = pd.DataFrame(GREY.reshape(40, 64).astype(float)).assign(kind=["ab"[n] for n in LABELS])
    found = [
        Data.from_arrays(GREY, labels=LABELS, **arguments),
        Data.from_folder(tmp_path, **arguments),
        Data.from_dataset(Rows(zip(GREY, LABELS.tolist())), **arguments),
        Data.from_frame(frame.drop(columns=[0, 1]), labels="kind", **arguments),
    ]
    assert [data.name for data in found] == ["arrays", tmp_path.name, "Rows", "frame"]
    for split in ("train", "valid", "test"):
        seen = []
        for data in found:
            rows = getattr(data, split)
            pixels = rows.table.int() if rows.images is None else rows.images.flatten(1)[:, 2:]
            seen.append(sorted(zip(pixels.tolist(), rows.labels.tolist())))
        assert all(part == seen[0] for part in seen)
