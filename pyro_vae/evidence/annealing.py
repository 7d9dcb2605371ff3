"""Annealing: Hamiltonian chains along the densities between a start and p(x, z) (Neal 2001; Wu et al. 2017)."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import copy
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.distributions.util import scale_and_mask, sum_rightmost
from torch import Tensor, nn
from torch.distributions import biject_to
from torch.distributions.transforms import Transform
from tqdm.auto import tqdm

from pyro_vae.compiling.export import Graphs, owners, traced
from pyro_vae.evidence.arguments import Arguments
from pyro_vae.evidence.plan import Plan
from pyro_vae.tracing.traces import check_sites, common_scale, per_image, proposal_sites, sample_sites

TARGET_ACCEPTANCE = 0.65  # of Hamiltonian proposals (Neal 2011)
ADAPTATION = 0.1  # d log(step size) for each unit by which the acceptance misses its target
PILOTS = 2  # chains per image that carry no weight and only set the step size
SCALE_DRAWS = 64  # draws per image of the starting density, whose spread is the unit of the step size


def linear(num_temperatures: int) -> Tensor:
    """β_t = t / T, shape (T + 1,).

    >>> linear(4)
    tensor([0.0000, 0.2500, 0.5000, 0.7500, 1.0000], dtype=torch.float64)
    """
    return torch.from_dlpack(np.linspace(0, 1, num_temperatures + 1))


def sigmoid(num_temperatures: int, slope: float = 4.0) -> Tensor:
    """β_t ∝ σ(slope (2t/T − 1)), moved and scaled to run from 0 to 1: dense at both ends (Grosse et al. 2015).

    >>> sigmoid(4)
    tensor([0.0000, 0.1050, 0.5000, 0.8950, 1.0000], dtype=torch.float64)
    """
    beta = 1 / (1 + np.exp(-slope * (2 * np.linspace(0, 1, num_temperatures + 1) - 1)))
    return torch.from_dlpack((beta - beta[0]) / (beta[-1] - beta[0]))


class Point(NamedTuple):
    """A position z (C, B, D), with log f_0 and Δ = log p(x, z) − log f_0, each (C, B), and their gradients."""

    z: Tensor
    start: Tensor
    delta: Tensor
    start_gradient: Tensor
    delta_gradient: Tensor

    def log_density(self, beta: float) -> Tensor:
        return self.start + beta * self.delta

    def gradient(self, beta: float) -> Tensor:
        return self.start_gradient + beta * self.delta_gradient


class AnnealingPath:
    """The densities between a starting density (guide, or prior where it is None) and p(x, z), in flat z (C, B, D).

    Latent variables of other supports than all real numbers are moved where Pyro's ``biject_to`` has them
    unconstrained, and the densities are those of the unconstrained z. Where latent sites lie outside the plate over
    rows there is one z for all rows, B = 1.

    Args:
        args, kwargs: of model and guide.
        rows: of the data; None: the length of the tensors among the arguments.
        graphs: what is compiled, shared by the paths of several batches; without, nothing is.
        validated: whether Pyro looks at the supports; not of images that the model itself drew, which may lie beyond
            [0, 1].
        plan: how the program is measured, if that is known.
    """

    def __init__(
        self,
        model: Callable,
        guide: Callable | None,
        args: tuple,
        kwargs: Mapping[str, Any] | None = None,
        rows: int | None = None,
        graphs: Graphs | None = None,
        validated: bool = True,
        plan: Plan | None = None,
    ):
        _check_differentiable(owners(model, guide))
        self.model, self.guide, self.graphs = model, guide, graphs
        self.arguments = given = Arguments.of(args, kwargs, rows)
        self.source = model if guide is None else guide
        self.validated = validated
        with pyro.validation_enabled(validated):
            self.plan = plan or Plan.of(model, guide, given, given.rows, given.rows or 1)
            source = self._trace(self.source, 1)
            model_trace = source if guide is None else self._trace(model, 1, source)
            _check_program(model_trace, source)
            self.sites = sample_sites(model_trace, observed=False)
            self.transforms = {name: _to_support(name, site) for name, site in self.sites.items()}
            _check_bounds(self.sites, lambda: sample_sites(self._trace(model, 1)))
        self.plate = self.plan.plate(model, self.source, given, (model_trace, source))
        self.scale = common_scale(model_trace, source, plate=self.plate)
        free = self._rows_first({name: site["value"] for name, site in self.sites.items()})
        self.shapes = {name: u.shape[2:] for name, u in free.items()}

    def __call__(self, z: Tensor) -> Point:
        tensors = (z, *self.arguments.tensors)
        graph = self.graphs and self.graphs.get(lambda: self._point(z), tensors)
        if graph:
            return Point(z, *graph(*tensors))
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            start, delta = self.log_densities(z)
            (start_gradient,) = torch.autograd.grad(start.sum(), z, retain_graph=True)
            (delta_gradient,) = torch.autograd.grad(delta.sum(), z)
        return Point(z.detach(), start.detach(), delta.detach(), start_gradient, delta_gradient)

    def _point(self, z: Tensor) -> Callable[..., tuple[Tensor, ...]]:
        """From z and the program's tensors, of the shapes of this z and ``arguments``, to a ``Point`` without its z."""
        densities = traced(Densities(self), (z, *self.arguments.tensors))

        def point(z: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
            (start, delta), pullback = torch.func.vjp(lambda z: densities(z, *tensors).unbind(), z)
            one, none = torch.ones_like(start), torch.zeros_like(start)
            return start, delta, *pullback((one, none)), *pullback((none, one))

        return point

    def draw(self, chains: int) -> Tensor:
        """z ~ f_0, (chains, B, D)."""
        with pyro.validation_enabled(self.validated):
            nodes = self._trace(self.source, chains).nodes
        return self.flatten({name: nodes[name]["value"] for name in self.shapes})

    def flatten(self, values: Mapping[str, Tensor]) -> Tensor:
        """Values of the latent sites -> z (C, B, D)."""
        return torch.cat([u.reshape(*u.shape[:2], -1) for u in self._rows_first(values).values()], -1)

    def _rows_first(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Values of the latent sites -> unconstrained ones, each (C, B, ...)."""
        free = {name: self.transforms[name].inv(values[name]) for name in self.transforms}
        if self.plate is None:
            return {name: u.unsqueeze(1) for name, u in free.items()}
        return {name: u.movedim(self._row_axis, 1) for name, u in free.items()}

    @property
    def _row_axis(self) -> int:
        return self.plan.layout.nesting + 1 + self.plate.dim

    def _unflatten(self, z: Tensor) -> dict[str, Tensor]:
        """z (C, B, D) -> unconstrained values of the latent sites, in the shapes of their plates."""
        parts = z.split([shape.numel() for shape in self.shapes.values()], -1)
        free = {name: part.reshape(*z.shape[:2], *shape) for (name, shape), part in zip(self.shapes.items(), parts)}
        if self.plate is None:
            return {name: u.squeeze(1) for name, u in free.items()}
        return {name: u.movedim(1, self._row_axis) for name, u in free.items()}

    def log_densities(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """log f_0 and log p(x, z) − log f_0, each (C, B); log f_0 with log |∂ value / ∂ z|."""
        chains, free, latent = len(z), self._unflatten(z), poutine.Trace()
        for name, u in free.items():
            latent.nodes[name] = {**self.sites[name], "value": self.transforms[name](u)}
        sites = sample_sites(self._trace(self.model, chains, latent))
        volume = self._sum(_volume(sites[name], self.transforms[name], u) for name, u in free.items())
        prior = self._sum(sites[name] for name in self.shapes)
        likelihood = self._sum(site for name, site in sites.items() if name not in self.shapes)
        if self.guide is None:
            return prior + volume, likelihood
        guide = self._trace(self.guide, chains, latent)
        start = self._sum(guide.nodes[name] for name in self.shapes)
        return start + volume, prior + likelihood - start

    def _trace(self, program: Callable, chains: int, replayed: poutine.Trace | None = None) -> poutine.Trace:
        return self.plan.trace(program, self.arguments, chains, replayed)

    def _sum(self, sites: Iterable[Mapping[str, Any]]) -> Tensor:
        return sum(per_image(site, self.plate) for site in sites) / self.scale


class Densities(nn.Module):
    """Both log densities of a path, (2, C, B), from z and the program's tensors, with the modules of the program."""

    def __init__(self, path: AnnealingPath):
        super().__init__()
        self.path, self.owners = path, nn.ModuleList(owners(path.model, path.guide))

    def forward(self, z: Tensor, *tensors: Tensor) -> Tensor:
        path = copy(self.path)
        path.arguments = path.arguments.with_tensors(tensors)
        return torch.stack(path.log_densities(z))


class Setting(NamedTuple):
    """β_0 … β_T, chains an image, leapfrog steps a transition, and the first step size (None: ½ D^−¼)."""

    betas: list[float]
    chains: int
    leapfrog: int
    step_size: float | None

    def reversed(self) -> "Setting":
        return self._replace(betas=self.betas[::-1])


class Run(NamedTuple):
    """log w (C, B); acceptance probabilities and step sizes of the T − 1 transitions, each (T − 1, B); unit (B, D)."""

    log_w: np.ndarray
    acceptance: Tensor
    steps: Tensor
    scale: Tensor


def forward_run(path: AnnealingPath, setting: Setting, bar: tqdm) -> Run:
    """Chains from the starting density to p(x, z), whose step sizes the pilot chains set."""
    scale = path.draw(SCALE_DRAWS).std(0)
    z = path.draw(PILOTS + setting.chains)
    step = 0.5 * z.shape[-1] ** -0.25 if setting.step_size is None else setting.step_size
    steps = z.new_full((len(setting.betas) - 2, z.shape[1]), step)
    return anneal(path, z, setting, steps, scale, PILOTS, bar)


def anneal(
    path: AnnealingPath, z: Tensor, setting: Setting, steps: Tensor, scale: Tensor, pilots: int, bar: tqdm
) -> Run:
    """Chains z (pilots + C, B, D) along the temperatures; pilots, if any, set all step sizes but the first."""
    log_w, acceptance = np.zeros(z.shape[:2]), []  # in float64 on the host: not every device has it
    with pyro.validation_enabled(False):
        point = path(z)
        for t, (before, beta) in enumerate(itertools.pairwise(setting.betas)):
            log_w += (beta - before) * point.delta.cpu().numpy()
            bar.update(z.shape[1])
            if t == len(steps):
                break
            point, probability = hamiltonian(path, point, beta, steps[t].unsqueeze(-1) * scale, setting.leapfrog)
            acceptance.append(probability[pilots:].mean(0))
            if pilots and t + 1 < len(steps):
                steps[t + 1] = steps[t] * (ADAPTATION * (probability[:pilots].mean(0) - TARGET_ACCEPTANCE)).exp()
    return Run(log_w[pilots:], torch.stack(acceptance), steps, scale)


def hamiltonian(path: AnnealingPath, old: Point, beta: float, step: Tensor, leapfrog: int) -> tuple[Point, Tensor]:
    """A Hamiltonian transition that leaves f_β alone (Neal 2011), and its acceptance probability (C, B).

    step: (B, D), the step size times the unit of each dimension; jittered by up to 20 %, since trajectories of one
    length may be periodic.
    """
    step = step * (0.8 + 0.4 * torch.rand_like(old.start)).unsqueeze(-1)
    momentum = torch.randn_like(old.z)
    new, p = old, momentum
    for _ in range(leapfrog):
        p = p + 0.5 * step * new.gradient(beta)
        new = path(new.z + step * p)
        p = p + 0.5 * step * new.gradient(beta)
    energy = new.log_density(beta) - old.log_density(beta) - 0.5 * (p.square() - momentum.square()).sum(-1)
    probability = energy.nan_to_num(nan=-math.inf).clamp(max=0).exp()
    accepted = torch.rand_like(probability) < probability
    chosen = (torch.where(accepted.reshape(accepted.shape + (1,) * (a.dim() - 2)), a, b) for a, b in zip(new, old))
    return Point(*chosen), probability


def _check_differentiable(modules: Iterable[nn.Module]) -> None:
    if any(tensor.is_inference() for module in modules for tensor in (*module.parameters(), *module.buffers())):
        raise ValueError(
            "the program was made inside torch.inference_mode, where nothing can be differentiated, as Hamiltonian "
            "Monte Carlo has to; make or load it outside, or under torch.no_grad"
        )


def _check_program(model_trace: poutine.Trace, source: poutine.Trace) -> None:
    """Raises ValueError for a program along whose latent sites no chain can be annealed."""
    if source is not model_trace:
        check_sites(model_trace, source)
    if not sample_sites(model_trace, observed=True):
        raise ValueError("the model observes nothing; give it x, as in pyro.sample('x', ..., obs=x)")
    if not sample_sites(model_trace, observed=False):
        raise ValueError("the model has no latent site, so that log p(x) needs no estimate: it is the model's log_prob")
    for name, site in proposal_sites(source).items() if source is not model_trace else ():
        if site["infer"].get("is_auxiliary"):
            raise ValueError(f"site {name!r} is auxiliary in the guide; start from the prior, with guide=None")


def _to_support(name: str, site: Mapping[str, Any]) -> Transform:
    """From all real numbers to the support of a latent site."""
    support = site["fn"].support
    if isinstance(support, constraints.MixtureSameFamilyConstraint):  # torch has no transform registered for it
        support = support.base_constraint
    try:
        return biject_to(support)
    except NotImplementedError:
        enumerated = " and is to be enumerated" if site["infer"].get("enumerate") else ""
        raise ValueError(
            f"site {name!r} has the support {site['fn'].support}{enumerated}, but Hamiltonian Monte Carlo moves z over "
            "real numbers, or what Pyro's biject_to makes of them; sum a discrete variable out in the model (Pyro's "
            "MixtureSameFamily), or take log_evidence with a guide that draws it"
        ) from None


def _check_bounds(latent: Mapping[str, Mapping], again: Callable[[], Mapping[str, Mapping]]) -> None:
    """Raises ValueError where the support of a latent site is another one in a second run of the model."""
    bounds = {name: list(_bounds(site["fn"].support)) for name, site in latent.items()}
    if not any(bounds.values()):
        return
    second = again()
    for name, found in bounds.items():
        if not all(map(torch.equal, found, _bounds(second[name]["fn"].support))):
            raise ValueError(
                f"site {name!r} has the support {latent[name]['fn'].support}, whose bounds depend on another latent "
                "site; sample it on [0, 1] and scale it in the program, or take log_evidence"
            )


def _bounds(support: constraints.Constraint) -> Iterator[Tensor]:
    for value in vars(support).values():
        if isinstance(value, constraints.Constraint):
            yield from _bounds(value)
        elif isinstance(value, Tensor):
            yield value


def _volume(site: Mapping[str, Any], transform: Transform, free: Tensor) -> dict[str, Any]:
    """The site with log |∂ value / ∂ free| in the place of its log-probability."""
    log_jacobian = transform.log_abs_det_jacobian(free, site["value"])
    log_jacobian = sum_rightmost(log_jacobian, site["fn"].event_dim - transform.codomain.event_dim)
    return {**site, "log_prob": scale_and_mask(log_jacobian, site["scale"], site["mask"])}
