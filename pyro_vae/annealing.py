"""Annealing: Hamiltonian chains along the densities between a start and p(x, z) (Neal 2001; Wu et al. 2017)."""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.distributions import constraints
from torch import Tensor, nn
from tqdm.auto import tqdm

from pyro_vae.compiling import Graphs, owners, traced
from pyro_vae.traces import (
    check_sites,
    common_scale,
    image_plate,
    particle_trace,
    per_image,
    plate_nesting,
    sample_sites,
)

TARGET_ACCEPTANCE = 0.65  # of Hamiltonian proposals (Neal 2011)
ADAPTATION = 0.1  # d log(step size) for each unit by which the acceptance misses its target
PILOTS = 2  # chains per image that carry no weight and only set the step size
SCALE_DRAWS = 64  # draws per image of the starting density, whose spread is the unit of the step size


def linear(num_temperatures: int) -> Tensor:
    """β_t = t / T, shape (T + 1,).

    >>> linear(4)
    tensor([0.0000, 0.2500, 0.5000, 0.7500, 1.0000], dtype=torch.float64)
    """
    return torch.linspace(0, 1, num_temperatures + 1, dtype=torch.float64)


def sigmoid(num_temperatures: int, slope: float = 4.0) -> Tensor:
    """β_t ∝ σ(slope (2t/T − 1)), moved and scaled to run from 0 to 1: dense at both ends (Grosse et al. 2015).

    >>> sigmoid(4)
    tensor([0.0000, 0.1050, 0.5000, 0.8950, 1.0000], dtype=torch.float64)
    """
    beta = (slope * (2 * linear(num_temperatures) - 1)).sigmoid()
    return (beta - beta[0]) / (beta[-1] - beta[0])


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


