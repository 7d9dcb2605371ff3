"""Functions of tensors on a GPU as CUDA graphs, which the host starts by one call."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from pyro_vae.compiling.outcomes import contents_kept
from pyro_vae.compiling.untraceable import first_line
from pyro_vae.random import forked_rng

ALIKE = 1e-4  # relative difference between the first results of a call and of a replay, which run the same kernels


class NotCaptured(RuntimeError):
    """A function cannot become a CUDA graph."""


class Captured:
    """A function of tensors as a CUDA graph: a call starts all its kernels at once, and the host does not wait.

    The arguments are copied to memory of the graph. Its results are overwritten by the next call. Random numbers come
    from torch's generator of the GPU, and are those that the function draws by itself. The function must read no value
    back to the host, and must find all other tensors where they were at the capture. On a CPU it is simply called.

    Args:
        function: the function.
        args: the arguments of a call; later ones have their shapes and dtypes.
        changed: the tensors that the function changes; the capture leaves them, and random numbers, as they were.

    Raises NotCaptured, and leaves everything as it was, if torch cannot capture the function or a replay gives another
    first result than the function.

    >>> total = Captured(lambda x: [x.sum()], [torch.zeros(3)], [])
    >>> total(torch.ones(3))
    [tensor(3.)]
    """

    def __init__(self, function: Callable[..., Sequence[Tensor]], args: Sequence[Tensor], changed: Iterable[Tensor]):
        self.function, self.args = function, [arg.clone() for arg in args]
        self.results: Sequence[Tensor] = []
        self.graph = self._captured([*changed]) if self.args[0].is_cuda else None

    def __call__(self, *args: Tensor) -> Sequence[Tensor]:
        """Return the results of the function, which the next call overwrites."""
        if self.graph is None:
            return self.function(*args)
        for own, arg in zip(self.args, args):
            own.copy_(arg)
        self.graph.replay()
        return self.results

    def _captured(self, changed: Sequence[Tensor]) -> torch.cuda.CUDAGraph:
        device, graph = self.args[0].device, torch.cuda.CUDAGraph()
        with forked_rng(device), contents_kept(changed):
            wanted = self._called_on_another_stream(device)[0].clone()
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self.results = self.function(*self.args)
        except RuntimeError as error:
            raise NotCaptured(f"torch cannot make a CUDA graph of the step ({first_line(error)})") from error
        with forked_rng(device), contents_kept(changed):
            graph.replay()
            got = self.results[0].clone()
        if not torch.allclose(got, wanted, rtol=ALIKE, equal_nan=True):
            raise NotCaptured(f"a CUDA graph of the step gives {got.tolist()}, the step itself {wanted.tolist()}")
        return graph

    def _called_on_another_stream(self, device: torch.device) -> Sequence[Tensor]:
        """Return the results of a call on a stream of its own, which makes torch's libraries ready for a capture."""
        side, current = torch.cuda.Stream(device), torch.cuda.current_stream(device)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            results = self.function(*self.args)
        current.wait_stream(side)
        return results
