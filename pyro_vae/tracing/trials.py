"""Trial runs: a program scored at given values of its latent sites, and the results compared."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyro_vae.tracing.messages import Site, sample_sites
from pyro_vae.tracing.particles import Replay, run, score
from pyro_vae.tracing.probing import map_tensors

TRIED = 3  # particles, or draws, of a trial


def replayed(
    model: Callable, guide: Callable, args: Sequence, kwargs: Mapping, values: poutine.Trace
) -> dict[tuple[str, str], Site]:
    """Return the sites of model and guide, scored at given values of what the guide draws.

    Sites of a flow without an inverse, which can score only its own draws, are left out.
    """
    model_trace, guide_trace = run(model, Replay(values)(guide), args, kwargs)
    score(model_trace)
    for site in sample_sites(guide_trace).values():
        with suppress(KeyError, NotImplementedError):
            site["log_prob"] = scale_and_mask(site["fn"].log_prob(site["value"]), site["scale"], site["mask"])
    return {key: site for key, site in by_function(model_trace, guide_trace).items() if "log_prob" in site}


def by_function(model_trace: poutine.Trace, guide_trace: poutine.Trace) -> dict[tuple[str, str], Site]:
    """Return the sample sites of both traces by ("model" or "guide", name)."""
    both = ("model", model_trace), ("guide", guide_trace)
    return {(of, name): site for of, trace in both for name, site in sample_sites(trace).items()}


def agree(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors of log-probabilities differ by no more than rounding."""
    if one.numel() != other.numel():
        return False
    tolerance = 4 * torch.finfo(one.dtype).eps ** 0.5
    return torch.allclose(one.reshape(other.shape), other, rtol=tolerance, atol=tolerance, equal_nan=True)


def cut_rows(rows: int, start: int, stop: int, args: Sequence, kwargs: Mapping) -> tuple[Sequence, Mapping]:
    """Return the arguments with rows start … stop − 1 of all tensors that have this number of rows."""
    return map_tensors(
        lambda tensor: tensor[start:stop] if tensor.dim() and len(tensor) == rows else tensor,
        (tuple(args), dict(kwargs)),
    )
