"""Proposals that are fitted to the posterior of each row: ``LocalProposal``.

Linear algebra is in float64 on the host: not every device has it.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import NamedTuple

import pyro
import torch
from torch import Tensor
from torch.distributions import Chi2, MultivariateNormal
from tqdm import tqdm

from pyro_vae.arguments import ProgramArguments
from pyro_vae.checks import whole_number
from pyro_vae.compiling import Graphs
from pyro_vae.evidence.matching import Normals, columns, drawn, matched_by_shares
from pyro_vae.evidence.path import AnnealingPath, Quantity
from pyro_vae.evidence.plan import MeasurementPlan
from pyro_vae.parallel import cores

SLICES = 2  # of ``chunk`` z each, in which the gradients of a round are computed
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

    z are the latent variables, unconstrained as in ``annealed_evidence``, and must be continuous; of a guide such as
    ``AutoNormal`` they are its auxiliary draws. Those that are masked
    alike in model and guide have no density: they are drawn, and m is the density of the others. Without a guide
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
        """Return the number of rows that are fitted together, so that the gradients of a round take ``SLICES``."""
        return max(1, SLICES * chunk // self.draws)

    def sampler(
        self, model: Callable, guide: Callable | None, plan: MeasurementPlan, chunk: int, compiled: bool | None
    ) -> "LocalSampler":
        """Return what draws the weights of a batch of rows."""
        return LocalSampler(self, model, guide, plan, chunk, compiled)


class StudentT(NamedTuple):
    """Multivariate t distributions, one for each row: loc (B, D), scale_tril (B, D, D) and degrees of freedom ν.

    Where ``scored`` (B, D) is False, a coordinate is drawn and not scored: the density is that of the others. It must
    be uncorrelated with them, and of scale 1.

    >>> from pyro.distributions import MultivariateStudentT
    >>> t, u = StudentT(torch.ones(1, 2), torch.eye(2).expand(1, 2, 2), 6.0), torch.zeros(3, 1, 2)
    >>> torch.allclose(t.log_prob(u), MultivariateStudentT(torch.tensor(6.0), t.loc, t.scale_tril).log_prob(u))
    True
    """

    loc: Tensor
    scale_tril: Tensor
    freedom: float
    scored: Tensor | None = None

    def sample(self, number: int) -> Tensor:
        """Draw u, (number, B, D)."""
        noise = torch.randn(number, *self.loc.shape, dtype=self.loc.dtype)
        squares = Chi2(self.loc.new_tensor(self.freedom)).sample(torch.Size(noise.shape[:2]))
        return drawn(self.loc, self.scale_tril, noise * (self.freedom / squares).sqrt().unsqueeze(-1))

    def log_prob(self, u: Tensor) -> Tensor:
        """Return the log density of u (C, B, D), (C, B)."""
        away, freedom, scored = u - self.loc, self.freedom, self.scored
        if scored is not None:
            away = torch.where(scored, away, 0.0)
        D = away.new_tensor(u.shape[-1]) if scored is None else scored.to(away).sum(-1)
        y = torch.linalg.solve_triangular(self.scale_tril, columns(away), upper=False)
        volume = self.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1) + 0.5 * D * math.log(freedom * math.pi)
        constant = torch.lgamma((freedom + D) / 2) - math.lgamma(freedom / 2)
        return constant - volume - 0.5 * (freedom + D) * torch.log1p(y.square().sum(1).T / freedom)


class LocalFit(NamedTuple):
    """Normals in units of the guide: z = centre + unit u, with centre and unit (B, D), and the distributions of u.

    ``scored``: which coordinates are, (B, D); None: all. The others are standard normal, in units of 1.
    """

    centre: Tensor
    unit: Tensor
    normals: Normals
    scored: Tensor | None = None

    def proposal(self) -> StudentT:
        """Return the Student-t distributions of u from which weights are drawn."""
        root = math.sqrt(WIDER) * self.normals.scale_tril
        if self.scored is not None:
            pairs = self.scored.unsqueeze(-1) & self.scored.unsqueeze(-2)
            root = torch.linalg.cholesky(torch.where(pairs, root @ root.mT, torch.eye(root.shape[-1]).to(root)))
        return StudentT(self.normals.loc, root, FREEDOM * root.shape[-1], self.scored)

    def log_mixture(self, z: Tensor, log_q: Tensor, share: float) -> tuple[Tensor, Tensor]:
        """Return log α q(z) and log m(z) for draws z (C, B, D), each (C, B): m = α q + (1 − α) t, q the guide.

        ``share``: α, from 0 to 1; log_q: log q(z), (C, B) in float64 on the host.
        """
        log_t = self.proposal().log_prob((z.double().cpu() - self.centre) / self.unit) - self.unit.log().sum(-1)
        guided = log_q + (math.log(share) if share else -math.inf)
        return guided, torch.logaddexp(guided, log_t + math.log1p(-share))


class LocalSampler:
    """Log weights, (K, B), of draws from the proposals that it fits to the rows of a batch.

    Compiled functions take slices of the draws, which all cores compute at once, and each core fits a share of the
    rows. All random numbers are drawn before.
    """

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
        calls = SLICES * settings.rounds * math.ceil(plan.weights / plan.size)
        self.gradients, self.densities = plan.graphs(compiled, calls), plan.graphs(compiled, calls)

    def __call__(self, batch: ProgramArguments, K: int, bar: tqdm) -> Tensor:
        """Fit the proposals of a batch and return log weights (K, B), float64."""
        path = AnnealingPath(self.model, self.guide, *batch, plan=self.plan)
        with pyro.validation_enabled(False):
            return self.log_weights(path, self.fit(path), K, bar)

    def fit(self, path: AnnealingPath) -> LocalFit:
        """Fit a normal distribution to the posterior of each row, from ``rounds`` times ``draws`` gradients."""
        first = path.draw(SCALE_DRAWS)
        if first.shape[-1] > MOST_DIMENSIONS:
            raise ValueError(
                f"proposal: wanted latent variables of at most {MOST_DIMENSIONS} dimensions for a weight, whose "
                f"covariance is fitted, got {first.shape[-1]}; take annealed_evidence, or a guide that was refitted"
            )
        start, draws = first.double().cpu(), self.settings.draws
        centre, unit = start.mean(0), start.std(0)
        scored = None if path.scored is None else path.scored.cpu()
        unit = torch.where(unit > 0 if scored is None else scored & (unit > 0), unit, 1.0)
        root = torch.eye(centre.shape[-1]).to(centre).expand(*centre.shape, -1)
        normals = MultivariateNormal(torch.zeros_like(centre), scale_tril=root)
        for t in range(self.settings.rounds):
            u = drawn(normals.loc, normals.scale_tril, torch.randn(draws, *centre.shape, dtype=centre.dtype))
            z = (centre + unit * u).to(first)
            (gradient,) = self._of_parts(self.gradients, AnnealingPath.joint_gradient, path, z)
            rate = draws / max(1, t + 1 - self.settings.rounds * SEARCHING)
            slope = unit * gradient.double().cpu()
            if scored is not None:
                slope = torch.where(scored, slope, -u)
            normals = matched_by_shares(normals, u, slope, rate)
        return LocalFit(centre, unit, normals, scored)

    def log_weights(self, path: AnnealingPath, fit: LocalFit, K: int, bar: tqdm) -> Tensor:
        """Return log weights (K, B) of new draws: of the guide first, then of the fitted proposals."""
        from_guide = self.settings.from_guide(K)
        guided, local = path.draw(max(from_guide, 1)), fit.centre + fit.unit * fit.proposal().sample(K - from_guide)
        z = torch.cat([guided[:from_guide], local.to(guided)])
        densities = self._of_parts(self.densities, AnnealingPath.log_prior_and_joint, path, z)
        log_prior, log_p = (value.double().cpu() for value in densities)
        bar.update(log_p.numel())
        of_guide = from_guide and path.guide is not None  # without a guide of its own the prior is q
        log_q = path.log_guide(z).double().cpu() if of_guide else log_prior
        return log_p - fit.log_mixture(z, log_q, from_guide / K)[1]

    def _of_parts(self, graphs: Graphs, quantity: Quantity, path: AnnealingPath, z: Tensor) -> list[Tensor]:
        """Return a quantity for draws z (C, B, D), computed in slices of them, by a compiled function if possible.

        The last compiled slice is filled up: all have one shape. A batch of fewer rows than the others is not worth a
        graph.
        """
        if path.arguments.rows == self.plan.size or graphs.strict:
            slices, workers = math.ceil(len(z) / self._draws_at_once(z)), cores() if z.device.type == "cpu" else 1
            size = math.ceil(len(z) / (workers * math.ceil(slices / workers)))
            filled = torch.cat([z, z[-1:].expand(-len(z) % size, -1, -1)])
            found = path.of_each(graphs, quantity, filled.split(size))
            if found is not None:
                return [values[: len(z)] for values in each_of_all(found)]
        return each_of_all(quantity(path, part) for part in z.split(self._draws_at_once(z)))

    def _draws_at_once(self, z: Tensor) -> int:
        return max(1, self.chunk // z.shape[1])


def each_of_all(parts: Iterable[Sequence[Tensor]]) -> list[Tensor]:
    """Return each of several results, from those of parts of the draws."""
    return [torch.cat(values) for values in zip(*parts)]
