"""Latent values that a program masks: they are drawn and not scored, as the states beyond the end of a sequence are."""

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from pyro import poutine
from torch import Tensor
from torch.distributions.transforms import Transform

from pyro_vae.printing import listed
from pyro_vae.random import forked_rng
from pyro_vae.tracing.messages import masks, sample_sites
from pyro_vae.tracing.particles import Replay, score, trace_of
from pyro_vae.tracing.trials import agree


def scored_values(sites: Mapping[str, Any], transforms: Mapping[str, Transform]) -> dict[str, Tensor] | None:
    """Return for each latent site which of its unconstrained values are scored, in their shape; None: all are.

    ``transforms`` lead from these values to those of the sites.
    """
    kept = {name: _kept(site) for name, site in sites.items()}
    if all(bool(mask.all()) for mask in kept.values()):
        return None
    return {name: _unconstrained(mask, transforms[name], sites[name]["value"]) for name, mask in kept.items()}


def check_unused(run: Callable[[poutine.Trace], poutine.Trace], trace: poutine.Trace) -> None:
    """Raise ValueError where a program's densities depend on latent values that it masks.

    Such a value has no density, so that the mean over it is no integral: log p(x, z) belongs to no p(x).

    Args:
        run: runs the program with the latent values of a trace, and returns its scored trace.
        trace: a trace of it.

    >>> import pyro
    >>> import pyro.distributions as dist
    >>> def model():
    ...     with poutine.mask(mask=False):
    ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
    ...     pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(2.0))
    >>> check_unused(lambda trace: rerun(model, trace), poutine.trace(model).get_trace())
    Traceback (most recent call last):
        ...
    ValueError: the density of site 'x' depends on values of z that are masked, and have no density of their own, ...
    """
    latent = sample_sites(trace, observed=False)
    masked = {name: mask for name, site in latent.items() if not (mask := _kept(site)).all()}
    if not masked:
        return
    devices = {site["value"].device for site in latent.values()}
    others = poutine.Trace()
    with forked_rng(*devices):
        for name, site in latent.items():
            value = site["value"]
            if name in masked:
                value = torch.where(masked[name].expand(value.shape), value, site["fn"].sample())
            others.add_node(name, **{**site, "value": value})
    with forked_rng(*devices):
        before = sample_sites(run(trace))
    with forked_rng(*devices):  # a program may draw numbers that are no sites
        after = sample_sites(run(others))
    for name, site in before.items():
        if not agree(site["log_prob"], after[name]["log_prob"]):
            raise ValueError(
                f"the density of site {name!r} depends on values of {listed(sorted(masked))} that are masked, and have "
                "no density of their own, so that log p(x, z) belongs to no p(x); mask this site alike, or give the "
                "program a constant for what is masked, as torch.where(mask, z, 0.0)"
            )


def rerun(model: Callable, trace: poutine.Trace, args: Sequence = ()) -> poutine.Trace:
    """Return the scored trace of a model with the latent values of another trace."""
    again = trace_of(Replay(trace)(model), args)
    score(again)
    return again


def _kept(site: Mapping[str, Any]) -> Tensor:
    """Return which values of a site are scored, in a shape that broadcasts against them."""
    return reduce(torch.logical_and, masks(site), torch.ones((), dtype=torch.bool, device=site["value"].device))


def _unconstrained(mask: Tensor, transform: Any, value: Tensor) -> Tensor:
    """Return a mask of values as that of their unconstrained values."""
    shape = transform.inv(value).shape
    if shape == value.shape:
        return mask.expand(shape)
    of_events = mask.expand(value.shape)[(..., *transform.codomain.event_dim * [0])]  # one mask for an event
    return of_events.reshape(of_events.shape + transform.domain.event_dim * (1,)).expand(shape)
