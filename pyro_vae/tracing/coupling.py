"""Particles whose noise is not independent: antithetic pairs, and points that fill the cube evenly."""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Distribution
from torch.quasirandom import SobolEngine

from pyro_vae.tracing.messages import PARTICLES
from pyro_vae.tracing.paths import draw_of, is_drawn

BITS = 30  # of the points of torch's Sobol sequence


class Run:
    """What the sites of one run share: the dimensions taken so far, and the order of the particles, by batch shape."""

    def __init__(self) -> None:
        self.taken: dict[tuple[int, ...], int] = {}
        self.order: dict[tuple[int, ...], Tensor] = {}


# uniforms(K, batch, event, like, run): noise of shape (K, *batch, *event), uniform on (0, 1) for each single particle
Uniforms = Callable[[int, tuple[int, ...], tuple[int, ...], Tensor, Run], Tensor]


def coupled(uniforms: Uniforms, particles: int, draws: Callable) -> Callable[[Callable], Callable]:
    """Return a handler of a guide that makes ``draws`` of K particles from coupled noise.

    >>> import pyro
    >>> import pyro.distributions as dist
    >>> def guide():
    ...     with pyro.plate(PARTICLES, 2):
    ...         return pyro.sample("z", dist.Normal(0.0, torch.ones(2)))
    >>> bool(coupled(antithetic, 2, Drawn())(guide)().sum().abs() < 1e-5)
    True
    """
    noise = _Noise(uniforms, particles)
    return lambda guide: draws(noise(guide))


class Drawn(Messenger):
    """Draws the sites of a guide as Pyro does, from the noise of ``coupled``."""

    def _pyro_sample(self, msg: Any) -> None:
        if "uniforms" in msg:
            msg["value"], msg["done"] = draw_of(msg["fn"], msg["uniforms"])[0], True


class _Noise(Messenger):
    """Gives each site that is drawn its ``"uniforms"``; particles may be drawn together or one after the other."""

    def __init__(self, uniforms: Uniforms, particles: int):
        super().__init__()
        self.uniforms, self.particles, self.run = uniforms, particles, Run()
        self.left: dict[str, list[Tensor]] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if not is_drawn(msg):
            return
        fn, dims = msg["fn"], [frame.dim for frame in msg["cond_indep_stack"] if frame.name == PARTICLES]
        batch, name = list(fn.batch_shape), msg["name"]
        if dims:
            del batch[dims[0]]
            noise = self._of_all(fn, tuple(batch))
            msg["uniforms"] = noise.movedim(0, dims[0] - fn.event_dim)
        else:
            if not self.left.get(name):
                self.left[name] = list(self._of_all(fn, tuple(batch)))[::-1]
            msg["uniforms"] = self.left[name].pop()

    def _of_all(self, fn: Any, batch: tuple[int, ...]) -> Tensor:
        like = _parameter(fn)
        noise = self.uniforms(self.particles, batch, tuple(fn.event_shape), like, self.run)
        smallest = torch.finfo(noise.dtype).eps / 2
        return noise.clamp(smallest, 1 - smallest)


def antithetic(K: int, batch: tuple[int, ...], event: tuple[int, ...], like: Tensor, run: Run) -> Tensor:
    """Return pairs u, 1 − u of particles that follow each other; the last of an odd number has no partner.

    >>> antithetic(2, (), (3,), torch.zeros(()), Run()).sum(0)
    tensor([1., 1., 1.])
    """
    first = torch.rand((K + 1) // 2, *batch, *event, dtype=like.dtype, device=like.device)
    return torch.stack([first, 1 - first], 1).flatten(0, 1)[:K]


def quasi_random(K: int, batch: tuple[int, ...], event: tuple[int, ...], like: Tensor, run: Run) -> Tensor:
    """Return K points of a Sobol sequence that a random digital shift moves, anew for each element of the batch.

    The sites of a run with one batch shape take different dimensions of the sequence. Elements of the batch have the
    particles in orders of their own, so that they are paired at random. Raises ValueError beyond 21,201 dimensions.

    >>> u = quasi_random(8, (), (2,), torch.zeros(()), Run())
    >>> (8 * u).floor().sort(0).values.mT  # one point in each eighth
    tensor([[0., 1., 2., 3., 4., 5., 6., 7.],
            [0., 1., 2., 3., 4., 5., 6., 7.]])
    """
    size, taken = math.prod(event), run.taken.get(batch, 0)
    run.taken[batch] = taken + size
    points = _sobol(K, taken + size)[:, taken:].to(like.device).reshape(K, *[1] * len(batch), size)
    shift = torch.randint(1 << BITS, (1, *batch, size), device=like.device)
    if batch not in run.order:
        run.order[batch] = torch.rand(K, *batch, device=like.device).argsort(0)
    order = run.order[batch].unsqueeze(-1).expand(K, *batch, size)
    bits = (points ^ shift).gather(0, order)
    return ((bits.double() + 0.5) / (1 << BITS)).to(like.dtype).reshape(K, *batch, *event)


@cache
def _sobol(K: int, dimensions: int) -> Tensor:
    if dimensions > SobolEngine.MAXDIM:
        raise ValueError(
            f"the sites of the guide have {dimensions:,} dimensions, and quasi-random points at most "
            f"{SobolEngine.MAXDIM:,}; take Antithetic"
        )
    return (SobolEngine(dimensions).draw(K, dtype=torch.float64) * (1 << BITS)).long()


def _parameter(fn: Any) -> Tensor:
    """Return a parameter of a distribution, whose type and device its noise has."""
    for value in vars(fn).values():
        if isinstance(value, Tensor) and value.is_floating_point():
            return value
        if isinstance(value, Distribution):
            return _parameter(value)
    return torch.zeros(())
