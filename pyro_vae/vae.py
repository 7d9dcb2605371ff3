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

from pyro_vae import analysis
from pyro_vae.analysis import BATCH
from pyro_vae.checks import whole_number
from pyro_vae.construction import Constructed, check_parts
from pyro_vae.data.fields import check_unmasked, masked_field
from pyro_vae.data.pixels import checked_pixels, observed_by
from pyro_vae.data.splits import Split
from pyro_vae.guides import NetworkGuide
from pyro_vae.imputation import Imputation, impute
from pyro_vae.likelihoods import Likelihood
from pyro_vae.likelihoods.base import as_rows
from pyro_vae.missing import Masked
from pyro_vae.networks import HALF
from pyro_vae.observation import fixed_x
from pyro_vae.random import mode, without_autocast
from pyro_vae.sites import parameter_sites


class VAE(Constructed):
    """p(z) p(x | z) with the guide q(z | x) (Kingma & Welling 2013; Rezende et al. 2014).

    Args:
        prior: ``prior()`` -> p(z), batch (), event (D,).
        likelihood: ``likelihood(z)`` -> p(x | z), batch ``z.shape[:-1]``, event that of x.
        posterior: ``posterior(x)`` -> q(z | x), batch (B,), event (D,).

    Any module that returns such a distribution fits. The sites ``"z"`` and ``"x"`` lie in the plate ``"images"`` at dim
    −1. x is any float tensor (B, *event), made from raw rows by ``observe``: a float image in [0, 1], (C, H, W), or
    what else the likelihood scores, such as a row (D,) of counts. Raises ValueError if a part is no module or returns
    anything else and, while Pyro's validation is on, if x lies outside the likelihood's support, or an image outside
    [0, 1].

    The parameters are those of the module: ``save_vae(vae, folder)`` saves it whole. Under ``SVI`` each of them appears
    as a param site of this instance. Nothing enters Pyro's global store, so that no VAE can train the
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

    Counts of seven kinds:

    >>> vae = VAE(
    ...     priors.StandardNormal(latent),
    ...     likelihoods.NegativeBinomial(networks.MLPDecoder(latent, (7,), maps=2 * 7)),
    ...     guides.MeanField(networks.MLPEncoder((7,), scaling=networks.Log1p()), latent),
    ... )
    >>> x = vae.observe(torch.randint(100, (5, 7)))
    >>> vae.guide(x).shape
    torch.Size([5, 2])
    """

    def __init__(self, prior: nn.Module, likelihood: nn.Module, posterior: nn.Module):
        super().__init__()
        check_parts(prior=prior, likelihood=likelihood, posterior=posterior)
        if isinstance(likelihood, NetworkGuide) or isinstance(posterior, Likelihood):
            names = ", ".join(type(part).__name__ for part in (prior, likelihood, posterior))
            raise ValueError(f"VAE: wanted VAE(prior, likelihood, posterior), got {names}; change their order")
        self.prior = prior
        self.likelihood = likelihood
        self.posterior = posterior

    def model(self, x: Tensor | None = None, n: int = 1) -> Tensor:
        """Sample p(x, z), observed at ``x`` (B, *event); without ``x`` draw ``n`` rows. Return x."""
        parameter_sites(self.prior, name="prior")
        parameter_sites(self.likelihood, name="likelihood")
        with pyro.plate("images", whole_number("n", n) if x is None else len(self._checked(x))):
            prior = _distribution("prior", _called(self.prior), event_dim=1)
            z = pyro.sample("z", prior)
            if z.shape[-1:] != prior.event_shape:
                raise ValueError(
                    f"prior: its z has {prior.event_shape[0]} dimensions, the posterior's {z.shape[-1]}; "
                    "build both with the same D"
                )
            dims = self._event_dim() if x is None else x.dim() - 1
            p = _distribution("likelihood", _called(self.likelihood, z), event_dim=dims, batch=z.shape[:-1])
            if x is None:
                return pyro.sample("x", p)
            _check_shape(x, p, self._field(p.event_dim))
            seen = pyro.sample("x", p, obs=x)  # a handler may have replaced values that the site does not score
            _check_support(x, seen, p, self._field(p.event_dim))
            return seen

    def guide(self, x: Tensor) -> Tensor:
        """Sample q(z | x) for x of shape (B, *event), and return z."""
        parameter_sites(self.posterior, name="posterior")
        with pyro.plate("images", len(self._checked(x))):
            q = _distribution("posterior", _called(self.posterior, x), event_dim=1, batch=x.shape[:1])
            return pyro.sample("z", q)

    def observe(self, batch: Split | Tensor | np.ndarray, generator: Generator | None = None) -> Tensor:
        """Return x from a batch, or from raw rows such as uint8 pixels (N, C, H, W), in the dtype of the parameters.

        Of a batch the likelihood gets its ``field``, a table with NaN where the field ``mask`` is False; for a
        likelihood without that attribute it is ``images``. Without a method ``observe`` it may be a density or a
        distribution on 0 and 1 of images. For a density, with u ~ U[0, 1), x = (g + u) / 256, kept 2^−17 away from 0
        and 1. On 0 and 1, x ~ Bernoulli(g / 255). What is no image, by the event dimensions of p(x | z), is taken as it
        is. Raises ValueError for any other likelihood, for other rows, and for parameters in half precision.
        """
        observe = getattr(self.likelihood, "observe", None) or self._observe
        return observe(self._raw(batch), generator).to(self._like().dtype)

    def encode(
        self, batch: Split | Tensor | np.ndarray, *, batch_size: int = BATCH, samples: int = 256, seed: int = 0
    ) -> Tensor:
        """Return the codes of rows, the means of q(z | x): (N, D), on the CPU.

        This method and the next three run in evaluation mode, without gradients, and leave torch's random numbers
        and the training mode as they are. The same seed, batch size and machine give the same result.

        Args:
            batch: a split or raw rows, a tensor or an array: uint8 (N, C, H, W), or what ``observe`` takes. For x that
                was observed already there is ``analysis.codes(vae, x)``.
            batch_size: rows at once.
            samples: draws whose average is the mean, for a guide without one in closed form (a flow).
            seed: of what ``observe`` draws, such as binary pixels, and of these draws.

        >>> from pyro_vae import guides, likelihoods, networks, priors
        >>> likelihood = likelihoods.Bernoulli(networks.MLPDecoder(2, (1, 8, 8), maps=1))
        >>> vae = VAE(priors.StandardNormal(2), likelihood, guides.MeanField(networks.MLPEncoder((1, 8, 8)), 2))
        >>> pixels = torch.randint(256, (5, 1, 8, 8), dtype=torch.uint8)
        >>> vae.encode(pixels).shape, vae.decode(vae.encode(pixels)).shape, vae.reconstruct(pixels).shape
        (torch.Size([5, 2]), torch.Size([5, 1, 8, 8]), torch.Size([5, 1, 8, 8]))
        """
        return analysis.codes(self, fixed_x(self, batch, seed), batch_size=batch_size, samples=samples, seed=seed)

    def decode(self, z: Tensor | np.ndarray, *, batch_size: int = BATCH) -> Tensor:
        """Return the means of p(x | z) for z (N, D): images (N, C, H, W), or rows, on the CPU.

        In a table's columns of levels it is the most probable level: ``schema.frame(vae.decode(z))`` is a frame.
        """
        return analysis.decode(self, torch.as_tensor(z), batch_size=batch_size)

    def reconstruct(
        self, batch: Split | Tensor | np.ndarray, *, batch_size: int = BATCH, samples: int = 256, seed: int = 0
    ) -> Tensor:
        """Return the decoded codes of rows, of the shape of x, on the CPU; the arguments are those of ``encode``."""
        x = fixed_x(self, batch, seed)
        return analysis.reconstruct(self, x, batch_size=batch_size, samples=samples, seed=seed)

    def impute(
        self,
        batch: Split | Tensor | np.ndarray,
        particles: int = 1000,
        *,
        batch_size: int | None = None,
        seed: int = 0,
    ) -> Imputation:
        """Fill in the missing values of rows: those that are False in the field ``mask``, and NaN in a table.

        Args, result and warnings are those of ``pyro_vae.impute``, which also takes a program that was trained as
        ``Masked(vae, mask_as_input=True)``. Raises ValueError if nothing is missing.

        >>> from pyro_vae import guides, likelihoods, networks, priors
        >>> likelihood = likelihoods.RealNormal(networks.MLPDecoder(2, (3,), maps=3), log_scale=0.0)
        >>> vae = VAE(priors.StandardNormal(2), likelihood, guides.MeanField(networks.MLPEncoder((3,)), 2))
        >>> found = vae.impute(np.array([[0.5, np.nan, 2.0]]), particles=100)
        >>> found.x.isfinite().all().item(), found.mask
        (True, tensor([[ True, False,  True]]))
        """
        batch = batch if isinstance(batch, Split) else Split(**{self._field(): batch})
        program = self if getattr(self.likelihood, "takes_nan", False) else Masked(self)
        return impute(program, batch, particles, batch_size=batch_size, seed=seed)

    def _raw(self, batch: Split | Tensor | np.ndarray) -> Tensor | np.ndarray:
        field = self._field()
        if not isinstance(batch, Split):
            return Split(counts=batch).counts if field == "counts" else batch  # a split checks that they are counts
        if field not in batch.fields:
            raise ValueError(
                f"batch: wanted the field {field}, which {type(self.likelihood).__name__} scores, got {batch}; write "
                f"Split({field}=...), or give the likelihood the attribute field, the name of what it scores"
            )
        rows = batch.fields[field]
        if field == "table" and masked_field(batch.fields, field):
            return torch.where(batch.mask, rows, torch.nan)
        check_unmasked(batch.fields, field)
        return rows

    def _observe(self, raw: Tensor | np.ndarray, generator: Generator | None) -> Tensor:
        if self.likelihood not in _OBSERVED_BY:
            z = self._like().new_zeros(2, *_distribution("prior", self.prior(), event_dim=1).event_shape)
            with torch.no_grad(), mode(self.likelihood, training=False):
                p = _distribution("likelihood", self.likelihood(z), self._event_dim(), batch=(2,))
            _OBSERVED_BY[self.likelihood] = _observed_by(p, z, self._field(p.event_dim))
        return _OBSERVED_BY[self.likelihood](raw, generator)

    def _field(self, dims: int = 3) -> str:
        """Return the field of a split that x, of ``dims`` event dimensions, comes from."""
        return getattr(self.likelihood, "field", "images" if dims == 3 else "x")

    def _event_dim(self) -> int | None:
        return getattr(self.likelihood, "event_dim", None)

    def _checked(self, x: Tensor) -> Tensor:
        """Return x; raise ValueError unless it is a float tensor of at least one row, as the likelihood takes it."""
        dims = self._event_dim()
        as_wanted = isinstance(x, Tensor) and x.is_floating_point() and x.dim() > 1 and len(x)
        if not as_wanted or (dims is not None and x.dim() != dims + 1):
            got = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
            shape = {1: "(B, D)", 3: "(B, C, H, W)"}.get(dims or 0, "(B, *event)")
            raise ValueError(
                f"x: wanted a float tensor of shape {shape} with B ≥ 1, got {got}; make it from "
                f"{'uint8 pixels' if dims in (None, 3) else 'raw rows'} by vae.observe(batch)"
            )
        return x

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


