"""Missing values filled in by importance sampling, with error bars: ``impute`` (Mattei & Frellsen 2019).

``analysis.pseudo_gibbs`` fills them in by a Markov chain, without error bars.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_vae.arguments import ProgramArguments
from pyro_vae.checks import whole_number
from pyro_vae.data import Split
from pyro_vae.errors import warn
from pyro_vae.evidence.batches import numbers_of_batch
from pyro_vae.evidence.measuring import measuring
from pyro_vae.evidence.plan import MeasurementPlan
from pyro_vae.evidence.results import TRUSTED, Evidence, as_array, joined, weight_statistics
from pyro_vae.hardware import widest_float
from pyro_vae.missing import Masked, check_mask, innermost
from pyro_vae.observation import fixed_x
from pyro_vae.program import Program, check_has
from pyro_vae.random import measurement
from pyro_vae.showing import Shown, on_one_line
from pyro_vae.tracing.messages import Site, sample_sites
from pyro_vae.tracing.traces import log_weights, paired_traces

FEWEST = 10.0  # effective particles below which means and error bars are too rough
AT_ONCE = 2**23  # values of x in all particles of the rows at once


class UntrustedImputation(UserWarning):
    """The weights of some rows are too uneven: neither their imputed values nor the error bars can be trusted."""


@dataclass(frozen=True)
class Imputation:
    """Imputed values with error bars: tensors (rows, *event), float64, on the CPU.

    Attributes:
        x: what was seen and, where a value is missing, the estimate of E[x_missing | x_seen].
        standard_deviation: of a missing value given what was seen: how uncertain it is. 0 where it was seen.
        standard_error: Monte Carlo error of x; more particles reduce it. 0 where it was seen.
        mask: True where a value was seen.
        evidence: log p(x_seen) of each row, with the effective sample size ``ess`` and ``pareto_k`` of its weights.

    >>> from pyro_vae.linear_gaussian import LinearGaussian
    >>> program = Masked(LinearGaussian(torch.ones(2, 1)))
    >>> found = impute(program, (torch.tensor([[2.0, torch.nan]]), torch.tensor([[True, False]])), particles=50_000)
    >>> found.x.round(decimals=1), found.standard_deviation.round(decimals=1)
    (tensor([[2., 1.]], dtype=torch.float64), tensor([[0.0000, 1.2000]], dtype=torch.float64))
    """

    x: Tensor
    standard_deviation: Tensor
    standard_error: Tensor
    mask: Tensor
    evidence: Evidence

    @property
    def untrusted(self) -> Tensor:
        """The rows, (rows,) bool, with Pareto k̂ above 0.7 or fewer than ten effective particles, of those with gaps."""
        gaps = ~self.mask.flatten(1).all(1)
        return gaps & ((self.evidence.pareto_k > TRUSTED) | (self.evidence.ess < FEWEST))

    def _shown(self) -> Shown:
        """Return what ``print`` and notebooks show."""
        missing, ess = ~self.mask, self.evidence.ess
        uncertain = missing & (self.standard_deviation > 0)
        shares = (self.standard_error / self.standard_deviation)[uncertain]  # columns may have different units
        error = shares.mean() if len(shares) else 0.0
        rows = (
            ("Monte Carlo error", f"{error:.1%} of a value's standard deviation, on average"),
            ("effective sample size", f"{ess.median():.0f} of {self.evidence.num_particles} (median)"),
            ("rows", f"{int(self.untrusted.sum())} of {len(ess)} rows cannot be trusted"),
        )
        return Shown(f"{int(missing.sum())} of {missing.numel()} values imputed", rows)

    def __str__(self) -> str:
        return str(self._shown())

    def __repr__(self) -> str:
        return on_one_line(f"Imputation({self._shown().title}, {self._shown().rows[-1][1]})")

    def _repr_html_(self) -> str:
        return self._shown().html()


@measurement
def impute(
    program: Program,
    data: Split | Tensor | tuple,
    particles: int = 1000,
    *,
    batch_size: int | None = None,
    seed: int = 0,
) -> Imputation:
    """Fill in missing values by E[x_missing | x_seen], estimated by importance sampling (Mattei & Frellsen 2019).

        E[x_missing | x_seen] ≈ Σ_k w̃_k E[x_missing | z_k],   w̃ = w / Σ_j w_j,   w = p(x_seen, z) / q(z | x_seen)

    The standard deviation holds both the spread over z and that of p(x | z). A distribution without a mean or a
    variance in closed form is drawn from, once for each particle. One with a method ``average(weights)``, as a row of
    mixed columns has, says itself which values, spreads and errors it gives, such as the most probable level of a
    category. The program is in evaluation mode. Warns by
    ``UntrustedImputation`` of rows with Pareto k̂ above 0.7 or fewer than ten effective particles.

    Args:
        program: a ``Masked`` program, or one that takes NaN in x for a missing value.
        data: a split, observed by a fixed seed; or (x, mask, ...), all arguments of model and guide; or x alone.
        particles: K, for each row.
        batch_size: rows at once, by default as many as have eight million imputed values in all their particles.
            Another batch size draws other random numbers.
        seed: of a random number generator of its own.

    Raises ValueError if nothing is missing, and as ``log_evidence`` does.

    >>> from pyro_vae.linear_gaussian import LinearGaussian
    >>> program = Masked(LinearGaussian(torch.ones(3, 1).double()))
    >>> x = torch.tensor([[1.0, 2.0, torch.nan]]).double()
    >>> bool((impute(program, (x, ~x.isnan())).x[0, 2] - 1).abs() < 0.1)  # 3 / (2 + 1)
    True
    """
    check_has(program, "model", "guide")
    whole_number("particles", particles)
    if batch_size is not None:
        whole_number("batch_size", batch_size)
    args = _arguments(program, data, seed)
    given, (x, *rest) = ProgramArguments.of(args), args
    mask, site = _mask(program, x, rest), getattr(_masked(program), "site", "x")
    most = max(1, AT_ONCE // (particles * x[0].numel()))
    columns, moments = [], []
    with measuring(program.model, program.guide, given, seed):
        plan = MeasurementPlan.of(program.model, program.guide, given, batch_size, most)
        if plan.joint:
            raise ValueError("program: its rows share a latent variable and have no weights of their own; take it out")
        for number, batch in enumerate(plan.batches()):
            with numbers_of_batch(seed, number, given.device):
                log_w, of_x = _batch(program, batch, plan, site, particles)
            columns.append(weight_statistics(as_array(log_w), first=sum(len(column[0]) for column in columns)))
            moments.append(tuple(value.cpu().double() for value in of_x))
    mean, sd, error = map(torch.cat, zip(*moments))
    log_px, of_log_px, ess, k_hat = joined(columns)
    found = Imputation(
        torch.where(mask, x.cpu().double(), mean),
        sd.masked_fill(mask, 0),
        error.masked_fill(mask, 0),
        mask,
        Evidence(log_px, of_log_px, ess, k_hat, particles, seed),
    )
    _warn_untrusted(found)
    return found


def weighted_moments(log_w: Tensor, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean, standard deviation and standard error of the mean of x, (B, *event), by self-normalised weights.

    ``log_w`` is (K, B); ``mean`` and ``variance``, those of x given z, are (K, B, *event).

    >>> mean = torch.tensor([0.0, 2.0]).reshape(2, 1, 1)
    >>> moments = weighted_moments(torch.zeros(2, 1), mean, torch.ones(2, 1, 1))
    >>> [value.item() for value in moments]  # the mean, √(1 + 1), and √(½² (1² + 1²))
    [1.0, 1.4142135623730951, 0.7071067811865476]
    """
    log_w, mean, variance = (value.to(widest_float(value.device)) for value in (log_w, mean, variance))
    w = log_w.softmax(0).reshape(*log_w.shape, *[1] * (mean.dim() - 2))
    centre = (w * mean).sum(0)
    excess = (mean - centre).square()
    return centre, (w * (variance + excess)).sum(0).sqrt(), (w.square() * excess).sum(0).sqrt()


