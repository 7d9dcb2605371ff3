"""A control variate for both kinds of noise in a gradient: that of the draws and that of the minibatches."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_vae.checks import whole_number
from pyro_vae.estimation.base import Estimator
from pyro_vae.estimation.description import Description
from pyro_vae.tracing.base_noise import made_of
from pyro_vae.tracing.leaves import find_parameters
from pyro_vae.tracing.particles import log_prob
from pyro_vae.tracing.paths import check_reparameterised, is_drawn
from pyro_vae.tracing.probing import evaluating


class JointControlVariate(Estimator):
    """L^A of the mean batch, with a control variate for draws and batches together (Wang, Geffner & Domke 2024).

        ∇f(w; n, ε) − ∇f̃(v; n, ε) + 1/N Σ_m ∇f̃(v; m, 0),      f̃(v; n, ε) = f(v; n, 0) + ε · ∂f(v; n, 0)/∂ε

    f is minus the ELBO of parameters w at batch n and noise ε, of which the guide makes its draw. f̃ expands it about
    ε = 0, the mean of a normal guide, at parameters v that are w of at most ``refresh`` steps ago. Its mean over noise
    and batches is known from one pass over all ``batches``, and subtracted. The variance falls as far as f is linear in
    the noise and w is near v: for variables that all rows share, such as weights of a regression, to a tenth or less;
    for the guide of a VAE, whose v grow old at once, seldom.

    A step takes about three gradients; f̃ is that of evaluation mode, without dropout and statistics of batches. Each
    step is to be on one of the batches, all of one size, or on as many rows drawn at random; value and gradient are, on
    average over steps, those of ``Trace_ELBO``. Without gradients the loss is that of ``Trace_ELBO`` itself.

    Args:
        batches: the arguments of model and guide for each batch of the data, as ``[(x1, y1), (x2, y2), …]``.
        refresh: after how many steps v is w again; None: as many as there are batches.

    Raises ValueError where the guide draws from other distributions than Gaussian ones and maps of such, and where the
    program draws its rows itself (``subsample_size=``). It keeps v from step to step, so that neither ``fit`` nor a
    compiled step takes it; train by Pyro's ``SVI``.

    >>> from pyro.infer import SVI
    >>> from pyro.optim import Adam
    >>> from pyro_vae.linear_gaussian import LinearGaussian
    >>> program = LinearGaussian(torch.ones(3, 1))
    >>> batches = [(program.simulate(4),) for _ in range(5)]
    >>> svi = SVI(program.model, program.guide, Adam({"lr": 0.01}), JointControlVariate(batches))
    >>> losses = [svi.step(*batch) for batch in batches]
    """

    keeps_state = True

    def __init__(self, batches: Sequence[tuple], refresh: int | None = None):
        super().__init__()
        self.batches = list(batches)
        if not self.batches or not all(isinstance(batch, tuple) for batch in self.batches):
            raise ValueError(
                "batches: wanted the arguments of model and guide for each batch, a tuple each, as [(x1, y1), (x2, y2)]"
            )
        self.refresh = len(self.batches) if refresh is None else whole_number("refresh", refresh)
        self.age = 0
        self.known: dict[Tensor, _Known] = {}

    @property
    def description(self) -> Description:
        """Nothing is claimed at a single batch: the means are those of all batches."""
        return Description()

    def objective(self, model: Callable, guide: Callable, args: Sequence, kwargs: Mapping) -> tuple[Tensor, Tensor]:
        """Return the ELBO with the control variate, in value and gradient."""
        noise = _Noise(torch.randn_like)
        elbo = self._elbo(model, guide, args, kwargs, noise)
        if not torch.is_grad_enabled():
            return elbo, elbo
        with evaluating(model, guide):
            if self.age % self.refresh == 0:
                self._look(model, guide, kwargs)
            self.age += 1
            with _values({leaf: known.value for leaf, known in self.known.items()}):
                expanded = self._expanded(model, guide, args, kwargs, noise.made)
                slopes = _slopes(expanded, self.known)
        value = self.mean - expanded.detach()
        change = sum((leaf * (known.slope - slope)).sum() for (leaf, known), slope in zip(self.known.items(), slopes))
        return elbo + value, elbo + change

    def _look(self, model: Callable, guide: Callable, kwargs: Mapping) -> None:
        """Take the present parameters as v, and the means at them."""
        parameters, *traces = find_parameters(model, guide, self.batches[0], kwargs)
        _check_rows(*traces)
        leaves = [*parameters.model.values(), *parameters.guide.values()]
        self.mean, slopes = torch.zeros(()), [torch.zeros_like(leaf) for leaf in leaves]
        for batch in self.batches:
            elbo = self._elbo(model, guide, batch, kwargs, _Noise(torch.zeros_like))
            self.mean = self.mean + elbo.detach() / len(self.batches)
            slopes = [sum_ + slope / len(self.batches) for sum_, slope in zip(slopes, _slopes(elbo, leaves))]
        self.known = {leaf: _Known(leaf.detach().clone(), slope) for leaf, slope in zip(leaves, slopes)}

    def _expanded(
        self, model: Callable, guide: Callable, args: Sequence, kwargs: Mapping, noise: Mapping[str, Tensor]
    ) -> Tensor:
        """Return the ELBO at a noise, expanded about no noise."""
        center = _Noise(lambda like: torch.zeros_like(like).requires_grad_())
        elbo = self._elbo(model, guide, args, kwargs, center)
        if not center.made:
            return elbo
        slopes = torch.autograd.grad(elbo, list(center.made.values()), create_graph=True, materialize_grads=True)
        return elbo + sum((noise[name] * slope).sum() for name, slope in zip(center.made, slopes))

    def _elbo(self, model: Callable, guide: Callable, args: Sequence, kwargs: Mapping, noise: "_Noise") -> Tensor:
        model_trace, guide_trace = self._get_trace(model, guide, args, kwargs, noise)
        return log_prob(model_trace) - log_prob(guide_trace)


class _Known(NamedTuple):
    """A parameter as it was at the last look, and the mean slope of the ELBO there."""

    value: Tensor
    slope: Tensor


class _Noise(Messenger):
    """Draws the sites of a guide from a noise, and keeps it; ``noise`` maps a tensor to a noise of its shape."""

    def __init__(self, noise: Callable[[Tensor], Tensor]):
        super().__init__()
        self.noise, self.made = noise, dict[str, Tensor]()

    def _pyro_sample(self, msg: Any) -> None:
        if is_drawn(msg):
            check_reparameterised(msg)
            msg["value"], msg["done"] = made_of(msg["fn"], lambda like: self._keep(msg["name"], like)), True

    def _keep(self, name: str, like: Tensor) -> Tensor:
        self.made[name] = self.noise(like)
        return self.made[name]


@contextmanager
def _values(values: Mapping[Tensor, Tensor]) -> Iterator[None]:
    """Give leaves other values for a while."""
    before = {leaf: leaf.data for leaf in values}
    try:
        for leaf, value in values.items():
            leaf.data = value
        yield
    finally:
        for leaf, value in before.items():
            leaf.data = value


def _slopes(total: Tensor, leaves: Collection[Tensor]) -> list[Tensor]:
    """Return the slopes in leaves, zero in those that it does not depend on or that are frozen."""
    trained = [leaf for leaf in leaves if leaf.requires_grad]
    found = dict(zip(trained, torch.autograd.grad(total, trained, materialize_grads=True)))
    return [found[leaf] if leaf in found else torch.zeros_like(leaf) for leaf in leaves]


def _check_rows(model_trace: Trace, guide_trace: Trace) -> None:
    """Raise ValueError where a plate draws its rows itself: a step is then on other rows than its batch."""
    sites: dict[str, Any] = {**model_trace.nodes, **guide_trace.nodes}
    for name, site in sites.items():
        if site["type"] == "sample" and site_is_subsample(site) and len(site["value"]) < site["fn"].size:
            raise ValueError(
                f"the plate {name!r} draws its rows itself, so that the batches do not say which they are; give it the "
                "rows of the batch, as in pyro.plate(name, size, subsample=index), or scale by poutine.scale"
            )
