"""Draws of a guide whose log-density is known as a function of the draw alone: the path derivative.

The total derivative of log q(z(φ); φ) in φ is a path through z plus the score ∂ log q(z; φ)/∂φ at fixed z. Estimators
that leave the score out, or keep nothing else, need the two apart; these handlers draw a guide's sites accordingly.
"""

from collections.abc import Callable

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Distribution, Independent, TransformedDistribution

from pyro_vae.traces import sample_sites


class Detached(Messenger):
    """Draws the sites of a guide without a path to its parameters: log q keeps the score and nothing else.

    >>> import pyro
    >>> import pyro.distributions as dist
    >>> loc = torch.zeros(3, requires_grad=True)
    >>> guide = Detached()(lambda: pyro.sample("z", dist.Normal(loc, 1.0).to_event(1)))
    >>> guide().requires_grad
    False
    """

    def _pyro_sample(self, msg: Message) -> None:
        if msg["done"] or msg["is_observed"] or msg["value"] is not None or site_is_subsample(msg):
            return
        draw, noise = _draw(msg["fn"])
        msg["value"] = self._value(msg, draw)
        msg["unscaled_log_prob"] = _log_prob(msg["fn"], draw, noise, msg["value"])
        msg["done"] = True

    def _value(self, msg: Message, draw: Tensor) -> Tensor:
        return draw.detach()


class Paths(Detached):
    """Draws the sites of a guide with paths to its parameters that are closed until ``open`` is called.

    While they are closed, the derivative of a log-density in the value of a site is the partial derivative: it does
    not go on to the parameters, nor to the sites from which this one was drawn. Raises ValueError at a site that is
    not reparameterised.

    >>> import pyro
    >>> import pyro.distributions as dist
    >>> loc = torch.zeros(1, requires_grad=True)
    >>> paths = Paths()
    >>> z = paths(lambda: pyro.sample("z", dist.Normal(loc, 1.0)))()
    >>> torch.autograd.grad(z.sum(), loc, retain_graph=True)
    (tensor([0.]),)
    >>> paths.open()
    >>> torch.autograd.grad(z.sum(), loc)
    (tensor([1.]),)
    """

    def __init__(self) -> None:
        super().__init__()
        self.hooks: list = []

    def _value(self, msg: Message, draw: Tensor) -> Tensor:
        check_reparameterised(msg)
        if not draw.requires_grad:
            return draw.detach()
        gate = draw.view_as(draw)
        self.hooks.append(gate.register_hook(torch.zeros_like))
        return gate.view_as(gate)

    def open(self) -> None:
        """Lets derivatives pass from the values to the parameters."""
        while self.hooks:
            self.hooks.pop().remove()


def check_reparameterised(site: Message) -> None:
    """Raises ValueError unless the site of a guide is drawn as a differentiable function of its parameters."""
    if not site["fn"].has_rsample:
        raise ValueError(
            f"site {site['name']!r} of the guide is not reparameterised ({type(site['fn']).__name__} has no rsample): "
            "no path leads from its value to the guide's parameters; use ScoreFunction(K, 'leave-one-out')"
        )


def partial_derivatives(total: Tensor, trace: poutine.Trace) -> dict[str, Tensor]:
    """∂ total / ∂z for the latent sites of a guide drawn under closed ``Paths``, those on which it depends."""
    values = {name: site["value"] for name, site in sample_sites(trace, observed=False).items()}
    values = {name: value for name, value in values.items() if value.requires_grad}
    if not (values and torch.is_grad_enabled()):
        return {}
    gradients = torch.autograd.grad(total, list(values.values()), retain_graph=True, allow_unused=True)
    return {name: gradient for name, gradient in zip(values, gradients) if gradient is not None}


def leave_score_out(guide_trace: poutine.Trace) -> None:
    """Replaces each log q of a guide drawn under closed ``Paths`` by one of the same value without its score.

        log q(z) = sg[log q(z)] + ⟨sg[∂ Σ log q / ∂z], z − sg[z]⟩,      sg: stop gradient,

    the sum being over all latent sites: each z has its own term and those of the sites drawn from it.
    """
    sites = sample_sites(guide_trace, observed=False)
    total = sum(site["log_prob"].sum() for site in sites.values())
    gradients = partial_derivatives(total, guide_trace)
    for name, site in sites.items():
        site["log_prob"] = site["log_prob"].detach()
        if name in gradients:
            site["log_prob"] = site["log_prob"] + inner(gradients[name], site)


def inner(weight: Tensor, site: Message) -> Tensor:
    """⟨sg[weight], z − sg[z]⟩ over the event dimensions of a site: a zero whose derivative in z is the weight."""
    product = weight * (site["value"] - site["value"].detach())
    return product.sum(list(range(-site["fn"].event_dim, 0))) if site["fn"].event_dim else product


def _draw(fn: Distribution) -> tuple[Tensor, Tensor | None]:
    """A draw and, of a flow that keeps its last pass, the draw of the base that it was made from."""
    flow = _base(fn)
    if not (isinstance(flow, TransformedDistribution) and _caches(flow) and torch.is_grad_enabled()):
        return fn(), None
    transforms: list[Callable] = []
    while isinstance(flow, TransformedDistribution):
        transforms = [*flow.transforms, *transforms]
        flow = _base(flow.base_dist)
    noise = flow.rsample()
    noise = noise if noise.requires_grad else noise.requires_grad_()
    draw = noise
    for transform in transforms:
        draw = transform(draw)
    return draw, noise


def _base(fn: Distribution) -> Distribution:
    while isinstance(fn, Independent):
        fn = fn.base_dist
    return fn


def _caches(flow: TransformedDistribution) -> bool:
    inside = _base(flow.base_dist)
    deeper = isinstance(inside, TransformedDistribution) and _caches(inside)
    return deeper or any(transform._cache_size for transform in flow.transforms)


def _log_prob(fn: Distribution, draw: Tensor, noise: Tensor | None, value: Tensor) -> Tensor:
    """log q at ``value``, which equals ``draw`` but is cut from it; derivatives in value and parameters are partial.

    To score a value anew, a flow z = T(ε) has to be inverted, which costs D passes or cannot be done; only the draw
    itself is scored from the pass that made it. With J = ∂T/∂ε its score in z is g = J⁻ᵀ ∂ log q(T(ε))/∂ε, and

        log q(value) = log q(draw) + ⟨sg[g], value − draw⟩

    has the right value and first derivatives: of the total derivative of log q(draw) it takes the path back.
    """
    if noise is None:
        return fn.log_prob(value if torch.is_grad_enabled() else draw)
    log_q = fn.log_prob(draw)

    def flat(tensor: Tensor) -> Tensor:
        return tensor.reshape(*log_q.shape, -1)

    def slope(output: Tensor) -> Tensor:
        return flat(torch.autograd.grad(output.sum(), noise, retain_graph=True)[0])

    jacobian = torch.stack([slope(output) for output in flat(draw).unbind(-1)], -2)
    g = torch.linalg.solve(jacobian.mT, slope(log_q).unsqueeze(-1)).squeeze(-1)
    return log_q + (g * flat(value - draw)).sum(-1)
