"""Biased gradients of discrete sites: a path through a draw that has none."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Bernoulli, OneHotCategorical
from torch.nn.functional import one_hot

from pyro_vae.checks import positive_number
from pyro_vae.estimation.base import Estimator
from pyro_vae.estimation.description import Description
from pyro_vae.tracing.base_noise import of_fns
from pyro_vae.tracing.messages import core, masks
from pyro_vae.tracing.paths import inner, is_drawn
from pyro_vae.tracing.traces import log_prob, sample_sites

RELAXED = (Bernoulli, OneHotCategorical)


class _Relaxing(Estimator):
    """Abstract: the ELBO by K particles, each discrete draw with a path that a relaxation gives it."""

    def __init__(self, K: int = 1, *, vectorize: bool | None = None):
        super().__init__(K, vectorize=vectorize)

    @property
    def description(self) -> Description:
        """The ELBO in value and in the gradient of the model; that of the guide is biased."""
        return Description("ELBO", model_gradient="ELBO", plain=True)

    @abstractmethod
    def relax(self, logits: Tensor) -> Tensor:
        """Return a one-hot draw of a category, with a path to its logits, both of shape (..., categories)."""

    def objective(self, model: Callable, guide: Callable, args: Sequence, kwargs: Mapping) -> tuple[Tensor, Tensor]:
        """Return the ELBO twice, with the path through the draws and without the score of q."""
        model_trace, guide_trace = self._get_trace(model, guide, args, kwargs, _Relaxed(self.relax))
        if not any(isinstance(core(site["fn"]), RELAXED) for site in sample_sites(guide_trace, False).values()):
            raise ValueError(
                f"no site of the guide is Bernoulli or OneHotCategorical, so that {type(self).__name__} has no draw to "
                "relax and would be Trace_ELBO; use StickingTheLanding for reparameterised sites"
            )
        _give_slopes(guide_trace, RELAXED, score=False)
        _give_slopes(model_trace, (OneHotCategorical,), score=True)  # that of Bernoulli depends on its value already
        bound = (log_prob(model_trace) - log_prob(guide_trace)) / self.num_particles
        return bound, bound


class StraightThrough(_Relaxing):
    """The ELBO; the guide's gradient goes through a Gumbel-softmax in place of a draw (Jang et al. 2017).

        z = argmax (α + g) as one-hot,    ∂z/∂α := ∂ softmax((α + g) / τ)/∂α,    g ~ Gumbel(0, 1)

    **Biased**, for every temperature τ: the model is not linear in z, and the draw is no softmax. A low τ has less bias
    and more variance. The model's gradient is unbiased. Discrete sites of the guide must be ``OneHotCategorical`` or
    ``Bernoulli``, whose log-density is extended linearly to values between; raises ValueError for others, and where
    there is none. Sites with ``rsample`` keep their paths.

    >>> import pyro
    >>> import pyro.distributions as dist
    >>> logits = torch.zeros(3, requires_grad=True)
    >>> def model(x):
    ...     with pyro.plate("images", len(x)):
    ...         z = pyro.sample("z", dist.OneHotCategorical(torch.ones(3)))
    ...         pyro.sample("x", dist.Normal(z @ torch.arange(3.0), 1.0), obs=x)
    >>> def guide(x):
    ...     with pyro.plate("images", len(x)):
    ...         pyro.sample("z", dist.OneHotCategorical(logits=logits))
    >>> StraightThrough()(model, guide)(torch.ones(5)).backward()
    >>> logits.grad.shape
    torch.Size([3])
    """

    def __init__(self, K: int = 1, temperature: float = 1.0, *, vectorize: bool | None = None):
        super().__init__(K, vectorize=vectorize)
        self.temperature = positive_number("temperature", temperature)

    @property
    def description(self) -> Description:
        """The ELBO in value and in the gradient of the model; that of the guide is biased."""
        return super().description

    def relax(self, logits: Tensor) -> Tensor:
        """Return the argmax of perturbed logits, with the path of their softmax."""
        noisy = logits - torch.empty_like(logits).exponential_().log()
        soft = (noisy / self.temperature).softmax(-1)
        hard = one_hot(noisy.argmax(-1), logits.shape[-1]).to(soft.dtype)
        return hard + (soft - soft.detach())


class ReinMax(_Relaxing):
    """The ELBO; the guide's gradient is straight-through of second order (Liu et al. 2023).

        z ~ π = softmax(α),    ∂z/∂α := 2 J((π + z) / 2) − ½ J(π),    J(p) = diag(p) − p pᵀ

    **Biased**, but not where log p(x, z) is a quadratic function of z: Heun's method in place of Euler's. The model's
    gradient is unbiased. Sites and errors are those of ``StraightThrough``.

    >>> import pyro
    >>> import pyro.distributions as dist
    >>> logits = torch.zeros(3, requires_grad=True)
    >>> def model(x):
    ...     with pyro.plate("images", len(x)):
    ...         z = pyro.sample("z", dist.OneHotCategorical(torch.ones(3)))
    ...         pyro.sample("x", dist.Normal(z @ torch.arange(3.0), 1.0), obs=x)
    >>> def guide(x):
    ...     with pyro.plate("images", len(x)):
    ...         pyro.sample("z", dist.OneHotCategorical(logits=logits))
    >>> ReinMax()(model, guide)(torch.ones(5)).backward()
    >>> logits.grad.shape
    torch.Size([3])
    """

    @property
    def description(self) -> Description:
        """The ELBO in value and in the gradient of the model; that of the guide is biased."""
        return super().description

    def relax(self, logits: Tensor) -> Tensor:
        """Return a draw, with the path of Heun's method."""
        hard = OneHotCategorical(logits=logits.detach()).sample()
        first = logits.softmax(-1)
        middle = ((first.detach() + hard) / 2).log()
        second = (middle + (logits - logits.detach())).softmax(-1)
        path = 2 * second - 0.5 * first
        return hard + (path - path.detach())


class _Relaxed(Messenger):
    """Draws the discrete sites of a guide by a relaxation; raises ValueError for sites that have neither path."""

    def __init__(self, relax: Callable[[Tensor], Tensor]):
        super().__init__()
        self.relax = relax

    def _pyro_sample(self, msg: Any) -> None:
        if not is_drawn(msg) or msg["fn"].has_rsample:
            return
        inside: Any = core(msg["fn"])
        if isinstance(inside, OneHotCategorical):
            msg["value"] = self.relax(inside.logits)
        elif isinstance(inside, Bernoulli):
            of_both = torch.stack([inside.logits, torch.zeros_like(inside.logits)], -1)
            msg["value"] = self.relax(of_both)[..., 0]
        else:
            raise ValueError(
                f"site {msg['name']!r} of the guide is a {type(inside).__name__}, through whose values no path leads; "
                "write OneHotCategorical in place of Categorical in model and guide, or use ScoreFunction(K, "
                "'leave-one-out')"
            )
        msg["done"] = True


def _give_slopes(trace: poutine.Trace, kinds: tuple[type, ...], score: bool) -> None:
    """Let the log-densities of discrete sites depend on their values, linearly; without ``score`` on nothing else."""
    for site in sample_sites(trace, observed=False).values():
        if isinstance(core(site["fn"]), kinds) and site["value"].requires_grad:
            weight = of_fns(site, _logits)
            for mask in masks(site):
                weight = torch.where(mask, weight, 0.0)
            log_prob = site["log_prob"] if score else site["log_prob"].detach()
            site["log_prob"] = log_prob + inner(weight, site) * site["scale"]


def _logits(fn: Any) -> Tensor:
    return fn.logits
