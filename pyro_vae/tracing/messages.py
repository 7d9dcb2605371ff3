"""The sites of a trace (messages, in Pyro): what each of them scores, and the distributions that its own wraps."""

from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from pyro import distributions as dist
from pyro.poutine import Trace
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Distribution, TransformedDistribution

PARTICLES = "pyro_vae: particles"  # the plate of particles; no program has a plate of this name
Site = Any  # a message of Pyro, whose TypedDict declares every entry optional


def sample_sites(trace: Trace, observed: bool | None = None) -> dict[str, Site]:
    """Return the sample sites of a trace by name: all of them, only the observed, or only the latent ones.

    ``pyro.deterministic`` records a value and a plate its indices; neither has a density, so both are left out.

    >>> import pyro
    >>> def model():
    ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
    ...     pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(2.0))
    >>> list(sample_sites(pyro.poutine.trace(model).get_trace(), observed=False))
    ['z']
    """
    nodes = cast(Mapping[str, Site], trace.nodes)
    return {
        name: site
        for name, site in nodes.items()
        if site["type"] == "sample"
        and observed in (None, site["is_observed"])
        and not site["infer"].get("_deterministic")
        and not site_is_subsample(site)
    }


def changed(site: Site, **entries: Any) -> Site:
    """Return a copy of a site with some entries replaced."""
    return {**site, **entries}


def dim_of(plate: CondIndepStackFrame) -> int:
    """Return the dimension of a vectorised plate."""
    return cast(int, plate.dim)


def masks(site: Site) -> list[Tensor]:
    """Return the masks of a site and of its distribution, in a shape that broadcasts against its value.

    >>> import pyro
    >>> half = dist.Normal(torch.zeros(2), 1.0).mask(torch.tensor([True, False])).to_event(1)
    >>> masks(pyro.poutine.trace(lambda: pyro.sample("z", half)).get_trace().nodes["z"])
    [tensor([ True, False])]
    """
    if "masks" in site:  # a slice of the particles
        return site["masks"]
    found = [(site["mask"], getattr(site["fn"], "event_dim", 0))]
    found += [(fn._mask, fn.event_dim) for fn in layers(site["fn"]) if isinstance(fn, dist.MaskedDistribution)]
    return [
        torch.tensor(mask) if isinstance(mask, bool) else mask.reshape(mask.shape + (1,) * events)
        for mask, events in found
        if mask is not None and mask is not True
    ]


def is_masked(site: Site) -> bool:
    """Return whether no element of a site counts."""
    return any(bool((~mask).all()) for mask in masks(site))


def layers(fn: Distribution) -> Iterator[Distribution]:
    """Yield a distribution and those that it wraps (events, masks, expansion), down to the transformed or plain one.

    >>> [type(layer).__name__ for layer in layers(dist.Normal(torch.zeros(2), 1.0).mask(False).to_event(1))]
    ['Independent', 'MaskedDistribution', 'Normal']
    """
    layer: Any = fn
    yield layer
    while hasattr(layer, "base_dist") and not isinstance(layer, TransformedDistribution):
        layer = layer.base_dist
        yield layer


def core(fn: Distribution) -> Distribution:
    """Return the innermost of the ``layers``.

    >>> core(dist.Delta(torch.zeros(2)).to_event(1))
    Delta(v: torch.Size([2]), log_density: torch.Size([2]))
    """
    *_, last = layers(fn)
    return last


def is_point(fn: Distribution) -> bool:
    """Return whether a distribution is a single point, as the sites of an AutoDelta are.

    >>> is_point(dist.Delta(torch.zeros(2)).to_event(1)), is_point(dist.Normal(0.0, 1.0))
    (True, False)
    """
    return isinstance(core(fn), dist.Delta)
