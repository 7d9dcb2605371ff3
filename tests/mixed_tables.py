"""A frame with a column of each kind, and cells that are missing."""

import numpy as np
import pandas as pd


def mixed_frame(rows=60, seed=0, missing=True):
    """Real, positive, count, binary, category and ordinal columns of several pandas types."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "height": rng.normal(170.0, 8.0, rows),
            "income": rng.lognormal(10.0, 0.7, rows).astype(np.float32),
            "visits": rng.poisson(3.0, rows),
            "member": rng.random(rows) < 0.3,
            "smokes": rng.choice(["no", "yes"], rows),
            "eyes": rng.choice(["green", "blue", "brown"], rows),
            "grade": pd.Categorical(
                rng.choice(["low", "middle", "high"], rows), ["low", "middle", "high"], ordered=True
            ),
        }
    )
    frame["height"] -= 170.0
    frame.loc[[0, 1], ["visits", "member", "smokes"]] = [[0, True, "no"], [2, False, "yes"]]
    frame["member"] = frame["member"].astype(bool)
    frame["visits"] = frame["visits"].astype("int64")
    if missing:
        frame.loc[3, "height"] = np.nan
        frame.loc[[4, 5], "eyes"] = None
        frame.loc[6, "grade"] = np.nan
    return frame
