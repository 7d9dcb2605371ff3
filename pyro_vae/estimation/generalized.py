"""L_K whose gradient goes through the draws alone, in the parameters of the guide and of the priors."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_vae.estimation.base import Estimator
from pyro_vae.estimation.description import Description, importance_weighted_bound
from pyro_vae.estimation.doubly_reparameterized import Gated, gated, without_score
from pyro_vae.tracing.base_noise import redrawn
from pyro_vae.tracing.messages import Site, masks
from pyro_vae.tracing.paths import inner, partial_derivatives
from pyro_vae.tracing.traces import per_image, proposal_sites, sample_sites, spread


class GeneralizedDReG(Estimator):
    """L_K by doubly reparameterised gradients of the guide and of the priors (Bauer & Mnih 2021).

    ``DoublyReparameterized`` rids the gradient of the scores of q. This estimator also replaces Σ_k w̃_k ∇_θ log p(z_k),
    the score of a prior with parameters, whose own draw at the noise of z would be z = T(ε; θ):

        Σ_k [w̃_k ∂/∂z_k (log p(x, z_k) − log p(z_k)) − w̃_k² ∂log w_k/∂z_k] ∂T(ε_k; θ)/∂θ,    ε_k = T⁻¹(z_k; θ)

    In a hierarchy the score of each p(z_i | parents) is replaced by itself, at fixed parents; log p(x, z) −
    log p(z_i | parents) then has the terms of its children. The guide's gradient is that of ``DoublyReparameterized``.
    Priors that are Gaussian, Laplace, Cauchy, or maps of one element by element, such as a log-normal, are replaced;
    all others keep the score. The variance can rise, too, as for a prior at the top of a hierarchy: see
    ``compare_estimators``. Errors are those of ``ImportanceWeighted``.

    >>> import pyro
    >>> import pyro.distributions as dist
    >>> import torch
    >>> loc = torch.tensor(0.5, requires_grad=True)
    >>> def model(x):
    ...     with pyro.plate("images", len(x)):
    ...         z = pyro.sample("z", dist.Normal(loc, 1.0))
    ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
    >>> def guide(x):
    ...     with pyro.plate("images", len(x)):
    ...         pyro.sample("z", dist.Normal(0.5 * x, 0.8))
    >>> GeneralizedDReG(K=5)(model, guide)(torch.ones(3)).backward()
    >>> loc.grad.shape
    torch.Size([])
    """

    def __init__(self, K: int, *, vectorize: bool | None = None):
        super().__init__(K, vectorize=vectorize)

    @property
    def description(self) -> Description:
        """L_K in value and gradient."""
        return Description.unbiased(importance_weighted_bound(self.num_particles), plain=True)

    def objective(self, model: Callable, guide: Callable, args: Sequence, kwargs: Mapping) -> tuple[Tensor, Tensor]:
        """Return L_K, and a surrogate in which the scores of q and of the priors are paths."""
        run = gated(self, model, guide, args, kwargs)
        paths, (_, guide_trace), plate, scale, log_w = run
        share = log_w.detach().softmax(0)
        sites = sample_sites(guide_trace)
        slopes = partial_derivatives(log_w.sum(), guide_trace)
        direct = (share * scale * log_w).sum() + self._of_priors(run, share, slopes)
        closed = partial_derivatives(direct, guide_trace)
        surrogate = direct
        for name, slope in slopes.items():  # of the paths through z only w̃² ∂log w/∂z is left, w̃ where q is masked
            weight = spread(share * scale, sites[name], plate) + without_score(share, scale, sites[name], plate)
            weight = weight * slope - closed[name]
            surrogate = surrogate + inner(weight, sites[name]).sum()
        paths.open()
        return ((log_w.detach().logsumexp(0) - math.log(self.num_particles)) * scale).sum(), surrogate

    @staticmethod
    def _of_priors(run: Gated, share: Tensor, slopes: Mapping[str, Tensor]) -> Tensor:
        """Return what to add to Σ w̃ log w, so that priors have a path at fixed parents in place of the score."""
        _, (model_trace, guide_trace), plate, scale, _ = run
        sites = sample_sites(guide_trace)
        log_q: Any = sum(per_image(site, plate) for site in proposal_sites(guide_trace).values())
        of_q = partial_derivatives((log_q / scale).sum(), guide_trace)
        total = share.new_zeros(())
        for name, prior in sample_sites(model_trace, observed=False).items():
            path = _redrawn(prior, sites[name]) if name in slopes else None
            if path is None:
                continue
            log_p = per_image(prior, plate)
            own = partial_derivatives((log_p / scale).sum(), guide_trace).get(name, 0.0)
            others = slopes[name] + of_q.get(name, 0.0) - own
            weight = spread(share * scale, sites[name], plate) * others
            weight = weight - spread(share.square() * scale, sites[name], plate) * slopes[name]
            for mask in masks(prior):
                weight = torch.where(mask, weight, 0.0)
            total = total + (weight.detach() * path).sum() - (share * log_p).sum()
        return total


def _redrawn(prior: Site, site: Site) -> Tensor | None:
    """Return the value of a guide's site as a draw of its prior: zero plus a path to the prior's parameters."""
    values = site.get("values", [site["value"]])
    parts: list[Any] = [redrawn(fn, value.detach()) for fn, value in zip(prior.get("fns", [prior["fn"]]), values)]
    if any(part is None or not part.requires_grad for part in parts):
        return None
    path = torch.stack(parts).reshape(site["value"].shape) if len(parts) > 1 else parts[0]
    return path - path.detach()
