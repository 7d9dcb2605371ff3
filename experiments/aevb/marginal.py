"""log p(x) of all three algorithms by one estimator that needs no guide, for a few latent dimensions.

Importance sampling from a guide would not do: with few training images the guide is too narrow on test images, and the
estimate is nats too low; Monte Carlo EM has no guide. All images share the draws of the prior, so that each draw is
decoded once for many images, and a quarter of a million of them are cheap.
"""

import torch
from torch import Tensor
from torch.nn.functional import softplus

from pyro_vae import VAE
from pyro_vae.evidence import Evidence, from_log_weights

HELD = 2**25  # weights that are held at once
DECODED = 10_000  # draws whose logits are


@torch.no_grad()
def marginal_likelihood(vae: VAE, x: Tensor, draws: int, seed: int = 0) -> Evidence:
    """Return log 1/S Σ_s p(x | z_s) of each image under a Bernoulli decoder with logits l and the prior N(0, I).

        log p(x | z) = xᵀ l(z) − Σ softplus(l(z)),     z_s = Φ⁻¹(u_s), u a scrambled Sobol sequence (Owen 1995)

    x: (images, C, H, W); S = ``draws``, best a power of two. Unbiased for p(x) itself; the standard errors are those of
    independent draws, and so too large.
    """
    sobol = torch.quasirandom.SobolEngine(vae.prior().event_shape[0], scramble=True, seed=seed)
    u = sobol.draw(draws, dtype=torch.float64).clamp(1e-12, 1 - 1e-12)
    z = torch.special.ndtri(u).to(x.dtype)
    parts = [from_log_weights(log_likelihoods(vae, part.flatten(1), z)) for part in x.split(max(1, HELD // draws))]
    columns = zip(*((part.log_px, part.standard_error, part.ess, part.pareto_k) for part in parts))
    return Evidence(*map(torch.cat, columns), draws, seed)


def log_likelihoods(vae: VAE, x: Tensor, z: Tensor) -> Tensor:
    """Return log p(x | z) for all pairs of images (B, pixels) and draws (S, D): shape (S, B)."""
    decoded = (vae.likelihood.network(part).flatten(1) for part in z.split(DECODED))
    return torch.cat([logits @ x.T - softplus(logits).sum(1, keepdim=True) for logits in decoded])
