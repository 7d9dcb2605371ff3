"""Numbers and tensors compared and put into words, also while a graph is traced, in which none can be read."""

import math

import torch
from torch import Tensor

from pyro_vae.hardware import widest_float


def is_tracing() -> bool:
    """Return whether a graph is being traced, in which no value can be read."""
    return torch.compiler.is_compiling() or torch.compiler.is_exporting() or bool(torch._C._get_tracing_state())


def same_numbers(one: Tensor | float, other: Tensor | float) -> bool:
    """Return whether two numbers or tensors are equal up to rounding; traced tensors are not read."""
    if not (torch.is_tensor(one) or torch.is_tensor(other)):
        return math.isclose(one, other)
    return one is other or is_tracing() or _close(one, other)


def _close(one: Tensor | float, other: Tensor | float) -> bool:
    one, other = (torch.as_tensor(value) for value in (one, other))
    one, other = (value.to(widest_float(value.device)) for value in (one, other))
    try:
        return torch.allclose(*torch.broadcast_tensors(one, other.to(one.device)))
    except RuntimeError:  # shapes that do not broadcast
        return False


def number(value: Tensor | float) -> str:
    """Put a number or tensor into words, for messages."""
    if isinstance(value, Tensor) and value.numel() > 1:
        return f"a tensor of shape {tuple(value.shape)}"
    return f"{float(value):.4g}"
