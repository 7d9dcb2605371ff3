"""The variational autoencoder as a Pyro program: two functions of two sample sites."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from weakref import WeakKeyDictionary

import numpy as np
import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.infer.util import is_validation_enabled
from torch import Generator, Tensor, nn

from pyro_vae.guides import NetworkGuide
from pyro_vae.likelihoods import Likelihood, checked_pixels, observed_by
from pyro_vae.networks import HALF
from pyro_vae.random import mode, without_autocast
from pyro_vae.sites import parameter_sites


class VAE(nn.Module):
    """p(z) p(x | z) with the guide q(z | x) (Kingma & Welling 2013; Rezende et al. 2014).

    Args:
        prior: ``prior()`` -> p(z), batch (), event (D,).
        likelihood: ``likelihood(z)`` -> p(x | z), batch ``z.shape[:-1]``, event (C, H, W).
        posterior: ``posterior(x)`` -> q(z | x), batch ``x.shape[:-3]``, event (D,).

    Any module that returns such a distribution fits. The sites ``"z"`` and ``"x"`` lie in the plate ``"images"`` at dim
    −1. x is a float image in [0, 1], made from pixels by ``observe``. Raises ValueError if a part returns anything else
    and, while Pyro's validation is on, if x lies outside the likelihood's support.

    The parameters are those of the module: save them with ``torch.save(vae.state_dict(), path)``. Under ``SVI`` each of
    them appears as a param site of this instance. Nothing enters Pyro's global store, so that no VAE can train the
    parameters of another one or stay in memory after its last use; ``pyro.get_param_store().save`` raises ValueError
    where it would write an empty file. Pyro's optimisers know the parameters by the names that ``pyro.module`` would
    give to the three parts, so that ``svi.optim.save`` and settings by a function of the name work.

    >>> from pyro.infer import SVI, Trace_ELBO
    >>> from pyro_vae import guides, likelihoods, networks, priors
    >>> shape, latent = (1, 8, 8), 2
    >>> vae = VAE(
    ...     priors.StandardNormal(latent),
    ...     likelihoods.Bernoulli(networks.ConvDecoder(latent, shape, maps=1, channels=(8, 8))),
    ...     guides.MeanField(networks.ConvEncoder(shape, channels=(8, 8)), latent),
    ... )
    >>> x = vae.observe(torch.randint(256, (5, *shape), dtype=torch.uint8))
    >>> svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    >>> loss = svi.step(x)
    >>> vae.model(n=3).shape
    torch.Size([3, 1, 8, 8])
    """

    def __init__(self, prior: nn.Module, likelihood: nn.Module, posterior: nn.Module):
        super().__init__()
        self.prior = prior
        self.likelihood = likelihood
        self.posterior = posterior

    def model(self, x: Tensor | None = None, n: int = 1) -> Tensor:
        """Sample p(x, z), observed at ``x`` (B, C, H, W); without ``x`` draw ``n`` images. Return x."""
        parameter_sites(self.prior, name="prior")
        parameter_sites(self.likelihood, name="likelihood")
        with pyro.plate("images", n if x is None else len(_images(x))):
            prior = _distribution("prior", _called(self.prior), event_dim=1)
            z = pyro.sample("z", prior)
            if z.shape[-1:] != prior.event_shape:
                raise ValueError(
                    f"prior: its z has {prior.event_shape[0]} dimensions, the posterior's {z.shape[-1]}; "
                    "build both with the same D"
                )
            p = _distribution("likelihood", _called(self.likelihood, z), event_dim=3, batch=z.shape[:-1])
            if x is not None:
                _check_observation(x, p)
            return pyro.sample("x", p, obs=x)

    def guide(self, x: Tensor) -> Tensor:
        """Sample q(z | x) for x of shape (B, C, H, W), and return z."""
        parameter_sites(self.posterior, name="posterior")
        with pyro.plate("images", len(_images(x))):
            q = _distribution("posterior", _called(self.posterior, x), event_dim=1, batch=x.shape[:-3])
            return pyro.sample("z", q)

    def observe(self, pixels: Tensor | np.ndarray, generator: Generator | None = None) -> Tensor:
        """Return x in [0, 1] from uint8 pixels (N, C, H, W), in the dtype of the parameters.

        A likelihood without a method ``observe`` may be a density or a distribution on 0 and 1. For a density, with u ~
        U[0, 1), x = (g + u) / 256, kept 2^−17 away from 0 and 1. On 0 and 1, x ~ Bernoulli(g / 255). Raises ValueError
        for any other likelihood, for other pixels, and for parameters in half precision.
        """
        observe = getattr(self.likelihood, "observe", None) or self._observe
        return observe(pixels, generator).to(self._like().dtype)

    def _observe(self, pixels: Tensor | np.ndarray, generator: Generator | None) -> Tensor:
        pixels = checked_pixels(pixels)
        if self.likelihood not in _OBSERVED_BY:
            z = self._like().new_zeros(2, *_distribution("prior", self.prior(), event_dim=1).event_shape)
            with torch.no_grad(), mode(self.likelihood, training=False):
                p = _distribution("likelihood", self.likelihood(z), event_dim=3, batch=(2,))
            _OBSERVED_BY[self.likelihood] = observed_by(p, z)
        return _OBSERVED_BY[self.likelihood](pixels, generator)

    def _like(self) -> Tensor:
        """Return a tensor with the dtype and the device of the parameters."""
        like = next((p for p in self.parameters() if p.is_floating_point()), torch.empty(0))
        if like.dtype in HALF:
            raise ValueError(
                f"vae: wanted parameters in float32 or float64, as densities are, got {like.dtype}; write vae.float(), "
                "and lower the precision of the networks alone by fit(..., precision=torch.bfloat16)"
            )
        return like


_OBSERVED_BY: WeakKeyDictionary[nn.Module, Callable[..., Tensor]] = WeakKeyDictionary()


def _called(part: nn.Module, *args: Tensor) -> TorchDistributionMixin:
    """Call a part in full precision; parts of this package lower the precision of only their networks in autocast."""
    with nullcontext() if isinstance(part, Likelihood | NetworkGuide) else without_autocast():
        return part(*args)


def _images(x: Tensor) -> Tensor:
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.dim() != 4 or not len(x):
        got = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
        raise ValueError(
            f"x: wanted a float tensor of shape (B, C, H, W) with B ≥ 1, got {got}; make it from uint8 pixels by "
            "vae.observe(pixels)"
        )
    return x


def _distribution(slot: str, p: object, event_dim: int, batch: Sequence[int] = ()) -> TorchDistributionMixin:
    """Return what a part returned; raise ValueError unless it is a distribution of the right shape."""
    if not isinstance(p, TorchDistributionMixin):
        got, cure = type(p).__name__, ""
        if isinstance(p, torch.distributions.Distribution):
            got, cure = f"torch.distributions.{got}", f"; write import pyro.distributions as dist, and dist.{got}(...)"
        raise ValueError(
            f"{slot}: wanted a module whose call returns a distribution of pyro.distributions, got {got}{cure}"
        )
    if p.event_dim != event_dim or p.batch_shape != torch.Size(batch):
        raise ValueError(
            f"{slot}: wanted batch shape {tuple(batch)} and {event_dim} event dimension(s), got batch shape "
            f"{tuple(p.batch_shape)} and event shape {tuple(p.event_shape)}; {_shape_cure(p, event_dim, batch)}"
        )
    return p


def _shape_cure(p: TorchDistributionMixin, event_dim: int, batch: Sequence[int]) -> str:
    more = event_dim - p.event_dim
    if more:
        number = more if more > 0 and p.batch_shape[:-more] == torch.Size(batch) else "..."
        return f"move dimensions with .to_event({number})"
    if not batch:
        return "return one distribution, without a batch"
    return "keep the leading dimensions of the argument, as networks.applied(network, argument, event_dim) does"


def _check_observation(x: Tensor, p: TorchDistributionMixin) -> None:
    if p.event_shape != x.shape[-3:]:
        raise ValueError(
            f"likelihood: its images are {tuple(p.event_shape)}, x holds {tuple(x.shape[-3:])}; "
            "build the decoder for this shape, with maps = C × likelihood.parameters_per_pixel"
        )
    if is_validation_enabled() and not (p.support.check(x).all() and (x >= 0).all() and (x <= 1).all()):
        family = type(getattr(p, "base_dist", p)).__name__
        raise ValueError(
            f"x: outside the support of {family} within [0, 1]: got values from {x.min():.4g} to {x.max():.4g} "
            f"({x.isnan().sum()} NaN); make x from uint8 pixels by vae.observe(pixels)"
        )
