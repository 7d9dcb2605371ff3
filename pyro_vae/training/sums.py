"""Whether a loss is a sum over rows: only then is the loss of a batch the sum of those of its parts."""

from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro.infer import ELBO

from pyro_vae.arguments import ProgramArguments
from pyro_vae.estimation import describe
from pyro_vae.tracing.enumeration import Enumeration
from pyro_vae.tracing.messages import sample_sites
from pyro_vae.tracing.numbers import number, same_numbers
from pyro_vae.tracing.probing import left_as_it_was
from pyro_vae.tracing.rows import image_plate
from pyro_vae.tracing.traces import Traces, paired_traces


def check_sum_over_rows(estimator: ELBO, model: Callable, guide: Callable, args: tuple, rows: int) -> None:
    """Raise ValueError unless every site lies in the plate over rows, at a scale that does not depend on their number.

    A term that does not grow with the rows, such as the KL of a latent variable that they share or a penalty on the
    weights, would count once for each part of a batch; it may be too small to be seen in a comparison of losses. What
    an estimator adds to the sites is not seen.

    >>> import pyro.distributions as dist
    >>> from pyro.infer import Trace_ELBO
    >>> def guide(x):
    ...     with pyro.plate("rows", 100, subsample_size=len(x)):
    ...         pyro.sample("z", dist.Normal(0.0, 1.0))
    >>> check_sum_over_rows(Trace_ELBO(), guide, guide, (torch.zeros(10),), rows=10)
    Traceback (most recent call last):
        ...
    ValueError: the scale of site 'z' depends on the number of rows: it is 10 for 10 and 20 for 5
    """
    with left_as_it_was(model, guide), torch.no_grad(), pyro.validation_enabled(False):
        traces = _traces(estimator, model, guide, args)
        model_trace, guide_trace = traces
        image_plate(model_trace, guide_trace, rows)
        own = sample_sites(guide_trace, observed=True).keys() - sample_sites(model_trace).keys()
        if own:
            raise ValueError(f"the guide has factors: {', '.join(sorted(own))}")
        few = rows // 2 if rows > 3 else rows - 1
        if few > 0:
            _check_scales(traces, _part(estimator, model, guide, args, rows, few), rows, few)


def _part(estimator: ELBO, model: Callable, guide: Callable, args: tuple, rows: int, few: int) -> Traces:
    """Return the traces of the first rows; no traces where they are a single one, on which batch norm cannot train."""
    try:
        return _traces(estimator, model, guide, ProgramArguments.of(args, rows=rows).part(0, few).args)
    except ValueError:
        if few > 1:
            raise
        return pyro.poutine.Trace(), pyro.poutine.Trace()


def _traces(estimator: ELBO, model: Callable, guide: Callable, args: tuple) -> Traces:
    if describe(estimator).enumerates:
        enumeration = Enumeration.of(model, guide, args)
        if enumeration is not None:
            return next(enumeration.traces(args))
    return paired_traces(model, guide, args)


def _check_scales(traces: Traces, half: Traces, rows: int, few: int) -> None:
    """Raise ValueError where a site is scaled by another number in a batch of fewer rows."""
    for whole, part in zip(traces, half):
        others = sample_sites(part)
        for name, site in sample_sites(whole).items():
            both = [site["scale"], others[name]["scale"] if name in others else site["scale"]]
            if all(map(_is_number, both)) and not same_numbers(*both):
                raise ValueError(
                    f"the scale of site {name!r} depends on the number of rows: it is {number(both[0])} for {rows} and "
                    f"{number(both[1])} for {few}"
                )


def _is_number(scale: Any) -> bool:
    return not torch.is_tensor(scale) or scale.numel() == 1
