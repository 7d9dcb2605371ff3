"""What can be trained and measured: the protocol of a program, and x in the dtype that it computes in."""

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Generator, Tensor, nn


class Program(Protocol):
    """An ``nn.Module`` with a model and a guide of x, and a way from pixels to x."""

    def model(self, x: Tensor) -> Any: ...
    def guide(self, x: Tensor) -> Any: ...
    def observe(self, pixels: Tensor, generator: Generator | None = None) -> Tensor: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...


def dtype_of(program: Program) -> torch.dtype:
    """The dtype of the program's first floating parameter; torch's default where it has none.

    Raises ValueError for one of 16 bits, in which a sum of log-probabilities over pixels is off by whole nats.

    >>> dtype_of(nn.Linear(2, 1).double())
    torch.float64
    """
    floating = (parameter.dtype for parameter in program.parameters() if parameter.is_floating_point())
    dtype = next(floating, torch.get_default_dtype())
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"program: wanted parameters in torch.float32 or torch.float64, got {dtype}, in which a sum "
                         "over pixels is off by whole nats; write program.float(), and fit(..., "
                         "precision=torch.bfloat16) to have the networks compute in bfloat16")
    return dtype


def observed(program: Program, pixels: Tensor, generator: Generator | None = None) -> Tensor:
    """x from the pixels; a floating x is in the dtype of the program's parameters, whatever torch's default dtype is.

    >>> program = nn.Linear(2, 1).double()
    >>> program.observe = lambda pixels: pixels / 255
    >>> observed(program, torch.zeros(3, 2, dtype=torch.uint8)).dtype
    torch.float64
    """
    x = program.observe(pixels) if generator is None else program.observe(pixels, generator)
    return x.to(dtype_of(program)) if torch.is_tensor(x) and x.is_floating_point() else x
