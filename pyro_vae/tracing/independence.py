"""Checks that the rows of a batch are independent: each has the same log-probability with and without the others."""

from collections.abc import Callable, Mapping, Sequence

import pyro
import torch
from pyro import poutine
from pyro.poutine.indep_messenger import CondIndepStackFrame

from pyro_vae.tracing.messages import Site, changed, dim_of, sample_sites
from pyro_vae.tracing.particles import particle, run, scored
from pyro_vae.tracing.probing import left_as_it_was
from pyro_vae.tracing.rows import count_rows, per_image
from pyro_vae.tracing.runs import ProgramRuns
from pyro_vae.tracing.trials import TRIED, agree, cut_rows, replayed

ALONE = (
    "keep the rows apart: sum and normalise over event dimensions only, and do not squeeze batch dimensions; an "
    "argument that has as many entries as the batch by chance is cut, too: keep it in the program, or take another "
    "batch size"
)


def check_rows(model: Callable, guide: Callable, args: Sequence = (), kwargs: Mapping | None = None) -> None:
    """Raise ValueError if the log-probability of a row depends on the other rows of its batch, at fixed z.

    Rows then have no bounds of their own. Two rows are scored together and each of them alone, in the current modes of
    the program's modules. Programs whose sites do not share a plate over the rows, or that take a fixed number of rows,
    are not checked.

    >>> import pyro.distributions as dist
    >>> def guide(x):
    ...     with pyro.plate("images", len(x)):
    ...         pyro.sample("z", dist.Normal(0.0, 1.0))
    >>> def model(x):
    ...     with pyro.plate("images", len(x)):
    ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
    ...         pyro.sample("x", dist.Normal(z - z.mean(), 1.0), obs=x)
    >>> check_rows(model, guide, (torch.zeros(5),))
    Traceback (most recent call last):
        ...
    ValueError: site 'x' of the model: the log-probability of a row depends on the other rows of its batch...
    """
    kwargs, rows = kwargs or {}, count_rows(args, kwargs)
    if rows is None or rows < 2:
        return
    with left_as_it_was(model, guide), torch.no_grad(), poutine.block(), pyro.validation_enabled(False):
        for _ in range(TRIED):  # one draw may hide it if the latent values of the two rows are close
            together = _two_rows(model, guide, *cut_rows(rows, 0, 2, args, kwargs))
            if together is not None:
                for i in range(2):
                    _check_alone(model, guide, cut_rows(rows, i, i + 1, args, kwargs), together, i)


def _check_alone(
    model: Callable, guide: Callable, arguments: tuple[Sequence, Mapping], together: tuple, i: int
) -> None:
    """Raise ValueError if row i of two has another log-probability without the other one."""
    plate, values, sites = together
    try:
        alone = replayed(model, guide, *arguments, _of_row(values, plate, i))
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"the program runs on two rows and fails on one ({reason}); {ALONE}") from error
    for of, name in alone:
        row, expected = (per_image(each[of, name], plate)[0] for each in (alone, sites))
        if not agree(row, expected[i : i + 1]):
            raise ValueError(
                f"site {name!r} of the {of}: the log-probability of a row depends on the other rows of its "
                f"batch, at fixed z, so that no row has a bound of its own; {ALONE}"
            )


def _two_rows(
    model: Callable, guide: Callable, args: Sequence, kwargs: Mapping
) -> tuple[CondIndepStackFrame, poutine.Trace, dict[tuple[str, str], Site]] | None:
    """Return the plate over two rows, the values of their latent sites, and their scored sites.

    Return None if two rows cannot be separated: without such a plate, or if the program draws more than its sites.
    """
    try:
        traces = scored(run(model, guide, args, kwargs))
        plate = ProgramRuns().plate(model, guide, args, kwargs, traces)
        values = particle(traces[1], 0, points=False)
        first, second = (replayed(model, guide, args, kwargs, values) for _ in range(2))
    except Exception:  # a program for another number of rows
        return None
    known = plate.size == 2 == (plate.full_size or 2) and first.keys() == second.keys()
    same = known and all(agree(first[name]["log_prob"], second[name]["log_prob"]) for name in first)
    return (plate, values, first) if same else None


def _of_row(values: poutine.Trace, plate: CondIndepStackFrame, i: int) -> poutine.Trace:
    """Return the values of row i alone."""
    of_row = poutine.Trace()
    for name, site in sample_sites(values).items():
        value, dim = site["value"], dim_of(plate) - site["fn"].event_dim
        of_row.nodes[name] = changed(site, value=value.narrow(dim, i, 1) if value.dim() >= -dim else value)
    return of_row
