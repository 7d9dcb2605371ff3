"""Graphs compared with their programs now and then: the net below the values that are watched."""

from collections.abc import Callable, Sequence

from torch import Tensor

from pyro_vae.compiling.constants import WatchedConstants
from pyro_vae.compiling.joint import Recorded, differs
from pyro_vae.compiling.outcomes import contents_kept
from pyro_vae.compiling.signatures import apart
from pyro_vae.compiling.trial import LARGEST
from pyro_vae.compiling.untraceable import first_line

EARLY = (10, 100, 1000)
EVERY = 1000
SMALL = 1 << 18  # elements of all tensors of a graph, below which its program takes 20 or more times as long
EVERY_OF_SMALL = 5000


class NowAndThen:
    """Compares a graph with its program at its tenth and hundredth use, and at every thousandth one.

    Small graphs are compared at every 5000th use from the thousandth on, so that it takes less than 2 % of the time. It
    counts uses, not seconds, and leaves parameters, buffers, random numbers and watched values as they were: a training
    in which nothing is wrong keeps its bits.

    Args:
        graph: the graph of the function.
        function: the program: from tensors to a loss and gradients.
        names: what the results after the loss are gradients of.
        watched: the numbers and flags of the program.

    >>> import torch
    >>> from pyro_vae.compiling.joint import record
    >>> rates = {"beta": 1.0}
    >>> def program(x):
    ...     return [rates["beta"] * x.sum()]
    >>> watched = WatchedConstants({})
    >>> graph = record(program, [torch.ones(2)], watched, compiler=None)
    >>> check = NowAndThen(graph, program, [], watched)
    >>> rates["beta"] = 3.0
    >>> [check(torch.ones(1, 2)) for _ in range(10)][8:]
    [None, 'its loss is 2, that of the program 6']
    """

    def __init__(
        self,
        graph: Recorded,
        function: Callable[..., Sequence[Tensor]],
        names: Sequence[str],
        watched: WatchedConstants,
    ):
        self.graph, self.function, self.names, self.watched = graph, function, names, watched
        self.uses = 0
        self.every = EVERY if graph.elements >= SMALL else EVERY_OF_SMALL

    def __call__(self, args: Sequence[Tensor]) -> str | None:
        """Count a use with these arguments; say how graph and program differ, if it is time to look and they do."""
        self.uses += 1
        if self.uses not in EARLY and self.uses % self.every:
            return None
        try:
            with contents_kept(self.watched.tensors(LARGEST)):
                return differs(self.graph, self.function, apart(args), self.names)
        except Exception as error:  # of the program as it is now
            return f"the program fails: {first_line(error)}"
        finally:
            self.watched.put_back()
