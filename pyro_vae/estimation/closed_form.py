"""KL divergences of a program in closed form."""

from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import Distribution, Independent, kl_divergence

from pyro_vae.distributions.divergences import has_closed_form_kl
from pyro_vae.tracing.messages import is_point, masks
from pyro_vae.tracing.numbers import same_numbers
from pyro_vae.tracing.paths import check_reparameterised
from pyro_vae.tracing.probing import left_as_it_was
from pyro_vae.tracing.traces import check_order, paired_traces, sample_sites


def check_analytic_kl(model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> None:
    """Raise ValueError unless ``TraceMeanField_ELBO`` is exact in every KL of the program.

    Pyro silently samples a KL without a closed form, and is wrong where a site of the guide depends on another that the
    model draws after it. The program is run once; the random state is left as it was.

    >>> from pyro_vae.linear_gaussian import LinearGaussian, mean_field_guide
    >>> program = LinearGaussian(torch.ones(3, 1))
    >>> program.posterior = mean_field_guide(program)
    >>> check_analytic_kl(program.model, program.guide, torch.zeros(2, 3))
    """
    with left_as_it_was(model, guide, keep_new=True), torch.no_grad(), poutine.block():
        model_trace, guide_trace = paired_traces(model, guide, args, kwargs)
    check_order(model_trace, guide_trace)
    prior = sample_sites(model_trace, observed=False)
    for name, site in sample_sites(guide_trace, observed=False).items():
        if name not in prior or not has_closed_form_kl(site["fn"], prior[name]["fn"]):
            other = prior[name]["fn"] if name in prior else "no site of the model"
            raise ValueError(
                f"site {name!r}: no closed form is registered for KL({site['fn']} ‖ {other}), and TraceMeanField_ELBO "
                "would sample it; use Trace_ELBO or StickingTheLanding, or register it with torch.distributions.kl"
            )


def kl_of_dimensions(name: str, site: dict[str, Any], prior: dict[str, Any]) -> Tensor:
    """Return the closed form of KL(q ‖ p) of a site, summed over all but the dimensions of the event, in nats.

    Its shape is (D,) where q and p are factorised, else (). Raises ValueError where the site is scaled, masked or a
    point, where no closed form is registered, or, when a gradient is asked for, where q is not reparameterised.

    Args:
        name: of the site.
        site: of the guide's trace.
        prior: of the model's trace, empty where the model has no such site.
    """
    if any(part and (masks(part) or not same_numbers(part["scale"], 1.0)) for part in (site, prior)):
        raise ValueError(
            f"site {name!r} is scaled or masked, and free bits count nats of single images; remove scale and mask"
        )
    if is_point(site["fn"]):
        raise ValueError(f"site {name!r} of the guide is a point, whose KL has no nats to count; use Trace_ELBO")
    if not prior or not has_closed_form_kl(site["fn"], prior["fn"]):
        raise ValueError(f"site {name!r}: no closed form is registered for its KL; use KLWeight in place of FreeBits")
    if torch.is_grad_enabled():
        check_reparameterised(site)
    of_each = zip(site.get("fns", [site["fn"]]), prior.get("fns", [prior["fn"]]))
    first, *others = (_kl_of_factors(q, p) for q, p in of_each)
    return sum(others, first)


def _kl_of_factors(q: Distribution, p: Distribution) -> Tensor:
    if isinstance(q, Independent) and isinstance(p, Independent):
        kl = kl_divergence(q.base_dist, p.base_dist)
        event = len(q.event_shape)
        return kl.sum(list(range(kl.dim() - event))) if kl.dim() > event else kl
    return kl_divergence(q, p).sum()
