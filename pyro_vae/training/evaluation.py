"""Bound, rate and distortion of single rows, such as images, by Monte Carlo."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_vae.arguments import ProgramArguments, as_arguments
from pyro_vae.checks import whole_number
from pyro_vae.data.frames import framed
from pyro_vae.data.splits import Split
from pyro_vae.errors import short_errors
from pyro_vae.hardware import exact_convolutions, widest_float
from pyro_vae.observation import Arguments, fixed_x
from pyro_vae.program import Program, check_has, dtype_of, given_all_arguments
from pyro_vae.random import measurement, seeded
from pyro_vae.showing import Shown, on_one_line
from pyro_vae.tracing.enumeration import Enumeration, row_terms
from pyro_vae.tracing.probing import evaluating
from pyro_vae.tracing.traces import (
    ProgramRuns,
    common_scale,
    per_image,
    points_without_density,
    proposal_sites,
    sample_sites,
    warn_of_points,
)
from pyro_vae.training import ranks


@dataclass(frozen=True)
class Evaluation:
    """Monte Carlo values of single images, in nats, each of shape (images,), float64 (float32 where a device has none).

    ``rate`` = log q(z | x) − log p(z), ``distortion`` = −log p(x | z), ``bound`` = −(rate + distortion), means over the
    particles. ``points`` are the sites at which the guide has continuous points without a density, as an AutoDelta:
    where there are any, ``bound`` is log p(x, z) at these points, and bounds no log p(x).
    """

    rate: Tensor
    distortion: Tensor
    points: tuple[str, ...] = ()

    @property
    def bound(self) -> Tensor:
        """The ELBO of each image, in nats."""
        return -(self.rate + self.distortion)

    def summary(self) -> dict[str, float]:
        """Return the means over the images in nats per image, and the standard error of the bound's mean.

        >>> evaluation = Evaluation(rate=torch.tensor([1.0, 3.0]), distortion=torch.tensor([9.0, 9.0]))
        >>> evaluation.summary()
        {'bound': -11.0, 'standard_error': 1.0, 'rate': 2.0, 'distortion': 9.0, 'images': 2}
        """
        n = len(self.rate)
        error = self.bound.to(widest_float(self.bound.device)).std().item() / math.sqrt(n) if n > 1 else math.nan
        values = {name: getattr(self, name).mean().item() for name in ("bound", "rate", "distortion")}
        return {"bound": values.pop("bound"), "standard_error": error, **values, "images": n}

    def to_frame(self) -> Any:
        """Return a pandas frame with a row for each image: bound, rate, distortion. Raises ImportError without it."""
        values = {name: getattr(self, name).detach().cpu().numpy() for name in ("bound", "rate", "distortion")}
        return framed({"image": range(len(self.rate)), **values}, "image")

    def _shown(self) -> Shown:
        """Return what ``print`` and notebooks show."""
        mark = "*" if self.points else ""
        rows = [(name + mark, self._value(name)) for name in ("bound", "rate")]
        rows += [("distortion", self._value("distortion"))]
        notes = [f"* no bound on log p(x): log p(x, z) at the guide's points {', '.join(self.points)}"]
        title = f"bound, rate and distortion in nats per image (n = {len(self.rate)})"
        return Shown(title, rows, notes=notes if self.points else [])

    def __str__(self) -> str:
        return str(self._shown())

    def __repr__(self) -> str:
        words = ", ".join(f"{name} {self._value(name)}" for name in ("bound", "rate", "distortion"))
        return on_one_line(f"Evaluation({words} nats per image, n = {len(self.rate)})")

    def _repr_html_(self) -> str:
        return self._shown().html()

    def _value(self, name: str) -> str:
        values = getattr(self, name).to(widest_float(self.rate.device))
        error = f" ± {values.std().item() / math.sqrt(len(values)):.3f}" if len(values) > 1 else ""
        return f"{values.mean().item():.3f}{error}"


def evaluate(
    program: Program, x: Tensor | Arguments | Split, *, particles: int = 1, seed: int = 0, batch_size: int = 1000
) -> Evaluation:
    """Return bound, rate and distortion of each image by Monte Carlo; no parameter is changed.

    x: (images, ...), or a tuple of all arguments of model and guide, x first; or a split, of which they are made by
    ``fixed_x``. An image is a row of the data. Every image is measured, in batches of at most ``batch_size``, into
    which each argument is cut that has an entry for each image; ``batch_size=len(x)`` cuts nothing. Sites that are
    marked for enumeration are summed out exactly. A weight of single images, by ``poutine.scale``, is divided out.
    Raises ValueError for a program whose sites share no plate over images or have different weights, FloatingPointError
    where a value is not finite. Warns by ``errors.NoBound`` where the guide has continuous points without a density, as
    an AutoDelta: then ``bound`` is log p(x, z) at these points, and bounds nothing.

    >>> import pyro_vae as pv
    >>> vae = pv.VAE(
    ...     pv.priors.StandardNormal(2),
    ...     pv.likelihoods.Normal(pv.networks.MLPDecoder(2, (1, 8, 8), maps=2)),
    ...     pv.guides.MeanField(pv.networks.MLPEncoder((1, 8, 8)), 2),
    ... )
    >>> evaluate(vae, torch.rand(5, 1, 8, 8)).bound.shape
    torch.Size([5])
    """
    evaluation = _evaluated(program, x, particles, seed, batch_size)
    warn_of_points(evaluation.points)
    return evaluation


@measurement
@exact_convolutions()
def _evaluated(
    program: Program, x: Tensor | Arguments | Split, particles: int = 1, seed: int = 0, batch_size: int = 1000
) -> Evaluation:
    """Return ``evaluate``, without a warning."""
    check_has(program, "model", "guide")
    particles, batch_size = whole_number("particles", particles), whole_number("batch_size", batch_size)
    args = as_arguments(fixed_x(program, x) if isinstance(x, Split) else x)
    if not args or not torch.is_tensor(args[0]) or not args[0].dim() or not len(args[0]):
        got = f"a tensor of shape {tuple(args[0].shape)}" if args and torch.is_tensor(args[0]) else type(x).__name__
        raise ValueError(
            f"x: wanted a tensor (images, ...) with at least one image, got {got}; make it by "
            "training.fixed_x(program, split), or give the split itself"
        )
    dtype_of(program)
    runs, given = ProgramRuns(particles), ProgramArguments.of(args, rows=len(args[0]))
    with seeded(seed, given.device), evaluating(program), short_errors(args), given_all_arguments():
        enumeration = Enumeration.of(program.model, program.guide, args, particles=particles)
        measured = [_rate_and_distortion(runs, program, batch.args, enumeration) for batch in given.batches(batch_size)]
    rate, distortion = (torch.cat([getattr(of, part) for of in measured]) for part in ("rate", "distortion"))
    bad = (~(rate + distortion).isfinite()).nonzero().flatten()
    if len(bad):
        raise FloatingPointError(
            f"the bound of {len(bad)} of {len(rate)} images is not finite, the first being image {bad[0]}: rate "
            f"{rate[bad[0]]}, distortion {distortion[bad[0]]}; the parameters or these images are damaged"
        )
    return Evaluation(rate, distortion, measured[0].points)


def shared_evaluation(program: Program, args: Arguments) -> Evaluation:
    """Return ``evaluate``, without a warning, with the images shared out over the ranks; every rank gets all values."""
    part = _evaluated(program, own_part(args), seed=ranks.own_seed(0))
    return Evaluation(ranks.all_gather(part.rate), ranks.all_gather(part.distortion), part.points)


def own_part(args: Arguments) -> Arguments:
    """Return the arguments of this rank's part of the rows."""
    own = torch.arange(len(args[0])).tensor_split(ranks.world_size())[ranks.rank()].tolist()
    return ProgramArguments.of(args, rows=len(args[0])).part(own[0], own[-1] + 1).args


