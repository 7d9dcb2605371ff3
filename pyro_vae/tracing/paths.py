"""Draws of a guide whose log-density is known as a function of the draw alone: the path derivative.

The total derivative of log q(z(φ); φ) in φ is a path through z plus the score ∂ log q(z; φ)/∂φ at fixed z. Estimators
that leave the score out, or keep only it, need the two separately. These handlers draw a guide's sites accordingly.
"""

from typing import Any, NamedTuple

import torch
from pyro import distributions as dist
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_factor, site_is_subsample
from torch import Tensor
from torch.distributions import Distribution, Independent, Transform, TransformedDistribution

from pyro_vae.tracing.base_noise import drawn_from
from pyro_vae.tracing.jacobians import Back, stepped
from pyro_vae.tracing.messages import Site, is_point, sample_sites
from pyro_vae.tracing.supports import moves_freely


def is_drawn(msg: Site) -> bool:
    """Return whether a message asks for a draw: neither done, observed, the indices of a plate, nor a point."""
    open_ = not (msg["done"] or msg["is_observed"]) and msg["value"] is None and not site_is_subsample(msg)
    return open_ and not is_point(msg["fn"])


class Detached(Messenger):
    """Draws the sites of a guide without a path to its parameters: log q keeps only the score.

    The entry ``"score"`` is the log-density of the distribution that is drawn from, without mask and scale. A point
    (``Delta``) is no draw and keeps its path, to its parameters and to the draws that it depends on.

    >>> import pyro
    >>> import pyro.distributions as dist
    >>> loc = torch.zeros(3, requires_grad=True)
    >>> guide = Detached()(lambda: pyro.sample("z", dist.Normal(loc, 1.0).to_event(1)))
    >>> guide().requires_grad
    False
    """

    def _pyro_sample(self, msg: Any) -> None:
        if not is_drawn(msg):
            return
        fn = _unmasked(msg["fn"])
        draw, made = draw_of(fn, msg.get("uniforms"))
        msg["value"] = self._value(msg, draw)
        msg["score"] = _log_prob(fn, draw, made, msg["value"])
        masked = fn is not msg["fn"]
        msg["unscaled_log_prob"] = _log_prob(msg["fn"], draw, made, msg["value"]) if masked else msg["score"]
        msg["done"] = True

    def _value(self, msg: Site, draw: Tensor) -> Tensor:
        return draw.detach()


class GatedPaths(Detached):
    """Draws the sites of a guide with paths to its parameters that are closed until ``open`` is called.

    While they are closed, the derivative of a log-density in the value of a site is the partial derivative. It does not
    continue to the parameters or to earlier sites. Raises ValueError at a site that is not reparameterised.

    >>> import pyro
    >>> import pyro.distributions as dist
    >>> loc = torch.zeros(1, requires_grad=True)
    >>> paths = GatedPaths()
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

    def _value(self, msg: Site, draw: Tensor) -> Tensor:
        check_reparameterised(msg)
        if not draw.requires_grad:
            return draw.detach()
        gate = draw.view_as(draw)
        self.hooks.append(gate.register_hook(torch.zeros_like))
        return gate.view_as(gate)

    def open(self) -> None:
        """Let derivatives pass from the values to the parameters."""
        while self.hooks:
            self.hooks.pop().remove()


def check_reparameterised(site: Site) -> None:
    """Raise ValueError unless the site of a guide is drawn as a differentiable function of its parameters."""
    if not site["fn"].has_rsample:
        raise ValueError(
            f"site {site['name']!r} of the guide is not reparameterised ({type(site['fn']).__name__} has no rsample): "
            "no path leads from its value to the guide's parameters; use ScoreFunction(K, 'leave-one-out')"
        )


def check_observed(site: Site, rsample: bool = False) -> None:
    """Raise ValueError if the gradient of a site that the guide observes, or of a factor, is unknown.

    ``rsample`` says that only terms of reparameterised draws have a gradient.
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


def drawn_sites(trace: poutine.Trace) -> dict[str, Site]:
    """Return the sites of a guide drawn under ``Detached`` or ``GatedPaths``, neither points nor observed."""
    return {name: site for name, site in sample_sites(trace, observed=False).items() if "score" in site}


