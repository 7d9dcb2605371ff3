"""Several steps as one CUDA graph, which is replayed without Python and without a read by the host."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

WARM_UP = 3  # steps before a capture, in which libraries make their handles and the optimiser its state


class GraphedSteps:
    """``count`` calls of a step as one CUDA graph; on a CPU each replay calls the step so often.

    The step takes no arguments: what it draws, batches too, it draws on the device, anew in each replay. It must read
    no value back to the host, and an optimiser in it must be ``capturable``.

    >>> losses = GraphedSteps(lambda: torch.rand(()), 3, "cpu")()
    >>> losses.shape, len(losses.unique())
    (torch.Size([3]), 3)
    """

    def __init__(self, step: Callable[[], Tensor], count: int, device: torch.device | str):
        self.step, self.losses = step, torch.zeros(count, device=device)
        self.graph = self._captured() if self.losses.is_cuda else None

    def __call__(self) -> Tensor:
        """Take the steps; return their losses (count,), which the next call overwrites."""
        if self.graph is None:
            self._steps()
        else:
            self.graph.replay()
        return self.losses

    def _steps(self) -> None:
        for loss in self.losses:
            loss.copy_(self.step())

    def _captured(self) -> Any:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                self.step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._steps()
        return graph
