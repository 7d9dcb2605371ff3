"""Bound, rate and distortion of single images, by Monte Carlo."""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from pyro_vae.checks import whole_number
from pyro_vae.data.splits import Split
from pyro_vae.errors import short_errors
from pyro_vae.hardware import widest_float
from pyro_vae.program import X_ALONE, Program, check_has, dtype_of, given_x_alone, observed
from pyro_vae.random import measurement, mode, seeded
from pyro_vae.tracing.traces import ProgramRuns, common_scale, per_image, proposal_sites, sample_sites
from pyro_vae.training import ranks


@dataclass(frozen=True)
class Evaluation:
    """Monte Carlo values of single images, in nats, each of shape (images,), float64 (float32 where a device has none).

    ``rate`` = log q(z | x) − log p(z), ``distortion`` = −log p(x | z), ``bound`` = −(rate + distortion), means over the
    particles.
    """

    rate: Tensor
    distortion: Tensor

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


@measurement
def evaluate(program: Program, x: Tensor, *, particles: int = 1, seed: int = 0, batch_size: int = 1000) -> Evaluation:
    """Return bound, rate and distortion of each image by Monte Carlo; no parameter is changed.

    x: (images, C, H, W), see ``fixed_x``. Every image is measured, in batches of at most ``batch_size``. A weight of
    single images, by ``poutine.scale``, is divided out. Raises ValueError for a program whose sites share no plate over
    images or have different weights, FloatingPointError where a value is not finite.

    >>> import pyro_vae as pv
    >>> vae = pv.VAE(
    ...     pv.priors.StandardNormal(2),
    ...     pv.likelihoods.Normal(pv.networks.MLPDecoder(2, (1, 8, 8), maps=2)),
    ...     pv.guides.MeanField(pv.networks.MLPEncoder((1, 8, 8)), 2),
    ... )
    >>> evaluate(vae, torch.rand(5, 1, 8, 8)).bound.shape
    torch.Size([5])
    """
    check_has(program, "model", "guide")
    particles, batch_size = whole_number("particles", particles), whole_number("batch_size", batch_size)
    if not torch.is_tensor(x) or not x.dim() or not len(x):
        got = f"a tensor of shape {tuple(x.shape)}" if torch.is_tensor(x) else type(x).__name__
        cure = X_ALONE if isinstance(x, tuple) else "make it by training.fixed_x(program, pixels)"
        raise ValueError(f"x: wanted a tensor (images, ...) with at least one image, got {got}; {cure}")
    dtype_of(program)
    runs = ProgramRuns(particles)
    with seeded(seed, x.device), mode(program, training=False), short_errors([x]), given_x_alone():
        measured = [_rate_and_distortion(runs, program, batch) for batch in x.split(batch_size)]
    rate, distortion = (torch.cat(part) for part in zip(*measured))
    bad = (~(rate + distortion).isfinite()).nonzero().flatten()
    if len(bad):
        raise FloatingPointError(
            f"the bound of {len(bad)} of {len(x)} images is not finite, the first being image {bad[0]}: rate "
            f"{rate[bad[0]]}, distortion {distortion[bad[0]]}; the parameters or these images are damaged"
        )
    return Evaluation(rate, distortion)


def shared_evaluation(program: Program, x: Tensor) -> Evaluation:
    """Return ``evaluate`` with the images shared out over the ranks; every rank gets all values."""
    part = evaluate(program, x.tensor_split(ranks.world_size())[ranks.rank()], seed=ranks.own_seed(0))
    return Evaluation(ranks.all_gather(part.rate), ranks.all_gather(part.distortion))


def fixed_x(program: Program, pixels: Tensor, seed: int = 0) -> Tensor:
    """Return x of validation or test images, drawn from the pixels by a seed of its own, in the program's dtype.

    >>> from pyro_vae.likelihoods import Bernoulli
    >>> likelihood, pixels = Bernoulli(torch.nn.Identity()), torch.full((1, 1, 8, 8), 100, dtype=torch.uint8)
    >>> torch.equal(fixed_x(likelihood, pixels), fixed_x(likelihood, pixels))
    True
    """
    check_has(program, "observe")
    if isinstance(pixels, Split):
        raise ValueError("pixels: wanted a uint8 tensor (N, C, H, W), got a Split; write split.images")
    device = pixels.device if torch.is_tensor(pixels) else "cpu"
    return observed(program, pixels, Generator(device).manual_seed(whole_number("seed", seed, least=None)))


def _rate_and_distortion(runs: ProgramRuns, program: Program, x: Tensor) -> tuple[Tensor, Tensor]:
    model_trace, guide_trace = traces = runs(program.model, program.guide, (x,))
    plate = runs.plate(program.model, program.guide, (x,), {}, traces)
    scale = common_scale(model_trace, guide_trace, plate=plate)
    dtype = widest_float(x.device)

    def total(sites: dict[str, dict]) -> Tensor:
        terms = [per_image(site, plate).to(dtype).mean(0) for site in sites.values()]
        return sum(terms, torch.zeros((), dtype=dtype, device=x.device)) / scale

    rate = total(proposal_sites(guide_trace, points_too=True)) - total(sample_sites(model_trace, observed=False))
    return rate, -total(sample_sites(model_trace, observed=True))
