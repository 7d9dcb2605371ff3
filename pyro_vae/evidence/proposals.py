"""Proposals that are fitted to the posterior of each row: ``LocalProposal``.

Linear algebra is in float64 on the host: not every device has it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import NamedTuple

import pyro
import torch
from pyro.distributions import MultivariateStudentT
from torch import Tensor
from torch.distributions import MultivariateNormal
from tqdm import tqdm

from pyro_vae.arguments import ProgramArguments
from pyro_vae.checks import whole_number
from pyro_vae.compiling import traced
from pyro_vae.evidence.matching import Normals, matched
from pyro_vae.evidence.path import AnnealingPath, PathDensities
from pyro_vae.evidence.plan import MeasurementPlan

SCALE_DRAWS = 64  # of the guide, whose mean and spread are where a fit starts
SEARCHING = 0.5  # share of the rounds that move at a constant rate; the others settle
WIDER, FREEDOM = 1.2, 3.0  # factor on the fitted variances; degrees of freedom of t for each dimension of z
MOST_DIMENSIONS = 1000  # of z: a covariance of more is no longer a small matter


@dataclass(frozen=True)
class LocalProposal:
    """A proposal of ``log_evidence`` that is fitted to the posterior of each row, by a few rounds of gradients.

    It starts as a normal distribution of the guide's mean and spread. In each round z are drawn from it, and its mean
    and covariance are matched to the gradients of log p(x, z) at these z ("batch and match", Cai et al. 2024). For a
    normal posterior this is the Laplace approximation; otherwise the curvature is that of the whole posterior, not of
    its mode alone. The weights then come from new draws z of a defensive mixture (Hesterberg 1995; Owen and Zhou 2000):

        log w = log p(x, z) − log (α q(z | x) + (1 − α) t(z))

    q is the guide and t a Student-t distribution of the fitted mean, 1.2 times the fitted covariance and three degrees
    of freedom for each dimension of z: its tails are broader. Of the K draws α K, which is ``share`` K rounded, are the
    guide's. So a weight is at most 1/α of the guide's, and a fit that failed costs at most that factor. E w = p(x) for
    any fit.

    z are the latent variables, unconstrained as in ``annealed_evidence``, and must be continuous. Without a guide
    (``log_evidence(model, None, x, K, proposal=LocalProposal())``) the prior takes its place; that takes more rounds.

    Args:
        rounds: of the fit. Each takes ``draws`` gradients of a row; a gradient costs about as much as three weights.
        draws: z of a row in a round. Take about as many as z has dimensions.
        share: of the draws that come from the guide, from 0 to less than 1. With 0 nothing limits the weights where t
            is too narrow.

    Raises ValueError for other values.

    >>> from pyro_vae.evidence import log_evidence
    >>> from pyro_vae.linear_gaussian import LinearGaussian
    >>> program, x = LinearGaussian(torch.ones(3, 1).double()), torch.tensor([[1.0, 2.0, 4.0]]).double()
    >>> evidence = log_evidence(program.model, None, x, 1000, proposal=LocalProposal())  # it starts from the prior
    >>> bool((evidence.log_px - program.log_px(x)).abs() < 0.1)
    True
    """

    rounds: int = 8
    draws: int = 32
    share: float = 0.1

    def __post_init__(self) -> None:
        whole_number("rounds", self.rounds)
        whole_number("draws", self.draws, least=2)
        if not isinstance(self.share, Real) or isinstance(self.share, bool) or not 0 <= self.share < 1:
            raise ValueError(f"share: wanted a number from 0 to less than 1, got {self.share!r}")

    def from_guide(self, K: int) -> int:
        """Return how many of K draws come from the guide: not all.

        >>> LocalProposal().from_guide(500), LocalProposal(share=0.9).from_guide(3)
        (50, 2)
        """
        return min(round(self.share * K), K - 1)

    def rows_at_once(self, chunk: int) -> int:
        """Return the number of rows that are fitted together, so that ``chunk`` z are decoded at once."""
        return max(1, chunk // self.draws)

    def sampler(
        self, model: Callable, guide: Callable | None, plan: MeasurementPlan, chunk: int, compiled: bool | None
    ) -> "LocalSampler":
        """Return what draws the weights of a batch of rows."""
        return LocalSampler(self, model, guide, plan, chunk, compiled)


class LocalFit(NamedTuple):
    """Normals in units of the guide: z = centre + unit u, with centre and unit (B, D), and the distributions of u."""

    centre: Tensor
    unit: Tensor
    normals: Normals

    def proposal(self) -> MultivariateStudentT:
        """Return the Student-t distributions of u from which weights are drawn."""
        root = math.sqrt(WIDER) * self.normals.scale_tril
        return MultivariateStudentT(root.new_tensor(FREEDOM * root.shape[-1]), self.normals.loc, root)


class LocalSampler:
    """Log weights, (K, B), of draws from the proposals that it fits to the rows of a batch."""

    def __init__(
        self,
        settings: LocalProposal,
        model: Callable,
        guide: Callable | None,
        plan: MeasurementPlan,
        chunk: int,
        compiled: bool | None,
    ):
        self.settings, self.model, self.guide, self.plan, self.chunk = settings, model, guide, plan, chunk
        calls = settings.rounds * math.ceil(plan.weights / plan.size)
        self.gradients, self.densities = plan.graphs(compiled, calls), plan.graphs(compiled, calls)

    def __call__(self, batch: ProgramArguments, K: int, bar: tqdm) -> Tensor:
        """Fit the proposals of a batch and return log weights (K, B), float64."""
        path = AnnealingPath(self.model, self.guide, *batch, plan=self.plan)
        with pyro.validation_enabled(False):
            return self.log_weights(path, self.fit(path), K, bar)

    def fit(self, path: AnnealingPath) -> LocalFit:
        """Fit a normal distribution to the posterior of each row, from ``rounds`` times ``draws`` gradients."""
        drawn = path.draw(SCALE_DRAWS)
        if drawn.shape[-1] > MOST_DIMENSIONS:
            raise ValueError(
                f"proposal: wanted latent variables of at most {MOST_DIMENSIONS} dimensions for a weight, whose "
                f"covariance is fitted, got {drawn.shape[-1]}; take annealed_evidence, or a guide that was refitted"
            )
        start, draws = drawn.double().cpu(), self.settings.draws
        centre, unit = start.mean(0), start.std(0)
        unit = torch.where(unit > 0, unit, 1.0)
        root = torch.eye(centre.shape[-1]).to(centre).expand(*centre.shape, -1)
        normals = MultivariateNormal(torch.zeros_like(centre), scale_tril=root)
        for t in range(self.settings.rounds):
            u = normals.sample((draws,))
            gradient = self._gradient(path, (centre + unit * u).to(drawn)).double().cpu()
            rate = draws / max(1, t + 1 - self.settings.rounds * SEARCHING)
            normals = matched(normals, u, unit * gradient, rate)
        return LocalFit(centre, unit, normals)

    def log_weights(self, path: AnnealingPath, fit: LocalFit, K: int, bar: tqdm) -> Tensor:
        """Return log weights (K, B) of new draws: of the guide first, then of the fitted proposals."""
        from_guide, proposal = self.settings.from_guide(K), fit.proposal()
        drawn, local = path.draw(max(from_guide, 1)), fit.centre + fit.unit * proposal.sample((K - from_guide,))
        z = torch.cat([drawn[:from_guide], local.to(drawn)])
        step = max(1, self.chunk // z.shape[1])
        whole = self._is_whole(path)
        parts = [self._densities(path, part, whole and len(part) == step, bar) for part in z.split(step)]
        log_q, log_p = (torch.cat(values) for values in zip(*parts))
        u = (z.double().cpu() - fit.centre) / fit.unit
        log_t = proposal.log_prob(u) - fit.unit.log().sum(-1)
        if not from_guide:
            return log_p - log_t
        alpha = from_guide / K
        return log_p - torch.logaddexp(log_q + math.log(alpha), log_t + math.log1p(-alpha))

    def _gradient(self, path: AnnealingPath, z: Tensor) -> Tensor:
        """Return the gradient of log p(x, z) by z, (C, B, D)."""
        tensors, graph = (z, *path.arguments.tensors), None
        if self._is_whole(path):
            graph = self.gradients.get(lambda: joint_gradient(traced_densities(path, tensors)), tensors)
        if graph is not None:
            return graph(*tensors)
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            return torch.autograd.grad(path.log_start_and_joint(z)[1].sum(), z)[0]

    def _densities(self, path: AnnealingPath, z: Tensor, compiled: bool, bar: tqdm) -> list[Tensor]:
        """Return log q(z | x) and log p(x, z), each (C, B), float64 on the host."""
        tensors, graph = (z, *path.arguments.tensors), None
        if compiled:
            graph = self.densities.get(lambda: traced_densities(path, tensors), tensors)
        found = path.log_start_and_joint(z) if graph is None else graph(*tensors)
        bar.update(z.shape[0] * z.shape[1])
        return [value.double().cpu() for value in found]

    def _is_whole(self, path: AnnealingPath) -> bool:
        """Return whether a batch has as many rows as the others, for which functions are compiled."""
        return path.arguments.rows == self.plan.size or self.gradients.strict


def traced_densities(path: AnnealingPath, tensors: tuple[Tensor, ...]) -> Callable[..., Tensor]:
    """Return log q(z | x) and log p(x, z), (2, C, B), as a traced function of z and the program's tensors."""
    return traced(PathDensities(path, AnnealingPath.log_start_and_joint), tensors)


def joint_gradient(densities: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return the gradient of log p(x, z), (C, B, D), as a function of z and the program's tensors."""

    def gradient(z: Tensor, *tensors: Tensor) -> Tensor:
        log_p, pullback = torch.func.vjp(lambda z: densities(z, *tensors)[1], z)[:2]
        return pullback(torch.ones_like(log_p))[0]

    return gradient