def _observed_by(p: TorchDistributionMixin, like: Tensor, field: str) -> Callable[..., Tensor]:
    """Return the function that makes x for a likelihood without ``observe``."""
    if p.event_dim != 3:
        return lambda raw, generator: as_rows(field, raw, p.event_dim + 1)
    observe = observed_by(p, like)
    return lambda pixels, generator: observe(checked_pixels(pixels), generator)


def _called(part: nn.Module, *args: Tensor) -> TorchDistributionMixin:
    """Call a part in full precision; parts of this package lower the precision of only their networks in autocast."""
    with nullcontext() if isinstance(part, Likelihood | NetworkGuide) else without_autocast():
        return part(*args)


def _distribution(slot: str, p: object, event_dim: int | None, batch: Sequence[int] = ()) -> TorchDistributionMixin:
    """Return what a part returned; raise ValueError unless it is a distribution of the right shape.

    ``event_dim`` is None where it is not known.
    """
    if not isinstance(p, TorchDistributionMixin):
        got, cure = type(p).__name__, ""
        if isinstance(p, torch.distributions.Distribution):
            got, cure = f"torch.distributions.{got}", f"; write import pyro.distributions as dist, and dist.{got}(...)"
        raise ValueError(
            f"{slot}: wanted a module whose call returns a distribution of pyro.distributions, got {got}{cure}"
        )
    if event_dim is None:
        event_dim = max(p.event_dim, len(p.shape()) - len(batch))
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


