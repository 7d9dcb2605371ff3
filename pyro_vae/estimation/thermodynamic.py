"""The thermodynamic variational bound: a sum over temperatures between q(z | x) and p(z | x)."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from pyro_vae.checks import whole_number
from pyro_vae.estimation.base import Estimator
from pyro_vae.estimation.description import Description


class TVO(Estimator):
    """The thermodynamic variational objective by K particles and S temperatures (Masrani et al. 2019).

        L = E Σ_s (β_{s+1} − β_s) Σ_k w̃_k(β_s) log w_k,    w̃_k(β) = w_k^β / Σ_j w_j^β,    β_0 = 0, β_S = 1

    β_1 … β_S are log-uniform from ``first`` to 1. Σ_k w̃_k(β) log w_k is the derivative of log 1/K Σ_k w_k^β in β, which
    grows with β. So the left sum of every draw lies between the mean of log w_k and log 1/K Σ_k w_k: L is a bound
    between the ELBO, which it is for S = 1, and L_K, which it nears as S grows.

    The gradient is that of L through reparameterised draws, not the covariance of scores of the paper, so that it is
    unbiased for any K. A weight of 0 makes the bound −∞, as it makes the ELBO. Raises ValueError unless 0 < first < 1;
    other errors are those of ``ImportanceWeighted``.

    >>> from pyro_vae.linear_gaussian import LinearGaussian
    >>> program = LinearGaussian(torch.ones(3, 1))
    >>> x = program.simulate(2)
    >>> abs(TVO(K=5).loss(program.model, program.guide, x) + program.log_px(x).sum().item()) < 1e-4
    True
    """

    def __init__(self, K: int, S: int = 5, first: float = 0.1, *, vectorize: bool | None = None):
        super().__init__(K, vectorize=vectorize)
        if not 0 < first < 1:
            raise ValueError(f"first: wanted a temperature β between 0 and 1, got {first}; write e.g. first=0.1")
        self.S, self.first = whole_number("S", S), float(first)
        self.betas = [0.0, *(self.first ** (1 - s / (self.S - 1)) for s in range(self.S - 1)), 1.0]

    @property
    def description(self) -> Description:
        """The bound in value and gradient."""
        plain = self.num_particles == 1 or self.S == 1
        bound = "ELBO" if plain else f"TVO, S = {self.S} from {self.first:g}, K = {self.num_particles}"
        return Description.unbiased(bound, plain=True)

    def objective(self, model: Callable, guide: Callable, args: Sequence, kwargs: Mapping) -> tuple[Tensor, Tensor]:
        """Return the bound twice: its own gradient is the estimator's."""
        log_w, scale = self._reparameterised_weights(model, guide, args, kwargs)
        bounds = torch.zeros_like(log_w[0])
        for beta, after in zip(self.betas, self.betas[1:]):
            bounds = bounds + (after - beta) * ((beta * log_w).softmax(0) * log_w).sum(0)
        elbo = log_w.detach().mean(0)  # of a weight of 0 it is −∞, and so is the bound; 0 · log 0 is no number
        bound = (torch.where(elbo.isneginf(), elbo, bounds) * scale).sum()
        return bound, bound
