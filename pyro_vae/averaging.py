"""The exponential moving average of a program's weights, by which it is measured."""

from typing import Any

import torch
from torch import Generator, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pyro_vae.observation import observed
from pyro_vae.program import check_has


class Averaged(nn.Module):
    """A program that is measured with an exponential moving average of its weights (Polyak & Juditsky 1992).

    In training mode it is the program itself, in evaluation mode a copy with the averaged weights. So ``fit`` compares
    and keeps epochs by the average. After the training ``average`` is the program to be used:

        averaged = Averaged(program, decay=0.999)
        fit(averaged, data, optimizer=lambda parameters: averaged.follow(torch.optim.Adam(parameters, lr=1e-3)))
        evaluate(averaged.average, data.test)

    The average is that of torch's ``AveragedModel``: after the first step it is the weights themselves, after each
    further step decay · average + (1 − decay) · weights. It reaches back over about 1 / (1 − decay) steps. Buffers are
    copied. The average is part of the state dict, so that a training that is resumed goes on with the same bits.

    Args:
        program: the program that is trained.
        decay: between 0 and 1, such as 0.999.

    >>> from pyro_vae.linear_gaussian import LinearGaussian
    >>> averaged = Averaged(LinearGaussian(torch.zeros(3, 1)), decay=0.75)
    >>> optimizer = averaged.follow(torch.optim.SGD(averaged.program.parameters(), lr=1.0))
    >>> for _ in range(2):
    ...     averaged.program.bias.grad = -torch.ones(3)
    ...     optimizer.step()
    >>> averaged.program.bias.tolist(), averaged.average.bias.tolist()
    ([2.0, 2.0, 2.0], [1.25, 1.25, 1.25])
    """

    def __init__(self, program: nn.Module, decay: float):
        super().__init__()
        check_has(program, "model", "guide")
        if not isinstance(decay, float) or not 0 < decay < 1:
            raise ValueError(f"decay: wanted a number between 0 and 1, such as 0.999, got {decay!r}")
        self.program: Any = program
        self.averaged = AveragedModel(program, multi_avg_fn=get_ema_multi_avg_fn(decay)).requires_grad_(False)

    @property
    def average(self) -> Any:
        """The program with the averaged weights. Raises ValueError if the program was trained without ``follow``."""
        if not self.averaged.n_averaged:
            pairs = zip(self.program.parameters(), self.averaged.module.parameters(), strict=True)
            if not all(torch.equal(weight, averaged) for weight, averaged in pairs):
                raise ValueError(
                    "average: the weights have changed, and no step was averaged; write "
                    "optimizer=lambda parameters: averaged.follow(torch.optim.Adam(parameters, lr=1e-3))"
                )
        return self.averaged.module

    def follow(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Average the weights after each step of the optimiser, and return the optimiser."""
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise ValueError(
                f"follow: wanted a torch optimiser, got {type(optimizer).__name__}; write "
                "averaged.follow(torch.optim.Adam(parameters))"
            )
        optimizer.register_step_post_hook(lambda *_: self.averaged.update_parameters(self.program))
        return optimizer

    def model(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program's model, in evaluation mode with the averaged weights."""
        return self._present().model(*args, **kwargs)

    def guide(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program's guide, in evaluation mode with the averaged weights."""
        return self._present().guide(*args, **kwargs)

    def observe(self, batch: Any, generator: Generator | None = None) -> Any:
        """Return what the program observes of the batch."""
        return observed(self._present(), batch, generator)

    def _present(self) -> Any:
        return self.program if self.training else self.average
