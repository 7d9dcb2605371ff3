"""The variational autoencoder as a Pyro program: two functions of two sample sites."""

from collections.abc import Sequence

import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.infer.util import is_validation_enabled
from pyro.poutine.runtime import am_i_wrapped, effectful
from torch import Generator, Tensor, nn


class VAE(nn.Module):
    """p(z) p(x | z) with the guide q(z | x) (Kingma & Welling 2013; Rezende et al. 2014).

    Args:
        prior: ``prior()`` -> p(z), batch (), event (D,).
        likelihood: ``likelihood(z)`` -> p(x | z), batch ``z.shape[:-1]``, event (C, H, W).
        posterior: ``posterior(x)`` -> q(z | x), batch ``x.shape[:-3]``, event (D,).

    Any module that returns such a distribution fits. Sites ``"z"`` and ``"x"`` lie in the plate ``"images"`` at dim −1;
    x is a float image in [0, 1], made from pixels by ``observe``. Raises ValueError where a slot returns something
    else, and, while Pyro's validation is on, where x lies outside the likelihood's support.

    Parameters are those of the module (``vae.parameters()``, ``vae.state_dict()``). Under ``SVI`` each shows itself as
    a param site of this very instance; nothing enters Pyro's global store, so no VAE of a process can train another
    one's parameters or outlive its use. (``PyroOptim`` asks the store for names: to save an optimiser's state, or to
    give parameters different settings, use a torch optimiser.)

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
        """p(x, z), observed at ``x`` (B, C, H, W); without ``x`` it draws ``n`` images."""
        parameter_sites(self.prior)
        parameter_sites(self.likelihood)
        with pyro.plate("images", n if x is None else len(_images(x))):
            prior = _distribution("prior", self.prior(), event_dim=1)
            z = pyro.sample("z", prior)
            if z.shape[-1:] != prior.event_shape:
                raise ValueError(
                    f"prior: its z has {prior.event_shape[0]} dimensions, the posterior's {z.shape[-1]}; "
                    "build both with the same D"
                )
            p = _distribution("likelihood", self.likelihood(z), event_dim=3, batch=z.shape[:-1])
            if x is not None:
                _check_observation(x, p)
            return pyro.sample("x", p, obs=x)

    def guide(self, x: Tensor) -> Tensor:
        """q(z | x), x of shape (B, C, H, W); returns z."""
        parameter_sites(self.posterior)
        with pyro.plate("images", len(_images(x))):
            return pyro.sample("z", _distribution("posterior", self.posterior(x), event_dim=1, batch=x.shape[:-3]))

    def observe(self, pixels: Tensor, generator: Generator | None = None) -> Tensor:
        """x in [0, 1] from uint8 pixels (N, C, H, W), as the likelihood scores it."""
        return self.likelihood.observe(pixels, generator)


def parameter_sites(module: nn.Module, recurse: bool = True) -> None:
    """Shows the trainable parameters of a module to Pyro as param sites, without its global store.

    What ``pyro.module`` is for, except that the parameters stay the module's own: a second module of the same kind
    cannot be handed the first one's, and none is kept alive. Call it in ``model`` and ``guide`` of a program. Without
    ``recurse`` those of its submodules are left out.

    >>> from pyro import poutine
    >>> layer = nn.Linear(2, 1)
    >>> len(poutine.trace(lambda: parameter_sites(layer)).get_trace().param_nodes)
    2
    """
    if am_i_wrapped():
        prefix = f"{type(module).__name__}-{id(module)}"
        for name, parameter in module.named_parameters(prefix, recurse):
            if parameter.requires_grad:
                _parameter_site(parameter, name=name)


@effectful(type="param")
def _parameter_site(parameter: nn.Parameter) -> Tensor:
    value = parameter.detach()
    value.unconstrained = lambda: parameter  # how SVI finds the leaf that it trains
    return value


def _images(x: Tensor) -> Tensor:
    if not x.is_floating_point() or x.dim() != 4 or not len(x):
        raise ValueError(
            f"x: wanted a float tensor of shape (B, C, H, W) with B ≥ 1, got {x.dtype} of shape {tuple(x.shape)}; "
            "make it from uint8 pixels by vae.observe(pixels)"
        )
    return x


def _distribution(slot: str, p: object, event_dim: int, batch: Sequence[int] = ()) -> TorchDistributionMixin:
    """What a slot returned; ValueError unless it is a distribution of the right shape."""
    if not isinstance(p, TorchDistributionMixin):
        raise ValueError(
            f"{slot}: wanted a module whose call returns a distribution of pyro.distributions, got {type(p).__name__}"
        )
    if p.event_dim != event_dim or p.batch_shape != torch.Size(batch):
        raise ValueError(
            f"{slot}: wanted batch shape {tuple(batch)} and {event_dim} event dimension(s), got batch shape "
            f"{tuple(p.batch_shape)} and event shape {tuple(p.event_shape)}; move dimensions with .to_event(...)"
        )
    return p


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
