"""What can be trained and measured: the protocol of a program, and x in the dtype that it computes in."""

from collections.abc import Callable, Iterator
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
        raise ValueError(
            f"program: wanted parameters in torch.float32 or torch.float64, got {dtype}, in which a sum "
            "over pixels is off by whole nats; write program.float(), and fit(..., "
            "precision=torch.bfloat16) to have the networks compute in bfloat16"
        )
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


def model_and_guide(first: Any, *rest: Any) -> tuple[Callable, Callable | None, tuple]:
    """Split a call that begins with a program, or with a model and a guide, into model, guide and what follows.

    A guide of None stays None. Raises ValueError where the call begins with neither.

    >>> program = nn.Module()
    >>> program.model, program.guide = abs, max
    >>> model_and_guide(program, 3), model_and_guide(abs, max, 3)
    ((<built-in function abs>, <built-in function max>, (3,)), (<built-in function abs>, <built-in function max>, (3,)))
    """
    if callable(first) and rest and (rest[0] is None or callable(rest[0])):
        return first, rest[0], rest[1:]
    if callable(getattr(first, "model", None)) and callable(getattr(first, "guide", None)):
        return first.model, first.guide, rest
    raise ValueError(
        f"program: wanted a program with model and guide, or a model and then a guide, got {type(first).__name__}; "
        "write f(vae, x) or f(model, guide, x)"
    )