def moments_of(fn: Distribution) -> tuple[Tensor, Tensor]:
    """Return the mean and the variance of a distribution; what has no closed form is replaced by that of one draw.

    On average over particles the moments of x stay the same.

    >>> moments_of(torch.distributions.Poisson(torch.tensor([2.0, 3.0])))
    (tensor([2., 3.]), tensor([2., 3.]))
    """
    try:
        mean = fn.mean
    except NotImplementedError:
        draw = fn.sample()
        return draw, torch.zeros_like(draw)
    try:
        return mean, fn.variance
    except NotImplementedError:
        return mean, (fn.sample() - mean).square()


def _arguments(program: Program, data: Any, seed: int) -> tuple[Any, ...]:
    if isinstance(data, Split) and not len(data):
        raise ValueError(f"data: wanted at least one row, got {data}")
    data = fixed_x(program, data, seed) if isinstance(data, Split) else data
    args = data if isinstance(data, tuple) else (data,)
    x = next(iter(args), None)
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(
            f"data: wanted a Split, or x, a float tensor, with the mask after it, got {got}; write "
            "Split(table=schema.encode(frame)) for a frame, or (x, mask)"
        )
    return args


def _mask(program: Program, x: Tensor, rest: Sequence[Any]) -> Tensor:
    """Return which values of x were seen, on the CPU."""
    if _masked(program):
        check_mask(x, next(iter(rest), None))
    mask = rest[0] if _masked(program) else ~x.isnan()
    if mask.all():
        how = "False in the mask" if _masked(program) else "NaN in x, unless the program is Masked(program)"
        raise ValueError(f"data: nothing is missing in {len(mask)} rows; a missing value is {how}")
    return mask.cpu()


