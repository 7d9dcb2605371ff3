"""Whether the steps of a training earn back the seconds that compiling them takes: counted from one step, never timed.

A decision by the clock could differ between two runs of one seed, and with it the last bits of their results.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_vae.compiling.loss import ProgramLoss
from pyro_vae.compiling.private import DispatchMode
from pyro_vae.random import forked_rng
from pyro_vae.tracing.probing import left_as_it_was, tensors

# Seconds, as ``experiments/benchmark.py --worth`` fits them on one core of an AMD EPYC with torch 2.14.
COMPILING = 15.0, 3e-3  # of each graph, and of each pair of operations between two products
SAVED = 2.4e-3, 5e-5, 1.7e-10  # of each step, of each product, and of each byte
FEWEST = 100  # steps that could earn anything back; fewer are not even counted

PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "mv", "dot", "convolution", "convolution_backward"}


@dataclass(frozen=True)
class Work:
    """What a step's loss and gradient compute.

    Compiling saves the time that Pyro takes, a little for each layer, and that of writing to memory between two
    operations; the products themselves take as long as before. torch's compiler joins the operations between two
    products, and compares them in pairs: its seconds grow with the square of their number.

    Args:
        operations: the number of operations on tensors; views do not count.
        products: those among them that are matrix products and convolutions.
        written: the bytes that the others write.

    >>> small, large = (Work(operations=120, products=11, written=size) for size in (10**6, 10**8))
    >>> small.earns_back(2000), large.earns_back(2000)
    (False, True)
    """

    operations: int
    products: int
    written: int

    @property
    def pairs(self) -> float:
        """The number of pairs of operations between two products, if they are spread evenly."""
        return self.operations**2 / (self.products + 1)

    @property
    def compiling(self) -> float:
        """The seconds of compiling, without any compiled code of an earlier run."""
        constant, pair = COMPILING
        return constant + pair * self.pairs

    @property
    def saved(self) -> float:
        """The seconds that a compiled step saves."""
        constant, product, byte = SAVED
        return constant + product * self.products + byte * self.written

    def earns_back(self, steps: int) -> bool:
        """Return whether so many steps save more seconds than compiling takes."""
        return steps * self.saved > self.compiling

    def account(self, steps: int) -> str:
        """Return both sides in words."""
        return (
            f"{self.operations:,} operations that write {self.written / 1e6:,.1f} MB take about {self.compiling:.0f} s "
            f"to compile, and {steps:,} steps then save about {steps * self.saved:.0f} s"
        )


def work_of(loss: ProgramLoss, raw: Sequence[Tensor]) -> Work:
    """Return the work of a loss and of its gradient. The program and the random number generators stay as they were.

    >>> from pyro.infer import Trace_ELBO
    >>> from pyro_vae.linear_gaussian import LinearGaussian
    >>> program = LinearGaussian(torch.ones(3, 1))
    >>> work = work_of(ProgramLoss(Trace_ELBO(), program.model, program.guide), [program.simulate(5)])
    >>> work.operations > 50, work.written > 500
    (True, True)
    """
    trained = [parameter for parameter in loss.parameters() if parameter.requires_grad]
    with left_as_it_was(*loss.functions), forked_rng(*(tensor.device for tensor in raw)), _Counter() as counted:
        value = loss(*raw)
        if trained and value.requires_grad:
            torch.autograd.grad(value, trained, allow_unused=True)
    return Work(counted.operations, counted.products, counted.written)


class _Counter(DispatchMode):
    """Counts the operations that reach torch's kernels, backward passes included, and the bytes that they write."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.products = self.written = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.operations += 1
            if func.overloadpacket.__name__ in PRODUCTS:
                self.products += 1
            else:
                self.written += sum(tensor.nbytes for tensor in tensors(result))
        return result
