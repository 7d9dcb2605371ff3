"""Programs with sites that are summed out: every value at once, and the weights of rows from exact sums.

A site marked ``infer={"enumerate": "parallel"}`` takes all its values in one run, in a dimension of its own to the left
of all plates (``pyro.poutine.EnumMessenger``), as in ``TraceEnum_ELBO``. Of y in the guide, and s in the model alone:

    log w          = log Σ_y Σ_s p(x, y, s, z_y) / q(z_y | x, y),       z_y ~ q(z | x, y)
    rate           = Σ_y q(y | x) [log q(y, z_y | x) − log Σ_s p(y, s, z_y)]
    −distortion    = Σ_y q(y | x) log p(x | y, z_y),                    s summed out

The mean of w is p(x), and rate + distortion is minus the ELBO. Plates may be nested: the sums are taken inside them.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import reduce
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.ops import packed
from pyro.ops.contract import contract_tensor_tree
from pyro.ops.rings import LogRing
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyro_vae.hardware import widest_float
from pyro_vae.tracing.matching import check_sites
from pyro_vae.tracing.messages import PARTICLES, Site, sample_sites
from pyro_vae.tracing.particles import ParticleLayout, Traces, nesting_of, particle_plate, run, score, trace_of
from pyro_vae.tracing.probing import left_as_it_was
from pyro_vae.tracing.rows import common_scale, count_rows, proposal_sites
from pyro_vae.tracing.runs import ProgramRuns
from pyro_vae.tracing.trials import cut_rows


class RowTerms(NamedTuple):
    """Of each particle and row, (K, B), in nats: log w, rate and distortion. Without a plate over rows B is 1."""

    log_w: Tensor
    rate: Tensor
    distortion: Tensor


class Enumeration:
    """A program with enumerated sites, run on any batch.

    Attributes:
        model, guide: the program.
        layout: how its particles are drawn.
        values: number of combinations of values that run at once.
        held: the model with the sites that it alone enumerates observed, at one of their values.

    >>> import pyro
    >>> import pyro.distributions as dist
    >>> def guide(x):
    ...     pass
    >>> def model(x):
    ...     with pyro.plate("rows", len(x)):
    ...         y = pyro.sample("y", dist.Bernoulli(0.25), infer={"enumerate": "parallel"})
    ...         pyro.sample("x", dist.Normal(y, 1.0), obs=x)
    >>> x = torch.zeros(3)
    >>> traces, *_ = Enumeration.of(model, guide, (x,)).traces((x,))
    >>> found = row_terms(*traces, plate=traces[0].nodes["x"]["cond_indep_stack"][0])
    >>> px = 0.75 * dist.Normal(0.0, 1.0).log_prob(x).exp() + 0.25 * dist.Normal(1.0, 1.0).log_prob(x).exp()
    >>> torch.allclose(found.log_w.exp().float(), px)  # nothing is drawn, and the weight is p(x)
    True
    """

    def __init__(self, model: Callable, guide: Callable, layout: ParticleLayout, values: int, held: Callable):
        self.model, self.guide, self.layout, self.values, self.held = model, guide, layout, values, held

    @classmethod
    def of(
        cls, model: Callable, guide: Callable, args: Sequence = (), kwargs: Mapping | None = None, particles: int = 1
    ) -> "Enumeration | None":
        """Try a program once, on few rows if it runs on them; return None if no latent site is to be enumerated.

        Raises ValueError for sites that are enumerated in another way than ``"parallel"``, and if model and guide
        differ in other sites than those that the model alone enumerates.
        """
        kwargs = kwargs or {}
        few = cut_rows(count_rows(args, kwargs) or 0, 0, 2, args, kwargs)
        with left_as_it_was(model, guide), torch.no_grad(), poutine.block():
            try:
                model_trace, guide_trace = run(model, guide, *few)
            except Exception:  # a program for another number of rows; errors that few rows did not cause are raised
                few = args, kwargs
                model_trace, guide_trace = run(model, guide, *few)
        supports = marked_supports(model_trace, guide_trace)
        if not supports:
            return None
        check_sites(model_trace, guide_trace, enumerated=True)
        alone = {name: support[0] for name, support in supports.items() if name not in guide_trace}
        held = poutine.condition(model, data=alone) if alone else model
        layout = ParticleLayout(nesting_of(model_trace, guide_trace))
        if particles > 1:
            with left_as_it_was(model, guide):
                layout = ProgramRuns(particles).layout(held, guide, *few)
        return cls(model, guide, layout, math.prod(map(len, supports.values())), held)

    def traces(self, args: Sequence = (), kwargs: Mapping | None = None, particles: int = 1) -> Iterator[Traces]:
        """Yield traces of model and guide with packed log-probabilities: of all particles together, or of one each."""
        together = particles if self.layout.vectorized else 1
        plate = particle_plate(together, self.layout.nesting)
        model, guide = (plate(self.model), plate(self.guide)) if together > 1 else (self.model, self.guide)
        for _ in range(0, particles, together):
            guide_trace = trace_of(EnumMessenger(-self.layout.nesting - 2)(guide), args, kwargs)
            model_trace = trace_of(poutine.replay(EnumMessenger()(model), trace=guide_trace), args, kwargs)
            guide_trace, model_trace = map(prune_subsample_sites, (guide_trace, model_trace))
            for trace in (guide_trace, model_trace):
                score(trace, self.layout.nesting + 1)
            guide_trace.pack_tensors()
            model_trace.pack_tensors(guide_trace.plate_to_symbol)
            yield model_trace, guide_trace


def marked_supports(model_trace: poutine.Trace, guide_trace: poutine.Trace) -> dict[str, Tensor]:
    """Return all values of each latent site that is to be enumerated, along the first dimension.

    Raises ValueError unless all of them are enumerated in parallel.
    """
    drawn = sample_sites(guide_trace, observed=False)
    alone = {k: site for k, site in sample_sites(model_trace, observed=False).items() if k not in drawn}
    marked = {name: site for name, site in {**drawn, **alone}.items() if site["infer"].get("enumerate")}
    others = [
        name
        for name, site in marked.items()
        if site["infer"]["enumerate"] != "parallel" or site["infer"].get("num_samples")
    ]
    if others:
        raise ValueError(
            f"the sites {others} are not summed over all their values at once, wanted infer={{'enumerate': "
            "'parallel'}} and nothing else for enumeration; without these marks they are drawn"
        )
    return {name: site["fn"].enumerate_support(expand=False) for name, site in marked.items()}


def row_terms(model_trace: poutine.Trace, guide_trace: poutine.Trace, plate: CondIndepStackFrame | None) -> RowTerms:
    """Return log w, rate and distortion of each row from packed traces; ``plate`` is the plate over rows.

    A scale that all sites share is divided out. Raises ValueError if scales differ, and if the guide has no density.
    """
    common_scale(model_trace, guide_trace, plate=plate)  # raises if they differ; unscaled log-probabilities are used
    of_guide = proposal_sites(guide_trace, points_too=True)
    proposed, alone = _enumerated(guide_trace), _enumerated(model_trace, but=guide_trace)

    def model_terms(*unmasked: str, observed: bool | None = None) -> list[Term]:
        # The mask of a site that is summed out hides its data, not the sum over its values, which is 1.
        sites = sample_sites(model_trace, observed=observed)
        return [Term.of(site, masked=name not in unmasked) for name, site in sites.items()]

    def total(terms: Iterable[Term]) -> Tensor:
        return _per_row(terms, model_trace, plate)

    log_q = [Term.of(site) for site in of_guide.values()]
    drawn = [Term.of(site, sign=-1) for name, site in of_guide.items() if name not in proposed]
    log_w = _summed_out([*model_terms(*alone, *proposed), *drawn], _symbols(alone) | _symbols(proposed))
    prior = _summed_out(model_terms(*alone, observed=False), _symbols(alone))
    joint = _summed_out(model_terms(*alone), _symbols(alone)) if alone else prior + model_terms(observed=True)
    log_q, prior, joint = (total(_expected(terms, proposed)) for terms in (log_q, prior, joint))
    return RowTerms(total(log_w), log_q - prior, prior - joint)


class Term(NamedTuple):
    """A log-probability that is packed: each dimension has a symbol (``pyro.ops.packed``). ``plates`` are symbols."""

    plates: frozenset[str]
    value: Any

    @classmethod
    def of(cls, site: Site, sign: int = 1, masked: bool = True) -> "Term":
        """Return the unscaled log-probability of a site, in float64 where the device has it."""
        found = site["packed"]
        log_prob: Any = packed.scale_and_mask(found["unscaled_log_prob"], mask=found["mask"] if masked else None)
        symbols = site["infer"]["_dim_to_symbol"]
        plates = frozenset(symbols[frame.dim] for frame in site["cond_indep_stack"] if frame.vectorized)
        return cls(plates, _named(sign * log_prob.to(widest_float(log_prob.device)), log_prob._pyro_dims))

    def sum(self, symbols: Iterable[str]) -> "Term":
        """Return the term summed over these dimensions."""
        value, dims = self.value, self.value._pyro_dims
        for symbol in set(symbols) & set(dims):
            value, dims = value.sum(dims.index(symbol)), dims.replace(symbol, "")
        return Term(self.plates - set(symbols), _named(value, dims))


class LogSums(LogRing):
    """Sums over dimensions of products, in logarithms, one dimension after the other.

    Pyro's own ring multiplies the terms as numbers, which underflow where two of them prefer different values.
    """

    def sumproduct(self, terms: Sequence[Any], dims: Iterable[str]) -> Any:
        """Return log Σ_dims exp Σ terms."""
        terms = list(terms)
        for dim in sorted(dims, key=lambda dim: (len(_dims(terms, dim)), dim)):
            concerned = [term for term in terms if dim in term._pyro_dims]
            terms = [term for term in terms if dim not in term._pyro_dims]
            product = _product(concerned)
            at = product._pyro_dims.index(dim)
            terms.append(_named(product.logsumexp(at), product._pyro_dims.replace(dim, "")))
        return _product(terms)


def _summed_out(terms: Iterable[Term], symbols: set[str]) -> list[Term]:
    """Return the terms of log Σ exp Σ terms, the sum being over these symbols, inside their plates."""
    tree: OrderedDict[Any, Any] = OrderedDict()
    for term in terms:
        tree.setdefault(term.plates, []).append(term.value)
    contracted = contract_tensor_tree(tree, set(symbols), ring=LogSums())
    return [Term(plates, value) for plates, values in contracted.items() for value in values]


def _expected(terms: Iterable[Term], proposed: Mapping[str, Site]) -> Iterator[Term]:
    """Yield Σ_y q(y) term over the values of the guide's enumerated sites; 0 · ∞ = 0."""
    for plates, value in terms:
        log_q, dims = [], set(value._pyro_dims)
        for name, site in reversed(list(proposed.items())):  # q of a site depends on those drawn before
            of_site = Term.of(site, masked=False)  # a mask hides what a site adds, not what depends on it
            if site["infer"]["_enumerate_symbol"] in dims:
                if not of_site.plates <= plates:
                    raise ValueError(f"site {name!r} is enumerated in a plate, and a site outside it depends on it")
                log_q.append(of_site.value)
                dims |= set(of_site.value._pyro_dims)
        if log_q:
            q, value = packed.broadcast_all(_product(log_q), value)
            dims, q = value._pyro_dims, q.exp()
            value = _named(torch.where(q > 0, q * value, 0.0), dims)
        yield Term(plates, value).sum(_symbols(proposed))