def _rate_and_distortion(
    runs: ProgramRuns, program: Program, args: Arguments, enumeration: Enumeration | None
) -> Evaluation:
    if enumeration is not None:
        found, points = [], ()
        for traces in enumeration.traces(args, particles=runs.particles):
            found.append(row_terms(*traces, plate=runs.plate(program.model, program.guide, args, {}, traces)))
            points = points_without_density(*traces)
        rate, distortion = (torch.cat([getattr(of, part) for of in found]).mean(0) for part in ("rate", "distortion"))
        return Evaluation(rate, distortion, points)
    model_trace, guide_trace = traces = runs(program.model, program.guide, args)
    plate = runs.plate(program.model, program.guide, args, {}, traces)
    scale = common_scale(model_trace, guide_trace, plate=plate)
    dtype = widest_float(args[0].device)

    def total(sites: dict[str, dict]) -> Tensor:
        terms = [per_image(site, plate).to(dtype).mean(0) for site in sites.values()]
        return sum(terms, torch.zeros((), dtype=dtype, device=args[0].device)) / scale

    rate = total(proposal_sites(guide_trace, points_too=True)) - total(sample_sites(model_trace, observed=False))
    rate, distortion = torch.broadcast_tensors(rate, -total(sample_sites(model_trace, observed=True)))
    # Both are of one shape also where a program has no latent variable.
    return Evaluation(rate, distortion, points_without_density(model_trace, guide_trace))