class Path:
    """The densities between a starting density (guide, or prior where it is None) and p(x, z), in flat z (C, B, D).

    ``graphs``: what is compiled, shared by the paths of several batches; without, nothing is. ``validated``: whether
    Pyro looks at the supports; not of images that the model itself drew, which may lie beyond [0, 1].
    """

    def __init__(
        self,
        model: Callable,
        guide: Callable | None,
        args: tuple[Tensor, ...],
        graphs: Graphs | None = None,
        validated: bool = True,
    ):
        self.model, self.guide, self.args, self.graphs = model, guide, args, graphs
        self.source = model if guide is None else guide
        self.validated = validated
        with pyro.validation_enabled(validated):
            self.nesting = plate_nesting(model, self.source, args)
            source = self._trace(self.source, 1)
            model_trace = source if guide is None else self._trace(poutine.replay(model, trace=source), 1)
        _check_program(model_trace, source)
        self.plate = image_plate(model_trace, source, len(args[0]))
        self.scale = common_scale(model_trace, source)
        self.shapes = {
            name: site["value"].movedim(self._image_axis, 1).shape[2:]
            for name, site in sample_sites(model_trace, observed=False).items()
        }

    def __call__(self, z: Tensor) -> Point:
        graph = self.graphs and self.graphs.get(lambda: self._point(z), (z, *self.args))
        if graph:
            return Point(z, *graph(z, *self.args))
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            start, delta = self.log_densities(z)
            (start_gradient,) = torch.autograd.grad(start.sum(), z, retain_graph=True)
            (delta_gradient,) = torch.autograd.grad(delta.sum(), z)
        return Point(z.detach(), start.detach(), delta.detach(), start_gradient, delta_gradient)

    def _point(self, z: Tensor) -> Callable[..., tuple[Tensor, ...]]:
        """From z and the program's arguments, of the shapes of this z and ``args``, to a ``Point`` without its z."""
        densities = traced(Densities(self), (z, *self.args))

        def point(z: Tensor, *args: Tensor) -> tuple[Tensor, ...]:
            (start, delta), pullback = torch.func.vjp(lambda z: densities(z, *args).unbind(), z)
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
        parts = (values[name].movedim(self._image_axis, 1) for name in self.shapes)
        return torch.cat([part.reshape(*part.shape[:2], -1) for part in parts], -1)

    @property
    def _image_axis(self) -> int:
        return self.nesting + 1 + self.plate.dim

    def _unflatten(self, z: Tensor) -> dict[str, Tensor]:
        parts = z.split([shape.numel() for shape in self.shapes.values()], -1)
        return {
            name: part.reshape(*z.shape[:2], *shape).movedim(1, self._image_axis)
            for (name, shape), part in zip(self.shapes.items(), parts)
        }

    def log_densities(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """log f_0 and log p(x, z) − log f_0, each (C, B)."""
        chains, values = len(z), self._unflatten(z)
        sites = sample_sites(self._trace(poutine.condition(self.model, data=values), chains))
        prior = self._sum(site for name, site in sites.items() if name in self.shapes)
        likelihood = self._sum(site for name, site in sites.items() if name not in self.shapes)
        if self.guide is None:
            return prior, likelihood
        guide = self._trace(poutine.condition(self.guide, data=values), chains)
        start = self._sum(sample_sites(guide).values())
        return start, prior + likelihood - start

    def _trace(self, program: Callable, chains: int) -> poutine.Trace:
        return particle_trace(program, self.args, chains, self.nesting)

    def _sum(self, sites: Iterable[Mapping[str, Any]]) -> Tensor:
        return sum(per_image(site, self.plate) for site in sites) / self.scale


class Densities(nn.Module):
    """Both log densities of a path, (2, C, B), from z and the program's arguments, with the modules of the program."""

    def __init__(self, path: Path):
        super().__init__()
        self.path, self.owners = path, nn.ModuleList(owners(path.model, path.guide))

    def forward(self, z: Tensor, *args: Tensor) -> Tensor:
        path = copy(self.path)
        path.args = args
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

    log_w: Tensor
    acceptance: Tensor
    steps: Tensor
    scale: Tensor


def forward_run(path: Path, setting: Setting, bar: tqdm) -> Run:
    """Chains from the starting density to p(x, z), whose step sizes the pilot chains set."""
    scale = path.draw(SCALE_DRAWS).std(0)
    z = path.draw(PILOTS + setting.chains)
    step = 0.5 * z.shape[-1] ** -0.25 if setting.step_size is None else setting.step_size
    steps = z.new_full((len(setting.betas) - 2, z.shape[1]), step)
    return anneal(path, z, setting, steps, scale, PILOTS, bar)


def anneal(path: Path, z: Tensor, setting: Setting, steps: Tensor, scale: Tensor, pilots: int, bar: tqdm) -> Run:
    """Chains z (pilots + C, B, D) along the temperatures; pilots, if any, set all step sizes but the first."""
    log_w, acceptance = z.new_zeros(z.shape[:2], dtype=torch.float64), []
    with pyro.validation_enabled(False):
        point = path(z)
        for t, (before, beta) in enumerate(itertools.pairwise(setting.betas)):
            log_w = log_w + (beta - before) * point.delta
            bar.update(z.shape[1])
            if t == len(steps):
                break
            point, probability = hamiltonian(path, point, beta, steps[t].unsqueeze(-1) * scale, setting.leapfrog)
            acceptance.append(probability[pilots:].mean(0))
            if pilots and t + 1 < len(steps):
                steps[t + 1] = steps[t] * (ADAPTATION * (probability[:pilots].mean(0) - TARGET_ACCEPTANCE)).exp()
    return Run(log_w[pilots:], torch.stack(acceptance), steps, scale)


def hamiltonian(path: Path, old: Point, beta: float, step: Tensor, leapfrog: int) -> tuple[Point, Tensor]:
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


def _check_program(model_trace: poutine.Trace, source: poutine.Trace) -> None:
    """Raises ValueError for a program along whose latent sites no chain can be annealed."""
    if source is not model_trace:
        check_sites(model_trace, source)
    if not sample_sites(model_trace, observed=True):
        raise ValueError("the model observes nothing; give it x, as in pyro.sample('x', ..., obs=x)")
    for name, site in (*sample_sites(source, False).items(), *sample_sites(model_trace, False).items()):
        if site["infer"].get("is_auxiliary"):
            raise ValueError(f"site {name!r} is auxiliary in the guide; start from the prior, with guide=None")
        if not _is_real(site["fn"].support):
            raise ValueError(
                f"site {name!r} has the support {site['fn'].support}, but Hamiltonian Monte Carlo moves z over all "
                "real numbers; sample an unconstrained z and transform it in the program, or take log_evidence"
            )


def _is_real(support: constraints.Constraint) -> bool:
    while hasattr(support, "base_constraint"):  # of an independent distribution, or of a mixture
        support = support.base_constraint
    return isinstance(support, type(constraints.real))
