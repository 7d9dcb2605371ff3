"""Likelihoods of counts, rows of whole numbers from 0: mean and dispersion as in Lopez et al. (2018)."""

from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.infer.util import is_validation_enabled
from torch import Tensor, nn

from pyro_vae.distributions.counts import NegativeBinomialCounts, PoissonCounts, ZeroInflatedCounts
from pyro_vae.likelihoods.base import RowLikelihood, give_parameter
from pyro_vae.random import without_autocast

# Bounds that keep log-probabilities finite where a network diverges; they change nothing elsewhere.
LARGEST_LOG_MEAN = 40.0
LOG_DISPERSION_RANGE = (-20.0, 40.0)
LARGEST_GATE_LOGIT = 40.0


class CountLikelihood(RowLikelihood):
    """Abstract class of likelihoods of counts, (..., D), the field ``counts``.

    The mean is e^a, or size × e^a, for the network's first map a (..., D); ``softmax=True``: size × softmax(a), so that
    the sizes are the expected sums of the rows, such as the library sizes of cells. ``likelihood(z, size)`` takes the
    sizes: positive numbers, of the batch shape of z or of its last dimensions. ``softmax=True`` cannot do without.

    Log-probabilities and gradients are exact up to rounding, and finite where a network diverges. torch's negative
    binomial, in float32, is off by hundreds of nats where the dispersion is large.
    """

    field = "counts"

    def __init__(self, network: nn.Module, softmax: bool = False):
        super().__init__(network)
        self.softmax = softmax

    def forward(self, z: Tensor, size: Tensor | None = None) -> Any:
        """Return p(x | z, size) for z (..., D) and one size for each row: batch (...), event (D,)."""
        value, *maps = self.maps(z)
        with without_autocast():
            log_mean = value.log_softmax(-1) if self.softmax else value
            if size is not None or self.softmax:
                log_mean = log_mean + _checked_size(size, z.shape[:-1]).log().unsqueeze(-1)
            return self.pixel_distribution(log_mean, *maps).to_event(self.event_dim)


class Poisson(CountLikelihood):
    """Poisson distribution: variance = mean.

    >>> from pyro_vae.networks import MLPDecoder
    >>> p = Poisson(MLPDecoder(2, (7,), maps=7))(torch.zeros(5, 2), size=torch.full((5,), 100.0))
    >>> p.batch_shape, p.mean.shape
    (torch.Size([5]), torch.Size([5, 7]))
    """

    parameters_per_pixel = 1

    def pixel_distribution(self, log_mean: Tensor) -> TorchDistribution:
        """Return Poisson distributions of these log means."""
        return PoissonCounts(log_mean.clamp(max=LARGEST_LOG_MEAN))


class NegativeBinomial(CountLikelihood):
    """Negative binomial distribution with mean μ and dispersion θ: variance = μ + μ² / θ, e^−20 ≤ θ ≤ e^40.

    ``log_dispersion=None``: a second map of the network is ln θ of each row and value. An ``nn.Parameter`` of shape
    (D,): each value of a row has its own θ, learned and the same in all rows. A number: ln θ is fixed.

    >>> from pyro_vae.networks import MLPDecoder
    >>> likelihood = NegativeBinomial(MLPDecoder(2, (7,), maps=7), nn.Parameter(torch.zeros(7)), softmax=True)
    >>> likelihood(torch.zeros(5, 2), size=torch.full((5,), 100.0)).mean.sum(-1).detach().round()
    tensor([100., 100., 100., 100., 100.])
    """

    log_dispersion: Any

    def __init__(self, network: nn.Module, log_dispersion: float | nn.Parameter | None = None, softmax: bool = False):
        super().__init__(network, softmax)
        self.parameters_per_pixel = 2 if log_dispersion is None else 1
        give_parameter(self, "log_dispersion", log_dispersion)

    def pixel_distribution(self, log_mean: Tensor, log_dispersion: Tensor | None = None) -> TorchDistribution:
        """Return negative binomial distributions of these log means."""
        return _negative_binomial(log_mean, self.log_dispersion if log_dispersion is None else log_dispersion)


class ZeroInflatedNegativeBinomial(CountLikelihood):
    """``NegativeBinomial`` in which a value is zero anyway with a probability π = sigmoid(b), b a map of the network.

    ``log_dispersion`` as in ``NegativeBinomial``; the maps are a, b and, where it is None, ln θ. The mean is (1 − π) μ.

    >>> from pyro_vae.networks import MLPDecoder
    >>> p = ZeroInflatedNegativeBinomial(MLPDecoder(2, (7,), maps=3 * 7))(torch.zeros(5, 2))
    >>> p.event_shape
    torch.Size([7])
    """

    log_dispersion: Any

    def __init__(self, network: nn.Module, log_dispersion: float | nn.Parameter | None = None, softmax: bool = False):
        super().__init__(network, softmax)
        self.parameters_per_pixel = 3 if log_dispersion is None else 2
        give_parameter(self, "log_dispersion", log_dispersion)

    def pixel_distribution(
        self, log_mean: Tensor, gate_logits: Tensor, log_dispersion: Tensor | None = None
    ) -> TorchDistribution:
        """Return zero-inflated negative binomial distributions."""
        base = _negative_binomial(log_mean, self.log_dispersion if log_dispersion is None else log_dispersion)
        return ZeroInflatedCounts(base, gate_logits=gate_logits.clamp(-LARGEST_GATE_LOGIT, LARGEST_GATE_LOGIT))


def _negative_binomial(log_mean: Tensor, log_dispersion: Tensor) -> NegativeBinomialCounts:
    return NegativeBinomialCounts(log_mean.clamp(max=LARGEST_LOG_MEAN), log_dispersion.clamp(*LOG_DISPERSION_RANGE))


def _checked_size(size: Tensor | None, batch: torch.Size) -> Tensor:
    """Return the sizes of rows; raise ValueError unless there is one for each and, in validation, all are positive."""
    wanted = f"size: wanted one positive number for each row, a tensor of shape {tuple(batch[-1:])}"
    if not isinstance(size, Tensor) or size.shape != batch[len(batch) - size.dim() :]:
        got = tuple(size.shape) if isinstance(size, Tensor) else size
        raise ValueError(f"{wanted}, got {got}; write likelihood(z, x.sum(-1)), or softmax=False for no size")
    if is_validation_enabled() and not (size > 0).all():
        raise ValueError(
            f"{wanted}, got {size[~(size > 0)][0].item()} in {int((~(size > 0)).sum())} of {size.numel()} rows; leave "
            "out rows without counts, or write x.sum(-1).clamp(min=1)"
        )
    return size
