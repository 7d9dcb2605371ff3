"""The densities along which chains are annealed, between a starting density and p(x, z), and their gradients."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from functools import partial, reduce
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.distributions.util import scale_and_mask, sum_rightmost
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor, nn
from torch.distributions import biject_to
from torch.distributions.transforms import Transform

from pyro_vae.arguments import ProgramArguments
from pyro_vae.compiling import Graphs, owners
from pyro_vae.evidence.plan import MeasurementPlan
from pyro_vae.parallel import WORTH, equal_parts
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
    transformed by ``biject_to``, and the densities are those of the transformed variables. If a latent site lies
    outside the plate over rows, all rows have one z together, and B = 1.

    Args:
        model, guide: a program; a guide of None starts from the prior.
        args, kwargs: of model and guide.
        rows: of the data; None: the length of the tensors among the arguments.
        graphs: what is compiled, shared by the paths of several batches; None: nothing.
        validated: whether Pyro checks the supports. Images drawn from the model may lie outside [0, 1].
        plan: how the program is measured, if that is known.

    Attributes:
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
        _check_differentiable(owners(model, guide))
        self.model, self.guide, self.graphs = model, guide, graphs
        self.arguments = given = ProgramArguments.of(args, kwargs, rows)
        self.source = model if guide is None else guide
        self.parameters = sum(p.numel() for owner in owners(model, guide) for p in owner.parameters())
        self.validated = validated
        with pyro.validation_enabled(validated):
            self.plan = plan or MeasurementPlan.of(model, guide, given, given.rows, given.rows or 1)
            source = self._trace(self.source, 1)
            model_trace = source if guide is None else self._trace(model, 1, source)
            _check_program(model_trace, source)
            self.sites = sample_sites(model_trace, observed=False)
            self.transforms = {name: _to_support(name, site) for name, site in self.sites.items()}
            _check_bounds(self.sites, lambda: sample_sites(self._trace(model, 1)))
            check_unused(partial(self._trace, model, 1), model_trace)
            if guide is not None:
                check_unused(partial(self._trace, guide, 1), source)
        self.plate = self.plan.plate(model, self.source, given, (model_trace, source))
        self.scale = common_scale(model_trace, source, plate=self.plate)
        self.constants = tuple(_tensors(*self.transforms.values(), self.scale))
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
        return self.flatten({name: sites[name]["value"] for name in self.shapes})

    def flatten(self, values: Mapping[str, Tensor]) -> Tensor:
        """Return z (C, B, D) from the values of the latent sites."""
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
        """Return log p(z), log p(x | z) and log |∂ value / ∂ z|, each (C, B)."""
        sites, volume = self._scored(self.model, z)
        likelihood = self._sum(site for name, site in sites.items() if name not in self.shapes)
        return self._sum(sites[name] for name in self.shapes), likelihood, volume

    def _log_guide(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return log q(z | x) and log |∂ value / ∂ z|, each (C, B)."""
        sites, volume = self._scored(self.source, z)
        return self._sum(sites[name] for name in self.shapes), volume

    def _scored(self, program: Callable, z: Tensor) -> tuple[dict[str, Any], Tensor]:
        """Return the sites of model or guide at z, and log |∂ value / ∂ z|, (C, B)."""
        free, latent = self._unflatten(z), poutine.Trace()
        for name, u in free.items():
            latent.add_node(name, **{**self.sites[name], "value": self.transforms[name](u)})
        sites = sample_sites(self._trace(program, len(z), latent))
        return sites, self._sum(_volume(sites[name], self.transforms[name], u) for name, u in free.items())

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
    if source is not model_trace:
        check_sites(model_trace, source)
    if not sample_sites(model_trace, observed=True):
        raise ValueError("the model observes nothing; give it x, as in pyro.sample('x', ..., obs=x)")
    latent = sample_sites(model_trace, observed=False)
    if not any(site["value"].numel() for site in latent.values()):
        no = "latent site" if not latent else "dimension in its latent sites"
        raise ValueError(f"the model has no {no}, so that log p(x) needs no estimate: it is the model's log_prob")
    for name, site in proposal_sites(source).items() if source is not model_trace else ():
        if site["infer"].get("is_auxiliary"):
            raise ValueError(f"site {name!r} is auxiliary in the guide; start from the prior, with guide=None")


def _to_support(name: str, site: Mapping[str, Any]) -> Transform:
    """Return the transform from all real numbers to the support of a latent site."""
    support = site["fn"].support
    if isinstance(support, constraints.MixtureSameFamilyConstraint):  # torch has no transform registered for it
        support = support.base_constraint
    try:
        return biject_to(support)
    except NotImplementedError:
        is_discrete = "is discrete, with" if getattr(support, "is_discrete", False) else "has"
        enumerated = " and is to be enumerated" if site["infer"].get("enumerate") else ""
        raise ValueError(
            f"site {name!r} {is_discrete} the support {support}{enumerated}, but Hamiltonian Monte Carlo moves z over "
            "real numbers, or over supports that Pyro's biject_to maps to them; sum a discrete variable out in the "
            "model (Pyro's MixtureSameFamily), or take log_evidence with a guide that draws it"
        ) from None


def _check_bounds(latent: Mapping[str, Mapping], again: Callable[[], Mapping[str, Mapping]]) -> None:
    """Raise ValueError if the support of a latent site differs in a second run of the model."""
    bounds = {name: list(_tensors(site["fn"].support)) for name, site in latent.items()}
    if not any(bounds.values()):
        return
    second = again()
    for name, found in bounds.items():
        if not all(map(torch.equal, found, _tensors(second[name]["fn"].support))):
            raise ValueError(
                f"site {name!r} has the support {latent[name]['fn'].support}, whose bounds depend on another latent "
                "site; sample it on [0, 1] and scale it in the program, or take log_evidence"
            )


def _tensors(*values: Any) -> Iterator[Tensor]:
    """Yield the tensors among values, and of constraints and transforms, and of what these are made of, each once."""
    todo, seen = list(values), set()
    while todo:
        value = todo.pop()
        if id(value) in seen:  # a transform and its inverse refer to each other
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, constraints.Constraint | Transform):
            todo += vars(value).values()
        elif isinstance(value, list | tuple):
            todo += value


def _volume(site: Mapping[str, Any], transform: Transform, free: Tensor) -> dict[str, Any]:
    """Return the site with log |∂ value / ∂ free| in place of its log-probability."""
    log_jacobian = transform.log_abs_det_jacobian(free, site["value"])
    log_jacobian = sum_rightmost(log_jacobian, site["fn"].event_dim - transform.codomain.event_dim)
    return {**site, "log_prob": scale_and_mask(log_jacobian, site["scale"], site["mask"])}
