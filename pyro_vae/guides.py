"""Guides q(z | x): modules whose call returns a distribution over codes, batch x.shape[:-3], event (D,).

Each owns its network, which turns images (..., C, H, W) into features (..., F), and one linear head that turns the
features into the parameters of q. The heads start small, so that training starts near N(0, I).
"""

import pyro.distributions as dist
import torch
from torch import Tensor, nn

LOG_SCALE_BOUND = 10.0


class MeanField(nn.Module):
    """q(z | x) = N(loc(x), diag(scale(x)²)) (Kingma & Welling 2014).

    The scale is ``bounded_scale`` of the head's output: between e⁻¹⁰ and e¹⁰ whatever the network gives.
    ``features`` is the width of the network's output, for a network without the attribute ``out_features``.

    >>> posterior = MeanField(nn.Flatten(-3), latent=2, features=784)
    >>> q = posterior(torch.rand(5, 1, 28, 28))
    >>> q.batch_shape, q.event_shape
    (torch.Size([5]), torch.Size([2]))
    """

    def __init__(self, network: nn.Module, latent: int, features: int | None = None):
        super().__init__()
        self.network = network
        self.head = small_head(network, 2 * latent, features)

    def forward(self, x: Tensor) -> dist.Independent:
        loc, raw_scale = self.head(self.network(x)).chunk(2, -1)
        return dist.Normal(loc, bounded_scale(raw_scale)).to_event(1)


def bounded_scale(raw: Tensor) -> Tensor:
    """scale = exp(b tanh(raw / b)) with b = 10: e^raw near zero, never below e⁻ᵇ = 4.5e-5 nor above eᵇ = 2.2e4.

    The bound is smooth, so that there is a gradient on either side, and leaves scale² finite in float32.

    >>> bounded_scale(torch.tensor([-50.0, 0.0, 50.0])).log()
    tensor([-9.9991,  0.0000,  9.9991])
    """
    return (LOG_SCALE_BOUND * torch.tanh(raw / LOG_SCALE_BOUND)).exp()


def small_head(network: nn.Module, outputs: int, features: int | None = None) -> nn.Linear:
    """A linear map from the features of a network to parameters, started near zero whatever the number of features.

    Raises ValueError where the number of features is neither given nor an attribute of the network.

    >>> small_head(nn.Flatten(-3), 4)
    Traceback (most recent call last):
        ...
    ValueError: Flatten has no attribute out_features; write features=N, the width of its output, next to the network
    """
    features = getattr(network, "out_features", None) if features is None else features
    if features is None:
        raise ValueError(
            f"{type(network).__name__} has no attribute out_features; "
            "write features=N, the width of its output, next to the network"
        )
    head = nn.Linear(features, outputs)
    with torch.no_grad():
        head.weight.mul_(0.1)
        head.bias.zero_()
    return head
