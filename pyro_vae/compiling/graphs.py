"""Functions of tensors that are compiled once for each shape of their arguments, if that is worth its time."""

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from pyro_vae.compiling.compiler import OPTIONS, missing_compiler, own_code, quiet_torch
from pyro_vae.compiling.untraceable import Untraceable, first_line
from pyro_vae.random import forked_rng

WORTH_CALLS = 500  # calls of a graph of some milliseconds that make up for the seconds of compiling it


class Graphs:
    """The compiled forms of one function, looked up by the shapes and dtypes of its arguments.

    Args:
        wanted: True: a function that cannot be traced is an error; False: nothing is compiled; None: compile on a CPU
            with a compiler if at least ``WORTH_CALLS`` calls are expected, and run eagerly what cannot be traced.
        calls: the expected number of calls with tensors of one shape.
        device: where the tensors are.

    >>> graphs = Graphs(wanted=None, calls=3, device="cpu")
    >>> graphs.get(lambda: torch.compile(torch.sin), (torch.zeros(2),)) is None
    True
    """

    def __init__(self, wanted: bool | None, calls: int, device: torch.device | str):
        earned = calls >= WORTH_CALLS and torch.device(device).type == "cpu"
        self.strict = bool(wanted)
        self.wanted = earned and not missing_compiler() if wanted is None else wanted
        self._graphs: dict[tuple, Callable | None] = {}

    def get(self, make: Callable[[], Callable], example: tuple[Tensor, ...]) -> Callable | None:
        """Return the compiled function for tensors like these, made by ``make`` if it is new; None: run eagerly."""
        if not self.wanted:
            return None
        key = tuple((tensor.shape, tensor.dtype) for tensor in example)
        if key not in self._graphs:
            self._graphs[key] = self._made(make, example)
        return self._graphs[key]

    def _made(self, make: Callable[[], Callable], example: tuple[Tensor, ...]) -> Callable | None:
        try:
            missing = missing_compiler()
            if self.strict and missing:
                raise Untraceable(missing)
            with forked_rng(*(tensor.device for tensor in example)), quiet_torch():
                graph = torch.compile(own_code(make()), fullgraph=True, dynamic=False, options=OPTIONS)
                graph(*example)
            return graph
        except Exception as error:  # of the program, of torch's compiler, or of the C++ compiler
            if self.strict:
                raise
            logging.getLogger(__name__).warning("not compiled, which is only slower: %s", first_line(error))
            return None
