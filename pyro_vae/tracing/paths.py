"""Draws of a guide whose log-density is known as a function of the draw alone: the path derivative.

The total derivative of log q(z(φ); φ) in φ is a path through z plus the score ∂ log q(z; φ)/∂φ at fixed z. Estimators
that leave the score out, or keep nothing else, need the two apart; these handlers draw a guide's sites accordingly.
"""

from collections.abc import Callable

import torch
from pyro import distributions as dist
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from pyro.poutine.util import site_is_factor, site_is_subsample
from torch import Tensor
from torch.distributions import Distribution, Independent, TransformedDistribution

from pyro_vae.tracing.matching import core, moves_freely, sample_sites


class Detached(Messenger):
    """Draws the sites of a guide without a path to its parameters: log q keeps the score and nothing else.

    The score, in ``"score"``, is that of the distribution that is drawn from: no mask is taken from it, no scale given.
    A point (``Delta``) is no draw, and keeps its path: that to its parameters, and to the draws that it is made of.

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
        if isinstance(core(msg["fn"]), dist.Delta):
            return
        fn = _unmasked(msg["fn"])
        draw, noise = _draw(fn)
        msg["value"] = self._value(msg, draw)
        msg["score"] = _log_prob(fn, draw, noise, msg["value"])
        masked = fn is not msg["fn"]
        msg["unscaled_log_prob"] = _log_prob(msg["fn"], draw, noise, msg["value"]) if masked else msg["score"]
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


def check_observed(site: Message, rsample: bool = False) -> None:
    """Raises ValueError where it is not known what gradient a site has that the guide observes, or a factor of it.

    ``rsample`` says that only what belongs to reparameterised draws has one.
    """
    if site_is_factor(site) and "has_rsample" not in vars(site["fn"]):
        raise ValueError(
            f"the factor {site['name']!r} of the guide does not say what its gradient is; write has_rsample=True where "
            "it belongs to reparameterised draws, and has_rsample=False where it does not"
        )
    if site_is_factor(site) and rsample and not site["fn"].has_rsample:
        raise ValueError(
            f"the factor {site['name']!r} of the guide has has_rsample=False, whose gradient in Trace_ELBO goes "
            "through reparameterised draws; use StickingTheLanding, or write has_rsample=True"
        )
    if not site_is_factor(site) and not site["fn"].has_rsample:
        raise ValueError(
            f"site {site['name']!r} is observed by the guide, and {type(site['fn']).__name__} has no rsample, so that "
            "Trace_ELBO takes it for a draw; write pyro.factor(name, log_prob, has_rsample=True) for a term of the "
            "guide, or train it by a loss of its own"
        )


def drawn_sites(trace: poutine.Trace) -> dict[str, Message]:
    """The sites of a guide that were drawn under ``Detached`` or ``Paths``: no points, and none that is observed."""
    return {name: site for name, site in sample_sites(trace, observed=False).items() if "score" in site}


def partial_derivatives(total: Tensor, trace: poutine.Trace) -> dict[str, Tensor]:
    """∂ total / ∂z for the sites of a guide drawn under closed ``Paths``, those on which it depends."""
    sites = drawn_sites(trace)
    values = {name: site.get("values", [site["value"]]) for name, site in sites.items()}  # those of each particle
    every = [value for of_site in values.values() for value in of_site if value.requires_grad]
    if not (every and total.requires_grad and torch.is_grad_enabled()):
        return {}
    found = torch.autograd.grad(total, every, retain_graph=True, allow_unused=True)
    slopes = {id(value): slope for value, slope in zip(every, found) if slope is not None}
    return {
        name: _joined([slopes.get(id(value), torch.zeros_like(value)) for value in of_site], sites[name]["value"])
        for name, of_site in values.items()
        if any(id(value) in slopes for value in of_site)
    }


def _joined(parts: list[Tensor], like: Tensor) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.stack(parts).reshape(like.shape)


def leave_score_out(guide_trace: poutine.Trace) -> None:
    """Replaces each log q of a guide drawn under closed ``Paths`` by one of the same value without its score.

        log q(z) = sg[log q(z)] + ⟨sg[∂ Σ log q / ∂z], z − sg[z]⟩,      sg: stop gradient,

    the sum being over all sites that are drawn: each z has its own term and those of the sites drawn from it. The
    density that a point brings along keeps its derivatives, which have no mean of zero.
    """
    sites = drawn_sites(guide_trace)
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


def _unmasked(fn: Distribution) -> Distribution:
    """The distribution that is drawn from, which a mask does not change."""
    if isinstance(fn, dist.MaskedDistribution):
        return _unmasked(fn.base_dist)
    if isinstance(fn, Independent):
        base = _unmasked(fn.base_dist)
        return fn if base is fn.base_dist else dist.Independent(base, fn.reinterpreted_batch_ndims)
    return fn


def _draw(fn: Distribution) -> tuple[Tensor, Tensor | None]:
    """A draw and, of a flow that keeps its last pass, the draw of the base that it was made from."""
    flow = _base(fn)
    if not (isinstance(flow, TransformedDistribution) and _caches(flow) and torch.is_grad_enabled()):
        return fn(), None
    transforms: list[Callable] = []
    while isinstance(flow, TransformedDistribution):
        transforms = [*flow.transforms, *transforms]
        flow = _base(flow.base_dist)
    if not moves_freely(flow):  # no Jacobian in its coordinates; the steps from there have inverses
        return fn(), None
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
    if not log_q.requires_grad:  # masked as a whole
        return log_q

    def flat(tensor: Tensor) -> Tensor:
        return tensor.reshape(*log_q.shape, -1)

    def slope(output: Tensor) -> Tensor:
        return flat(torch.autograd.grad(output.sum(), noise, retain_graph=True)[0])

    jacobian = torch.stack([slope(output) for output in flat(draw).unbind(-1)], -2)
    return log_q + (_solved(jacobian, slope(log_q)) * flat(value - draw)).sum(-1)


def _solved(jacobian: Tensor, slope: Tensor) -> Tensor:
    """The g with Jᵀ g = slope: J is square, or has more rows than columns, as that of a map onto a simplex.

    There g is the one in the plane of the columns, in which alone the values move.
    """
    if jacobian.shape[-1] == jacobian.shape[-2]:
        return torch.linalg.solve(jacobian.mT, slope.unsqueeze(-1)).squeeze(-1)
    return (jacobian @ torch.linalg.solve(jacobian.mT @ jacobian, slope.unsqueeze(-1))).squeeze(-1)