def partial_derivatives(total: Tensor, trace: poutine.Trace) -> dict[str, Tensor]:
    """Return ∂ total / ∂z for the sites of a guide drawn under closed ``GatedPaths`` on which ``total`` depends."""
    sites = drawn_sites(trace)
    values = {name: site.get("values", [site["value"]]) for name, site in sites.items()}  # the values of each particle
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
    """Replace each log q of a guide drawn under closed ``GatedPaths`` by one of the same value without its score.

        log q(z) = sg[log q(z)] + ⟨sg[∂ Σ log q / ∂z], z − sg[z]⟩,      sg: stop gradient,

    where the sum is over all sites that are drawn: each z has its own term and those of the sites drawn from it. The
    density of a point keeps its derivatives, whose mean is not zero.
    """
    sites = drawn_sites(guide_trace)
    total: Any = sum(site["log_prob"].sum() for site in sites.values())
    gradients = partial_derivatives(total, guide_trace)
    for name, site in sites.items():
        site["log_prob"] = site["log_prob"].detach()
        if name in gradients:
            site["log_prob"] = site["log_prob"] + inner(gradients[name], site)


def inner(weight: Tensor, site: Site) -> Tensor:
    """Return ⟨sg[weight], z − sg[z]⟩ over the event dimensions of a site: zero, with the weight as derivative in z."""
    product = weight * (site["value"] - site["value"].detach())
    return product.sum(list(range(-site["fn"].event_dim, 0))) if site["fn"].event_dim else product


def _unmasked(fn: Distribution) -> Distribution:
    """Return the distribution that is drawn from, which a mask does not change."""
    if isinstance(fn, dist.MaskedDistribution):
        return _unmasked(fn.base_dist)
    if isinstance(fn, Independent):
        base = _unmasked(fn.base_dist)
        return fn if base is fn.base_dist else dist.Independent(base, fn.reinterpreted_batch_ndims)
    return fn


class Pass(NamedTuple):
    """How a flow made a draw: from a draw of its base, by steps.

    Attributes:
        noise: the draw of the base.
        backs: of each step, from the derivative by its argument to that by its value.
    """

    noise: Tensor
    backs: list[Back]


def draw_of(fn: Any, uniforms: Tensor | None = None) -> tuple[Tensor, Pass | None]:
    """Return a draw and, for a flow that caches its last pass, that pass.

    ``uniforms``, of the draw's shape, take the place of the random number generator.
    """
    flow = _base(fn)
    if not (isinstance(flow, TransformedDistribution) and _caches(flow) and torch.is_grad_enabled()):
        return (fn() if uniforms is None else drawn_from(fn, uniforms)), None
    transforms: list[Transform] = []
    while isinstance(flow, TransformedDistribution):
        transforms = [*flow.transforms, *transforms]
        flow = _base(flow.base_dist)
    if not moves_freely(flow):  # its coordinates have no Jacobian; the steps from there have inverses
        return (fn() if uniforms is None else drawn_from(fn, uniforms)), None
    noise = flow.rsample() if uniforms is None else drawn_from(flow, uniforms)
    made = Pass(noise if noise.requires_grad else noise.requires_grad_(), [])
    draw = made.noise
    for transform in transforms:
        draw, back = stepped(transform, draw)
        made.backs.append(back)
    return draw, made


def _base(fn: Any) -> Any:
    while isinstance(fn, Independent):
        fn = fn.base_dist
    return fn


def _caches(flow: TransformedDistribution) -> bool:
    inside = _base(flow.base_dist)
    deeper = isinstance(inside, TransformedDistribution) and _caches(inside)
    return deeper or any(map(_keeps, flow.transforms))


def _keeps(transform: Any) -> bool:
    """Return whether a transform, or a part of it, keeps its last pass."""
    return transform._cache_size > 0 or any(map(_keeps, getattr(transform, "parts", [])))


def _log_prob(fn: Distribution, draw: Tensor, made: Pass | None, value: Tensor) -> Tensor:
    """Return log q at ``value``, which equals ``draw`` but is cut from it; its derivatives are partial ones.

    To score a value anew, a flow z = T(ε) has to be inverted, which costs D passes or is impossible. Only the draw
    itself is scored from the pass that made it. With J = ∂T/∂ε its score in z is g = J⁻ᵀ ∂ log q(T(ε))/∂ε, and

        log q(value) = log q(draw) + ⟨sg[g], value − draw⟩

    has the right value and first derivatives: it subtracts the path from the total derivative of log q(draw). g is
    found from step to step of the flow (``stepped``).
    """
    if made is None:
        return fn.log_prob(value if torch.is_grad_enabled() else draw)
    log_q = fn.log_prob(draw)
    if not log_q.requires_grad:  # all of it is masked
        return log_q
    (score,) = torch.autograd.grad(log_q.sum(), made.noise, retain_graph=True, materialize_grads=True)
    for back in made.backs:
        score = back(score)
    return log_q + (score.detach() * (value - draw)).reshape(*log_q.shape, -1).sum(-1)
