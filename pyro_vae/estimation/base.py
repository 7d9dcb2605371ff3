"""The abstract estimator: a bound and a surrogate of it, drawn by K particles."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pyro.infer import ELBO
from pyro.infer.util import is_validation_enabled
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.util import warn_if_nan
from torch import Tensor

from pyro_vae.checks import whole_number
from pyro_vae.estimation.description import Description
from pyro_vae.tracing.coupling import Drawn, Uniforms, coupled
from pyro_vae.tracing.paths import check_reparameterised
from pyro_vae.tracing.traces import ProgramRuns, Traces, common_scale, log_weights, sample_sites, shared_plates


class Estimator(ELBO):
    """Abstract: a bound and a surrogate of it whose gradient is the estimator's.

    A subclass writes ``objective``. It also writes ``description``, which says what its value and gradient estimate;
    without one, ``compare_estimators`` does not expect its gradient to agree with any other. ``is_bound`` says whether
    minus the loss is, on average, a lower bound on log p(x).

    While Pyro's validation is on, a NaN loss warns, as in Pyro; ``loss`` and ``loss_and_grads`` warn always.

    Args:
        K: number of particles.
        vectorize: whether the K particles are drawn together or one after the other; None: together if a trial on the
            first batch shows that this changes no log-probability.
    """

    is_bound = True
    couples = False  # whether value and gradient stay right where the particles depend on each other
    coupling: Uniforms | None = None  # how they do

    def __init__(self, K: int = 1, *, vectorize: bool | None = None):
        K = whole_number("K", K)
        super().__init__(num_particles=K)
        if vectorize not in (None, True, False):
            raise ValueError(f"vectorize: got {vectorize!r}, wanted True, False or None")
        self.runs = ProgramRuns(K, vectorize)

    @property
    def description(self) -> Description:
        """What this class estimates, in value and gradient; a subclass does not inherit the claims (``describe``)."""
        return Description()

    @abstractmethod
    def objective(self, model: Callable, guide: Callable, args: Sequence, kwargs: Mapping) -> tuple[Tensor, Tensor]:
        """Return the bound, summed over the batch, and the surrogate, whose gradient is the estimator's.

        Both are to be maximised.
        """

    def differentiable_loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> Tensor:
        """Return minus the bound, a scalar in nats with the estimator's gradient, without waiting for a GPU."""
        bound, surrogate = self.objective(model, guide, args, kwargs)
        loss = -(bound.detach() + (surrogate - surrogate.detach()))
        if is_validation_enabled():
            warn_if_nan(loss, "loss")
        return loss

    def loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """Return minus the bound, in nats."""
        with torch.no_grad():
            loss = -self.objective(model, guide, args, kwargs)[0].cpu()
        return warn_if_nan(loss, "loss").item()

    def loss_and_grads(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """Return minus the bound, in nats; add its gradient to that of the parameters."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)
        return warn_if_nan(loss.detach().cpu(), "loss").item()

    def _get_trace(
        self, model: Callable, guide: Callable, args: Sequence, kwargs: Mapping, handler: Callable | None = None
    ) -> Traces:
        """Return the model's and the guide's trace, all particles in one; ``handler`` handles the guide's effects."""
        self.runs.particles = self.num_particles
        if self.coupling is not None:
            handler = coupled(self.coupling, self.num_particles, handler or Drawn())
        return self.runs(model, guide, args, kwargs, handler)

    def _reparameterised_weights(
        self, model: Callable, guide: Callable, args: Sequence, kwargs: Mapping
    ) -> tuple[Tensor, Any]:
        """Return log weights (K, images) and their scale. Raises ValueError where a gradient needs ``rsample``."""
        traces = self._get_trace(model, guide, args, kwargs)
        if torch.is_grad_enabled():
            for site in sample_sites(traces[1], observed=False).values():
                check_reparameterised(site)
        plate = self._plate(model, guide, args, kwargs, traces)
        return log_weights(*traces, plate=plate), common_scale(*traces, plate=plate)

    def _plate(
        self, model: Callable, guide: Callable, args: Sequence, kwargs: Mapping, traces: Traces
    ) -> CondIndepStackFrame:
        """Return the plate over images; of one particle any shared plate, since all give the same bound."""
        if self.num_particles == 1:
            return shared_plates(*traces)[0]
        return self.runs.plate(model, guide, args, kwargs, traces)
