"""Which rows are for training, validation and test: shares of all rows, drawn by a seed."""

from collections.abc import Iterator, Mapping
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae.checks import is_whole, whole_number

SPLITS = ("train", "valid", "test")


def is_share(value: Any) -> bool:
    """Return whether a value is a number, and not rows.

    >>> [is_share(value) for value in (0.1, 500, np.float32(0.1), [1, 2], None)]
    [True, True, True, False, False]
    """
    return isinstance(value, Real)


def divided(count: int, shares: Mapping[str, float], seed: int) -> dict[str, Tensor]:
    """Return the row numbers of the training rows and of each share of ``count`` rows.

    A share is a fraction of all rows or a number of rows. ``numpy.random.RandomState(seed).permutation``, which is the
    same on every machine, permutes the rows: the first are for test, the last for validation. Raises ValueError for
    shares that leave nothing to train on.

    >>> {split: len(rows) for split, rows in divided(100, {"valid": 0.1, "test": 5}, seed=0).items()}
    {'train': 85, 'valid': 10, 'test': 5}
    """
    whole_number("seed", seed, least=0, most=2**32 - 1)
    sizes = {split: _size(split, share, count) for split, share in shares.items()}
    test, valid = sizes.get("test", 0), sizes.get("valid", 0)
    if test + valid >= count:
        words = " and ".join(f"{size:,} for {split}" for split, size in sizes.items())
        raise ValueError(
            f"rows: wanted at least one to train on, got {count:,} rows of which {words} are taken; write smaller "
            "numbers or shares, such as valid=0.1"
        )
    order = torch.from_numpy(np.random.RandomState(seed).permutation(count))
    rows = {"train": order[test : count - valid], "valid": order[count - valid :], "test": order[:test]}
    return {split: rows[split] for split in SPLITS if split == "train" or split in shares}


def drawn(shares: Mapping[str, float], seed: int) -> Iterator[str]:
    """Yield the split of one row after the other, without end, for rows whose number is not known.

    Each row goes to a split with a probability that is the split's share. Raises ValueError for numbers of rows.
    """
    whole_number("seed", seed, least=0, most=2**32 - 1)
    for split, share in shares.items():
        if is_whole(share):
            raise ValueError(
                f"{split}: wanted a fraction, as the number of rows is not known before they are read, got {share}; "
                f"write for instance {split}=0.1"
            )
        _size(split, share, 1)
    test, random = shares.get("test", 0.0), np.random.RandomState(seed)
    while True:
        u = random.random_sample()
        yield "test" if u < test else "valid" if u < test + shares.get("valid", 0.0) else "train"


def _size(split: str, share: float, count: int) -> int:
    if is_whole(share) and share >= 1:
        return int(share)
    if not is_whole(share) and not isinstance(share, bool) and 0 < share < 1:
        return max(1, round(float(share) * count))
    raise ValueError(
        f"{split}: wanted rows, a fraction between 0 and 1 or a number of rows, got {share!r}; write for instance "
        f"{split}=0.1"
    )