def _per_row(terms: Iterable[Term], trace: Any, plate: CondIndepStackFrame | None) -> Tensor:
    """Return the sum of terms of each particle and row, (K, B)."""
    kept = trace.plate_to_symbol.get(PARTICLES, ""), "" if plate is None else trace.plate_to_symbol[plate.name]
    device = next(site["value"].device for site in sample_sites(trace).values())
    total: Any = torch.zeros(1, 1 if plate is None else plate.size, device=device)
    for term in terms:
        value = term.sum(set(term.value._pyro_dims) - set(kept)).value
        sizes = dict(zip(value._pyro_dims, value.shape))
        value = value.mT if value._pyro_dims == "".join(reversed(kept)) and value.dim() == 2 else value
        total = value.reshape([sizes.get(symbol, 1) for symbol in kept]) + total
    return total


def _product(terms: Sequence[Any]) -> Any:
    total, *others = packed.broadcast_all(*terms)
    return _named(reduce(torch.add, others, total), total._pyro_dims)


def _dims(terms: Iterable[Any], dim: str) -> set[str]:
    return {symbol for term in terms if dim in term._pyro_dims for symbol in term._pyro_dims}


def _named(value: Tensor, dims: str) -> Any:
    value = value.view_as(value)  # a tensor of its own, as the names are its attribute
    value._pyro_dims = dims  # pyright: ignore[reportAttributeAccessIssue]
    return value


def _enumerated(trace: poutine.Trace, but: Mapping[str, Any] | Any = ()) -> dict[str, Site]:
    """Return the sites that have a dimension of their own for their values, unless they are in the other trace."""
    sites = sample_sites(trace, observed=False).items()
    return {name: site for name, site in sites if "_enumerate_dim" in site["infer"] and name not in but}


def _symbols(sites: Mapping[str, Site]) -> set[str]:
    return {site["infer"]["_enumerate_symbol"] for site in sites.values()}