def _check_shape(x: Tensor, p: TorchDistributionMixin, field: str) -> None:
    """Raise ValueError unless x has the event shape of p."""
    if p.event_shape != x.shape[1:]:
        noun, size = ("images", "C") if field == "images" else ("rows", "D")
        raise ValueError(
            f"likelihood: its {noun} are {tuple(p.event_shape)}, x holds {tuple(x.shape[1:])}; "
            f"build the decoder for this shape, with maps = {size} × likelihood.parameters_per_pixel"
        )


def _check_support(x: Tensor, seen: Tensor, p: TorchDistributionMixin, field: str) -> None:
    """Raise ValueError, in validation, unless what p scores lies in its support, and x, if images, in [0, 1]."""
    images = field == "images"
    if not is_validation_enabled() or (p.support.check(seen).all() and not (images and ((x < 0) | (x > 1)).any())):
        return
    family, found = type(getattr(p, "base_dist", p)).__name__, f"{x.isnan().sum()} NaN"
    if p.support.is_discrete and not images:
        found += f", {(x != x.round()).sum()} not whole"
    cure = f"make x from {'uint8 pixels' if images else f'raw {field}'} by vae.observe(batch)"
    if images and p.support.check(seen).all():
        cure += "; if it has other levels on purpose, name the field that has them: field = 'levels' in the likelihood"
    raise ValueError(
        f"x: outside the support of {family}{' within [0, 1]' if images else ''}: got values from {x.min():.4g} to "
        f"{x.max():.4g} ({found}); {cure}"
    )
