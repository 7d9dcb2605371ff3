"""What a device can do."""

import torch


def widest_float(device: torch.device | str) -> torch.dtype:
    """The dtype in which sums over images are taken on a device: float64, or float32 where there is no other (MPS).

    >>> widest_float("cpu")
    torch.float64
    """
    try:
        return torch.zeros((), dtype=torch.float64, device=device).dtype
    except (TypeError, RuntimeError):
        return torch.float32
