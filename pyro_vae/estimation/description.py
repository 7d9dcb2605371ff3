"""What an estimator estimates and needs: its class says it, a table says it for Pyro's own classes."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pyro.infer import (
    ELBO,
    JitTrace_ELBO,
    JitTraceEnum_ELBO,
    JitTraceGraph_ELBO,
    JitTraceMeanField_ELBO,
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    Trace_MMD,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    TraceTailAdaptive_ELBO,
    TraceTMC_ELBO,
)


@dataclass(frozen=True)
class Description:
    """What an estimator claims to estimate, and what it needs. Bounds are known by name, such as "ELBO" and "L_5".

    If two estimators claim the gradient of one bound, on average, ``compare_estimators`` tests whether they agree.
    None: nothing is claimed.

    Args:
        estimates: the bound that minus the loss is on average.
        guide_gradient: the bound whose gradient in the guide's parameters is estimated without bias.
        model_gradient: the same for the model's parameters.
        is_bound: whether minus the loss is, on average, a lower bound on log p(x).
        plain: whether, with one particle, minus the loss is log p(x, z) − log q(z | x) at one draw z ~ q, the bound
            that ``evaluate`` measures.
        closed_form_kl: whether every KL is taken in closed form, so that each must have one.
        enumerates: whether discrete sites are summed over, so that the guide may leave them out.

    >>> Description.unbiased("ELBO", plain=True).agrees_with(Description(model_gradient="ELBO"), "model")
    True
    """

    estimates: str | None = None
    guide_gradient: str | None = None
    model_gradient: str | None = None
    is_bound: bool = True
    plain: bool = False
    closed_form_kl: bool = False
    enumerates: bool = False

    @classmethod
    def unbiased(cls, bound: str, **needs: bool) -> "Description":
        """Describe an estimator whose value and gradient are unbiased estimates for one bound.

        >>> Description.unbiased("L_5").guide_gradient
        'L_5'
        """
        return cls(bound, bound, bound, **needs)

    def agrees_with(self, other: "Description", group: str) -> bool:
        """Whether both claim the gradient of one bound in the parameters of a group, "guide" or "model"."""
        mine, theirs = (getattr(each, f"{group}_gradient") for each in (self, other))
        return mine is not None and mine == theirs

    def without_claims(self) -> "Description":
        """Return what an estimator needs, without what it claims.

        >>> Description.unbiased("ELBO", closed_form_kl=True).without_claims()
        Description(estimates=None, guide_gradient=None, model_gradient=None, is_bound=True, plain=False,
            closed_form_kl=True, enumerates=False)
        """
        return Description(is_bound=self.is_bound, closed_form_kl=self.closed_form_kl, enumerates=self.enumerates)


def importance_weighted_bound(K: int) -> str:
    """Return the name of L_K, which is the ELBO for K = 1.

    >>> importance_weighted_bound(1), importance_weighted_bound(5)
    ('ELBO', 'L_5')
    """
    return "ELBO" if K == 1 else f"L_{K}"


def renyi_bound(alpha: float, K: int) -> str:
    """Return the name of the Rényi bound of order α, which is L_K for α = 0 and the ELBO for K = 1.

    >>> renyi_bound(0, 5), renyi_bound(0.5, 1), renyi_bound(0.5, 5)
    ('L_5', 'ELBO', 'Rényi bound, α = 0.5, K = 5')
    """
    return importance_weighted_bound(K) if alpha == 0 or K == 1 else f"Rényi bound, α = {alpha:g}, K = {K}"


def _renyi(estimator: RenyiELBO) -> Description:
    bound = renyi_bound(estimator.alpha, estimator.num_particles)
    return Description.unbiased(bound, is_bound=estimator.alpha >= 0)


OF_PYRO: Mapping[type[ELBO], Description | Callable[[Any], Description]] = {
    Trace_ELBO: Description.unbiased("ELBO", plain=True),
    TraceGraph_ELBO: Description.unbiased("ELBO", plain=True),
    TraceMeanField_ELBO: Description.unbiased("ELBO", closed_form_kl=True),
    TraceEnum_ELBO: Description.unbiased("ELBO", plain=True, enumerates=True),
    JitTrace_ELBO: Description.unbiased("ELBO"),
    JitTraceGraph_ELBO: Description.unbiased("ELBO"),
    JitTraceMeanField_ELBO: Description.unbiased("ELBO", closed_form_kl=True),
    JitTraceEnum_ELBO: Description.unbiased("ELBO", enumerates=True),
    RenyiELBO: _renyi,
    TraceTMC_ELBO: Description("tensor Monte Carlo bound"),
    ReweightedWakeSleep: Description(is_bound=False),
    Trace_MMD: Description(is_bound=False),
    TraceTailAdaptive_ELBO: Description(is_bound=False),
}


def describe(estimator: ELBO) -> Description:
    """Return the description of an estimator: what its class says in ``description``, or what is known of Pyro's.

    A subclass inherits what its class needs, and not what its class claims, since it may have another loss or gradient.
    To claim the same, it says so: ``description = StickingTheLanding.description``. Nothing is claimed of an estimator
    without a description. An estimator is a bound unless its description or its attribute ``is_bound`` denies it.

    Raises ValueError where ``description`` is not a ``Description``.

    >>> describe(Trace_ELBO()).guide_gradient, describe(RenyiELBO(num_particles=5)).guide_gradient
    ('ELBO', 'L_5')
    >>> class Mine(TraceMeanField_ELBO):
    ...     "Another gradient."
    >>> describe(Mine()).guide_gradient, describe(Mine()).closed_form_kl
    (None, True)
    """
    classes = type(estimator).__mro__
    kind = next((kind for kind in classes if kind in OF_PYRO or "description" in vars(kind)), None)
    known = Description() if kind is None else OF_PYRO.get(kind, _said)
    said = known if isinstance(known, Description) else known(estimator)
    said = said if kind is type(estimator) else said.without_claims()
    return replace(said, is_bound=said.is_bound and bool(getattr(estimator, "is_bound", True)))


def settings_of(estimator: ELBO) -> str:
    """Return the arguments that an estimator was made with, as words, without those that every ELBO has.

    They are those that the estimator keeps by their names: numbers, words, and estimators that it is made of.

    >>> from pyro_vae.estimators import Antithetic, RenyiBound, StickingTheLanding
    >>> settings_of(RenyiBound(0.5, K=3)), settings_of(Antithetic(StickingTheLanding(4)))
    ('alpha=0.5', 'estimator=StickingTheLanding()')
    """
    of_all = inspect.signature(ELBO).parameters
    names = [name for name in inspect.signature(type(estimator)).parameters if name not in of_all]
    kept = {name: getattr(estimator, name) for name in names if hasattr(estimator, name)}
    return ", ".join(f"{name}={_in_words(value)}" for name, value in kept.items() if _is_setting(value))


def _is_setting(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str, ELBO))


def _in_words(value: Any) -> str:
    return f"{type(value).__name__}({settings_of(value)})" if isinstance(value, ELBO) else repr(value)


def _said(estimator: Any) -> Description:
    said = estimator.description
    if not isinstance(said, Description):
        raise ValueError(
            f"description of {type(estimator).__name__}: wanted a pyro_vae.estimators.Description, got {said!r}; write "
            'description = Description.unbiased("ELBO") where value and gradient are, on average, those of the ELBO, '
            "and description = Description() where nothing is known"
        )
    return said
