"""Which sites of a program chains and fitted proposals move, and the transforms that free their values of bounds."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import biject_to
from torch.distributions.transforms import Transform

from pyro_vae.tracing.messages import Site, core, is_point, masks
from pyro_vae.tracing.supports import PartOf, free_numbers, is_misdeclared, known_support
from pyro_vae.tracing.traces import proposal_sites, sample_sites

PRIOR = "start from the prior, with guide=None"


def moved_sites(model_trace: poutine.Trace, guide_trace: poutine.Trace | None) -> tuple[dict[str, Site], list[str]]:
    """Return the sites that move, by name, and the names of latent sites whose values the guide makes of them.

    These are the model's latent sites. Where a guide makes values (``Delta``) of auxiliary draws, as ``AutoNormal``
    does, the draws move in their place: one number for each number of such a site.

    Raises ValueError for other points and auxiliary draws: the density of what the guide proposes is not known then.

    >>> import pyro
    >>> import pyro.distributions as dist
    >>> def model():
    ...     pyro.sample("z", dist.LogNormal(0.0, 1.0))
    >>> guide = pyro.infer.autoguide.AutoNormal(model)
    >>> moved, points = moved_sites(*(poutine.trace(program).get_trace() for program in (model, guide)))
    >>> list(moved), points
    (['z_unconstrained'], ['z'])
    """
    latent = sample_sites(model_trace, observed=False)
    drawn = {} if guide_trace is None else proposal_sites(guide_trace)
    made_of = {name for name, site in drawn.items() if is_point(site["fn"])}
    points = [name for name in latent if name in made_of]
    auxiliary = {name: site for name, site in drawn.items() if name not in latent and name not in made_of}
    if any(masks(site) for site in auxiliary.values()):
        raise ValueError(f"the guide masks its auxiliary draws {[*auxiliary]}, so that q(z | x) is unknown; {PRIOR}")
    for name in points:
        to_support(name, latent[name])  # raises ValueError for a discrete one
    made = sum(free_numbers(latent[name]) for name in points)
    moving = sum(site["value"].numel() for site in auxiliary.values())
    if made != moving:
        raise ValueError(
            f"the guide makes {made} numbers (sites {points}) of {moving} that it draws (auxiliary sites "
            f"{[*auxiliary]}): wanted as many, so that q(z | x) has a density along which chains move; {PRIOR}"
        )
    return {**{name: site for name, site in latent.items() if name not in points}, **auxiliary}, points


def to_support(name: str, site: Mapping[str, Any]) -> Transform:
    """Return the transform from all real numbers to the support of a latent site."""
    support = _support(name, site)
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


def check_bounds(latent: Mapping[str, Mapping], again: Callable[[], Mapping[str, Mapping]]) -> None:
    """Raise ValueError if the support of a latent site differs in a second run of the model."""
    bounds = {name: list(tensors_in(_support(name, site))) for name, site in latent.items()}
    if not any(bounds.values()):
        return
    second = again()
    for name, found in bounds.items():
        if found and not all(map(torch.equal, found, tensors_in(_support(name, second[name])))):
            raise ValueError(
                f"site {name!r} has the support {_support(name, latent[name])}, whose bounds depend on another latent "
                "site; sample it on [0, 1] and scale it in the program, or take log_evidence"
            )


def _support(name: str, site: Mapping[str, Any]) -> constraints.Constraint:
    """Return where the values of a site lie, which may be less than what torch says."""
    fn = core(site["fn"])
    if not is_misdeclared(fn):
        return site["fn"].support
    known = known_support(fn)
    if known is None or isinstance(known, PartOf):
        raise ValueError(
            f"site {name!r}: where the values of its {type(fn).__name__} lie is unknown, as its base has bounds, so "
            "that chains cannot move over them; sample the base in the program and transform its value, as z = a + b u"
        )
    return known


def tensors_in(*values: Any) -> Iterator[Tensor]:
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
