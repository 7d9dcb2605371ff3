"""Images that the model draws, of which an exact draw of the posterior is known: the z that made them."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_vae.arguments import ProgramArguments
from pyro_vae.evidence.plan import MeasurementPlan
from pyro_vae.tracing.matching import check_draws
from pyro_vae.tracing.traces import sample_sites


def simulated(model: Callable, plan: MeasurementPlan) -> Iterator[tuple[ProgramArguments, poutine.Trace, Tensor]]:
    """Yield for each batch of a plan its arguments with images x that the model drew, the z that made them, and x.

    z is a trace of the latent sites alone, as that of one particle. All images are drawn first, so that they are the
    same whatever is then done with them. Raises ValueError unless the model observes the first argument as it is.
    """
    draws = [_drawn(model, batch, plan) for batch in plan.batches()]
    for batch, (latent, x) in zip(plan.batches(), draws):
        yield batch._replace(args=(x, *batch.args[1:])), latent, x


def values_of(latent: poutine.Trace) -> dict[str, Tensor]:
    """Return the values of the sites of a trace, by name."""
    return {name: site["value"] for name, site in sample_sites(latent).items()}


def _drawn(model: Callable, batch: ProgramArguments, plan: MeasurementPlan) -> tuple[poutine.Trace, Tensor]:
    """Draw (z, x) ~ p(z, x)."""
    observed = sample_sites(poutine.trace(model).get_trace(*batch.args, **batch.kwargs), observed=True)
    x = next(iter(batch.args), None)
    if len(observed) != 1 or x is None or not torch.equal(next(iter(observed.values()))["value"], x):
        raise ValueError(
            f"the model observes the sites {list(observed)}; wanted one that observes the first argument as it is, so "
            "that images can be drawn from the model, as in pyro.sample('x', ..., obs=x)"
        )
    drawn, name = plan.trace(poutine.uncondition(model), batch, 1), next(iter(observed))
    site: Any = drawn.nodes[name]
    drawn.remove_node(name)
    check_draws(sample_sites(drawn))
    return drawn, site["value"][0]
