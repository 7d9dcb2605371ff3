"""The densities along which chains are annealed, between a starting density and p(x, z), and their gradients."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from functools import partial, reduce
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask, sum_rightmost
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor, nn
from torch.distributions.transforms import Transform

from pyro_vae.arguments import ProgramArguments
from pyro_vae.compiling import Graphs
from pyro_vae.evidence.moved import PRIOR, check_bounds, moved_sites, tensors_in, to_support
from pyro_vae.evidence.plan import MeasurementPlan
from pyro_vae.parallel import WORTH, equal_parts
from pyro_vae.tracing.matching import check_draws
from pyro_vae.tracing.probing import modules
from pyro_vae.tracing.traces import check_sites, common_scale, per_image, proposal_sites, sample_sites
from pyro_vae.tracing.unscored import check_unused, scored_values


class ChainState(NamedTuple):
    """A position z (C, B, D), with log f_0 and Δ = log p(x, z) − log f_0, each (C, B), and their gradients."""

    z: Tensor
    start: Tensor
    delta: Tensor
    start_gradient: Tensor
    delta_gradient: Tensor

    def log_density(self, beta: float) -> Tensor:
        """Return log f_β = log f_0 + β Δ, (C, B)."""
        return self.start + beta * self.delta

    def gradient(self, beta: float) -> Tensor:
        """Return the gradient of log f_β by z, (C, B, D)."""
        return self.start_gradient + beta * self.delta_gradient


Quantity = Callable[["AnnealingPath", Tensor], Sequence[Tensor]]  # of a path and z


class AnnealingPath:
    """The densities between a starting density (the guide, or the prior if it is None) and p(x, z), in z (C, B, D).

    z holds all latent variables, flattened and unconstrained: those with a support other than all real numbers are
    transformed by ``biject_to``, and the densities are those of the transformed variables. Where the guide makes values
    of auxiliary draws, as ``AutoNormal`` does, z are these draws. If a latent site lies outside the plate over rows,
    all rows have one z together, and B = 1.

    Args:
        model, guide: a program; a guide of None starts from the prior.
        args, kwargs: of model and guide.
        rows: of the data; None: the length of the tensors among the arguments.
        graphs: what is compiled, shared by the paths of several batches; None: nothing.
        validated: whether Pyro checks the supports. Images drawn from the model may lie outside [0, 1].
        plan: how the program is measured, if that is known.

    Attributes:
        sites, transforms, shapes: of what moves, by name: latent sites of the model, or auxiliary ones of the guide.
        points: names of the latent sites whose values the guide makes of its auxiliary draws.
        scored: which coordinates of z have a density, (B, D): those of masked values have none, and no density depends
            on them. None: all have one.

    Raises ValueError for programs whose latent variables cannot be moved, or depend on masked ones.
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
        plan: MeasurementPlan | None = None,
    ):
        found = list(modules(model, guide).values())
        _check_differentiable(found)
        self.model, self.guide, self.graphs = model, guide, graphs
        self.arguments = given = ProgramArguments.of(args, kwargs, rows)
        self.source = model if guide is None else guide
        self.parameters = sum(p.numel() for owner in found for p in owner.parameters())
        self.validated = validated
        with pyro.validation_enabled(validated):
            self.plan = plan or MeasurementPlan.of(model, guide, given, given.rows, given.rows or 1)
            source = self._trace(self.source, 1)
            model_trace = source if guide is None else self._trace(model, 1, source)
            _check_program(model_trace, source)
            self.latent = list(sample_sites(model_trace, observed=False))
            self.sites, self.points = moved_sites(model_trace, None if guide is None else source)
            if self.points:
                proposal_sites(self._trace(self.source, 2))  # raises ValueError for single points
            self.transforms = {name: to_support(name, site) for name, site in self.sites.items()}
            check_bounds(self.sites, lambda: sample_sites(self._trace(model, 1)))
            check_unused(partial(self._trace, model, 1), model_trace)
            if guide is not None:
                check_unused(partial(self._trace, guide, 1), source)
        self.plate = self.plan.plate(model, self.source, given, (model_trace, source))
        self.scale = common_scale(model_trace, source, plate=self.plate)
        self.constants = tuple(tensors_in(*self.transforms.values(), self.scale))
        values = {name: site["value"] for name, site in self.sites.items()}
        self.shapes = {name: u.shape[2:] for name, u in self._rows_first(self._free(values)).items()}
        found = scored_values(self.sites, self.transforms)
        self.scored = None if found is None else self._joined(found)[0]

    def __call__(self, z: Tensor) -> ChainState:
        """Return the log densities at z (C, B, D), with their gradients."""
        worth = z[..., 0].numel() * self.parameters >= WORTH
        parts = z.chunk(equal_parts(len(z)) if worth else 1)
        compiled = self.graphs and self.of_each(self.graphs, AnnealingPath.densities_and_gradients, parts)
        if compiled:
            return ChainState(z, *map(torch.cat, zip(*compiled)))
        return ChainState(z.detach(), *self.densities_and_gradients(z))

    def of_each(self, graphs: Graphs, quantity: Quantity, parts: Sequence[Tensor]) -> Iterator[Sequence[Tensor]] | None:
        """Return a quantity for each part of z, all of one shape, by a compiled function; None: run eagerly.

        The paths of several batches share the function. So all that differs between their rows is an argument of it:
        beside z and the program's arguments, bounds of supports and weights of the rows.
        """

        def function(z: Tensor, *tensors: Tensor) -> Sequence[Tensor]:
            path = copy(self)
            path.arguments = self.arguments.with_tensors(tensors[len(self.constants) :])
            return quantity(path, z)  # it reads the constants where they lie

        return graphs.of_each(function, [(part, *self.constants, *self.arguments.tensors) for part in parts])

    @torch.enable_grad()
    def densities_and_gradients(self, z: Tensor) -> tuple[Tensor, ...]:
        """Return what a ``ChainState`` at z (C, B, D) holds beside z."""
        z = z.detach().requires_grad_()
        start, delta = self.log_densities(z)
        (start_gradient,) = torch.autograd.grad(start.sum(), z, retain_graph=True)
        (delta_gradient,) = torch.autograd.grad(delta.sum(), z)
        return start.detach(), delta.detach(), start_gradient, delta_gradient

    def draw(self, chains: int) -> Tensor:
        """Draw z ~ f_0, (chains, B, D)."""
        with pyro.validation_enabled(self.validated):
            sites = sample_sites(self._trace(self.source, chains))
        return self._joined(self._free({name: sites[name]["value"] for name in self.shapes}))

    def flatten(self, values: Mapping[str, Tensor]) -> Tensor:
        """Return z (C, B, D) from the values of the latent sites.

        Raises ValueError if z are a guide's auxiliary draws, of which the latent values are made.
        """
        if self.points:
            raise ValueError(
                f"the guide makes its values of {self.points} from auxiliary draws, which cannot be told from such "
                f"values; {PRIOR}"
            )
        return self._joined(self._free(values))

    def _free(self, values: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return the values of the latent sites, unconstrained."""
        return {name: transform.inv(values[name]) for name, transform in self.transforms.items()}

    def _joined(self, free: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([u.reshape(*u.shape[:2], -1) for u in self._rows_first(free).values()], -1)

    def _rows_first(self, free: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the unconstrained values of the latent sites, each (C, B, ...)."""
        if self.plate is None:
            return {name: u.unsqueeze(1) for name, u in free.items()}
        return {name: u.movedim(self._row_axis(self.plate), 1) for name, u in free.items()}

    def _row_axis(self, plate: CondIndepStackFrame) -> int:
        return self.plan.layout.nesting + 1 + plate.dim  # pyright: ignore[reportOperatorIssue]: not None, as vectorized

    def _unflatten(self, z: Tensor) -> dict[str, Tensor]:
        """Return the unconstrained values of the latent sites, in the shapes of their plates, from z (C, B, D)."""
        parts = z.split([shape.numel() for shape in self.shapes.values()], -1)
        free = {name: part.reshape(*z.shape[:2], *shape) for (name, shape), part in zip(self.shapes.items(), parts)}
        if self.plate is None:
            return {name: u.squeeze(1) for name, u in free.items()}
        return {name: u.movedim(1, self._row_axis(self.plate)) for name, u in free.items()}

    def log_densities(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return log f_0, with log |∂ value / ∂ z|, and log p(x, z) − log f_0, each (C, B)."""
        prior, likelihood, volume = self._terms(z)
        if self.guide is None:
            return prior + volume, likelihood
        guide, _ = self._log_guide(z)
        return guide + volume, prior + likelihood - guide

    def log_prior_and_joint(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return log p(z) and log p(x, z), both with log |∂ value / ∂ z|, each (C, B)."""
        prior, likelihood, volume = self._terms(z)
        return prior + volume, prior + likelihood + volume

    @torch.enable_grad()
    def joint_gradient(self, z: Tensor) -> tuple[Tensor]:
        """Return the gradient of log p(x, z) by z, (C, B, D) in a tuple."""
        z = z.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(self.log_prior_and_joint(z)[1].sum(), z)
        return (gradient,)

    def log_guide(self, z: Tensor) -> Tensor:
        """Return log q(z | x) with log |∂ value / ∂ z|, (C, B)."""
        return torch.add(*self._log_guide(z))

    def _terms(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return log p(z), log p(x | z) and log |∂ value / ∂ z|, each (C, B).

        Where the guide makes values from auxiliary draws u, log p(z) is with log |∂ z / ∂ u|, as the guide has it.
        """
        free, values = self._values(z)
        proposed = self._trace(self.source, len(z), values) if self.points else values
        sites = sample_sites(self._trace(self.model, len(z), proposed))
        prior = self._sum(sites[name] for name in self.latent)
        likelihood = self._sum(site for site in sites.values() if site["is_observed"])
        if self.points:
            drawn = sample_sites(proposed)
            prior, sites = prior - self._sum(drawn[name] for name in self.points), {**sites, **drawn}
        return prior, likelihood, self._volume(sites, free)

    def _log_guide(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return log q(z | x) and log |∂ value / ∂ z|, each (C, B)."""
        free, values = self._values(z)
        sites = sample_sites(self._trace(self.source, len(z), values))
        return self._sum(sites[name] for name in self.shapes), self._volume(sites, free)

    def _values(self, z: Tensor) -> tuple[dict[str, Tensor], poutine.Trace]:
        """Return the unconstrained values of the sites that move, and a trace of their values, for replay."""
        free, values = self._unflatten(z), poutine.Trace()
        for name, u in free.items():
            values.add_node(name, **{**self.sites[name], "value": self.transforms[name](u)})
        return free, values

    def _volume(self, sites: Mapping[str, Any], free: Mapping[str, Tensor]) -> Tensor:
        return self._sum(_volume(sites[name], self.transforms[name], u) for name, u in free.items())

    def _trace(self, program: Callable, chains: int, replayed: poutine.Trace | None = None) -> poutine.Trace:
        return self.plan.trace(program, self.arguments, chains, replayed)

    def _sum(self, sites: Iterable[Mapping[str, Any]]) -> Tensor:
        return reduce(torch.add, (per_image(site, self.plate) for site in sites)) / self.scale


def _check_differentiable(modules: Iterable[nn.Module]) -> None:
    if any(tensor.is_inference() for module in modules for tensor in (*module.parameters(), *module.buffers())):
        raise ValueError(
            "the program was made inside torch.inference_mode, so that it has no gradients, which Hamiltonian Monte "
            "Carlo needs; make or load it outside, or under torch.no_grad"
        )


def _check_program(model_trace: poutine.Trace, source: poutine.Trace) -> None:
    """Raise ValueError if chains cannot be annealed along the latent sites of a program."""
    if source is model_trace:
        check_draws(sample_sites(source, observed=False))
    else:
        check_sites(model_trace, source)
    if not sample_sites(model_trace, observed=True):
        raise ValueError("the model observes nothing; give it x, as in pyro.sample('x', ..., obs=x)")
    latent = sample_sites(model_trace, observed=False)
    if not any(site["value"].numel() for site in latent.values()):
        no = "latent site" if not latent else "dimension in its latent sites"
        raise ValueError(f"the model has no {no}, so that log p(x) needs no estimate: it is the model's log_prob")


def _volume(site: Mapping[str, Any], transform: Transform, free: Tensor) -> dict[str, Any]:
    """Return the site with log |∂ value / ∂ free| in place of its log-probability."""
    log_jacobian = transform.log_abs_det_jacobian(free, site["value"])
    log_jacobian = sum_rightmost(log_jacobian, site["fn"].event_dim - transform.codomain.event_dim)
    return {**site, "log_prob": scale_and_mask(log_jacobian, site["scale"], site["mask"])}