def _masked(program: Any) -> Masked | None:
    """Return the ``Masked`` program that this is or, as in ``KLWeighted(Masked(vae))``, holds."""
    return next((part for part in (program, getattr(program, "program", None)) if isinstance(part, Masked)), None)


def _batch(
    program: Program, batch: ProgramArguments, plan: MeasurementPlan, site: str, particles: int
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return log weights (K, B), and mean, standard deviation and standard error of x, (B, *event)."""
    model, guide, layout, (x, *_) = program.model, program.guide, plan.layout, batch.args
    traces = paired_traces(
        model, guide, batch.args, particles=particles, nesting=layout.nesting, vectorize=layout.vectorized
    )
    log_w = log_weights(*traces, plate=plan.plate(model, guide, batch, traces))
    sites = sample_sites(traces[0], observed=True)
    if site not in sites:
        raise ValueError(f"site {site!r}: the model observes {list(sites)}; write Masked(program, site=...)")
    _check_observed(sites[site], x, batch.args[1] if _masked(program) else ~x.isnan())
    if hasattr(sites[site]["fn"], "average"):
        if not layout.vectorized:
            raise ValueError(
                f"site {site!r}: a {type(sites[site]['fn']).__name__} is averaged over particles that run together, "
                "and this program takes no plate of them; keep the leading dimensions of z in model and guide"
            )
        return log_w, sites[site]["fn"].expand(log_w.shape).average(log_w.softmax(0))
    return log_w, weighted_moments(log_w, *_of_site(sites[site], particles, x))


def _check_observed(site: Site, x: Tensor, seen: Tensor) -> None:
    """Raise ValueError unless a site observes the values of x that were seen: what it tells of others is of x then."""
    value = site.get("values", [site["value"]])[0]  # that of the first particle, where they ran one after the other
    if value.numel() != x.numel() or not torch.equal(value.reshape(x.shape)[seen].to(x.dtype), x[seen]):
        raise ValueError(
            f"site {site['name']!r}: wanted it to observe x itself, of which values are imputed, got other values, as "
            "those of a transformed or transposed x; let the model observe x as it is, and move the transform into the "
            "distribution, as in dist.TransformedDistribution(dist.Normal(...), [AffineTransform(mean, scale)])"
        )


def _of_site(site: Site, particles: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance of x given z of each particle, (K, B, *event)."""
    fns = site.get("fns", [site["fn"]])  # of particles that ran one after the other
    mean, variance = (
        torch.cat([part.expand(torch.broadcast_shapes(part.shape, x.shape)).reshape(-1, *x.shape) for part in parts])
        for parts in zip(*map(moments_of, fns))
    )
    if mean.isnan().any():
        name = type(innermost(site["fn"])).__name__
        raise ValueError(f"site {site['name']!r}: a {name} distribution has no mean, by which a value could be imputed")
    return mean.expand(particles, *x.shape), variance.expand(particles, *x.shape)


def _warn_untrusted(found: Imputation) -> None:
    count = int(found.untrusted.sum())
    if count:
        warn(
            f"Pareto k̂ > {TRUSTED} or fewer than {FEWEST:.0f} effective particles for {count} of {len(found.x)} rows: "
            "neither their imputed values nor the error bars can be trusted; more particles or a guide that was "
            "trained longer, on data with such gaps, may help",
            UntrustedImputation,
        )
