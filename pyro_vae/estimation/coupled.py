"""Estimators whose particles are drawn together, so that their errors cancel in part."""

from collections.abc import Callable, Mapping, Sequence
from copy import copy

from torch import Tensor

from pyro_vae.estimation.base import Estimator
from pyro_vae.estimation.description import Description, describe
from pyro_vae.tracing.coupling import Uniforms, antithetic, quasi_random
from pyro_vae.tracing.traces import ProgramRuns


class _Coupled(Estimator):
    """An estimator with its particles drawn from coupled noise."""

    draws = ""

    def __init__(self, estimator: Estimator, uniforms: Uniforms):
        if not (isinstance(estimator, Estimator) and estimator.couples and estimator.coupling is None):
            raise ValueError(
                f"estimator: {type(estimator).__name__} needs independent particles; wanted StickingTheLanding(K), "
                "ImportanceWeighted(K, M) or ScoreFunction(K) without a baseline; for L^A of K particles write "
                "ImportanceWeighted(1, M=K)"
            )
        super().__init__(estimator.num_particles)
        self.estimator = copy(estimator)
        self.estimator.runs = ProgramRuns(estimator.num_particles, estimator.runs.vectorize)
        self.estimator.coupling = uniforms

    @property
    def description(self) -> Description:
        """Value and gradient of the ELBO, or of the bound that these draws make of several weights."""
        inner = describe(self.estimator)
        bound = inner.estimates if inner.estimates in ("ELBO", None) else f"{inner.estimates}, {self.draws} draws"
        return Description(bound, inner.guide_gradient and bound, inner.model_gradient and bound, plain=inner.plain)

    def objective(self, model: Callable, guide: Callable, args: Sequence, kwargs: Mapping) -> tuple[Tensor, Tensor]:
        """Return what the estimator makes of these draws."""
        self.estimator.num_particles = self.num_particles
        return self.estimator.objective(model, guide, args, kwargs)


class Antithetic(_Coupled):
    """An estimator with its K particles in pairs of opposite noise, ε and −ε (Hammersley & Morton 1956).

    Each particle is a draw of q, so that a mean over particles stays unbiased. What is odd in the noise cancels within
    a pair: the variance falls where integrand and path are close to linear, and may rise where they are even. Of an
    odd K the last particle has no partner. Any site is drawn by the inverse of its distribution function; flows from
    their base.

    The estimator must bear dependent particles (ValueError): ``StickingTheLanding``, ``ImportanceWeighted``, whose
    bound then is another one than L_K (Wu et al. 2019), and ``ScoreFunction`` without a baseline.

    >>> from pyro_vae.estimators import StickingTheLanding
    >>> from pyro_vae.linear_gaussian import LinearGaussian
    >>> import torch
    >>> program = LinearGaussian(torch.ones(3, 1))
    >>> loss = Antithetic(StickingTheLanding(4))(program.model, program.guide)(program.simulate(2))
    """

    draws = "antithetic"

    def __init__(self, estimator: Estimator):
        super().__init__(estimator, antithetic)

    @property
    def description(self) -> Description:
        """Value and gradient of the ELBO, or of the bound that these draws make of several weights."""
        return super().description


class QuasiMonteCarlo(_Coupled):
    """An estimator with its K particles at randomly shifted points of a Sobol sequence (Buchholz et al. 2018).

    Each particle is a draw of q, so that a mean over particles stays unbiased, while together they fill the space of
    the noise evenly: the variance falls faster than 1 / K, most of all in few dimensions and for K a power of two.
    Each image has a random digital shift of its own. Estimators and errors are those of ``Antithetic``.

    >>> from pyro_vae.estimators import StickingTheLanding
    >>> from pyro_vae.linear_gaussian import LinearGaussian
    >>> import torch
    >>> program = LinearGaussian(torch.ones(3, 1))
    >>> loss = QuasiMonteCarlo(StickingTheLanding(8))(program.model, program.guide)(program.simulate(2))
    """

    draws = "quasi-random"

    def __init__(self, estimator: Estimator):
        super().__init__(estimator, quasi_random)

    @property
    def description(self) -> Description:
        """Value and gradient of the ELBO, or of the bound that these draws make of several weights."""
        return super().description
