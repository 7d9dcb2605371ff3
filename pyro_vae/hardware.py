"""What a device supports, and settings that make it faster."""

import ctypes
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of malloc.h
ACCURATE = 1e-6  # largest relative error of a float32 matrix product that counts as accurate


def widest_float(device: torch.device | str) -> torch.dtype:
    """Return the dtype for sums over images on a device: float64, or float32 where there is no float64 (MPS).

    >>> widest_float("cpu")
    torch.float64
    """
    try:
        return torch.zeros((), dtype=torch.float64, device=device).dtype
    except (TypeError, RuntimeError):
        return torch.float32


@contextmanager
def fast_matmul(device: torch.device | str) -> Iterator[None]:
    """Context manager in which float32 matrix products on a CPU use the faster kernel, if it is as accurate.

    ``torch.set_float32_matmul_precision("medium")`` selects that kernel. On an AMD CPU it is oneDNN's instead of MKL's:
    more than twice as fast, with a relative error of 4e-7 instead of 3e-7. Nothing changes on CPUs where the kernel
    computes in bfloat16 (an error of 4e-3), on other devices, or where the user has already chosen a precision.

    >>> with fast_matmul("cpu"):
    ...     chosen = torch.get_float32_matmul_precision()
    >>> chosen in ("medium", "highest"), torch.get_float32_matmul_precision()
    (True, 'highest')
    """
    before = torch.get_float32_matmul_precision()
    try:
        if torch.device(device).type == "cpu" and before == "highest":
            torch.set_float32_matmul_precision("medium")
            if _matmul_error() > ACCURATE:
                torch.set_float32_matmul_precision(before)
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def exact_convolutions() -> Iterator[None]:
    """Context manager in which convolutions on a GPU multiply float32 as it is, for numbers that are reported.

    By torch's default they round it to TF32, which has 10 bits of a fraction. Training keeps the caller's setting.

    >>> with exact_convolutions():
    ...     torch.backends.cudnn.allow_tf32
    False
    """
    cudnn: Any = torch.backends.cudnn
    before = [(part, part.fp32_precision) for part in (cudnn.conv, cudnn.rnn)]
    cudnn.allow_tf32 = False
    try:
        yield
    finally:
        cudnn.allow_tf32 = any(precision == "tf32" for _, precision in before)
        for part, precision in before:
            part.fp32_precision = precision


@cache
def keep_freed_memory() -> bool:
    """Make the C library keep up to 1 GiB of freed memory in this process; return whether it can (only glibc can).

    By default glibc returns the tensors of a step to the kernel, and the next step pays for every page again: a quarter
    of the training time on a CPU.

    >>> keep_freed_memory() in (True, False)
    True
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(MMAP_THRESHOLD, 1 << 25) and mallopt(TRIM_THRESHOLD, 1 << 30))


def warn_if_emulated(precision: torch.dtype | None, device: torch.device | str) -> None:
    """Log a warning that bfloat16 will be slow if the CPU has no instructions for it."""
    if precision is not torch.bfloat16 or torch.device(device).type != "cpu":
        return
    able = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    if able.get("architecture") == "x86_64" and not (able.get("avx512_bf16") or able.get("amx_bf16")):
        logging.getLogger(__name__).warning(
            "bfloat16 will be slow: this CPU has no instructions for it and emulates them; float32 is faster here"
        )


@cache
def _matmul_error() -> float:
    """Return the relative error of the faster float32 matrix product, in the Frobenius norm."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(128, 784, generator=generator), torch.randn(784, 128, generator=generator)
    exact = a.numpy().astype(np.float64) @ b.numpy().astype(np.float64)
    return float(np.linalg.norm((a @ b).numpy() - exact) / np.linalg.norm(exact))
