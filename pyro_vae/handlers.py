"""Changes to any program: a KL weight and its warm-up, free bits, frozen parameters, unreparameterised sites."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Real
from typing import Any

import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from torch import Generator, Tensor, nn
from torch.distributions import Distribution

from pyro_vae.errors import warn
from pyro_vae.estimation import Description, Estimator
from pyro_vae.estimation.closed_form import kl_of_dimensions
from pyro_vae.observation import observed
from pyro_vae.tracing.traces import check_order, sample_sites


class AnnealingWarning(UserWarning):
    """The schedule of a KL weight does not reach its end within the training."""


class KLWeight(Messenger):
    """Multiplies log p(z) and log q(z | x) of every latent site by β, in model and guide alike.

    Then E_q[log p(x | z)] − β KL(q ‖ p) is what an ELBO trains (Higgins et al. 2017). ``beta``, a number of at least
    zero or a scalar tensor, may be set between steps. A compiled step is traced again for each new number. If the
    number changes at every step, training is eager, with a warning: change a tensor in place instead,
    ``weight.beta.fill_(0.5)``, or use ``KLWeighted``. Importance-weighted bounds raise ValueError, since with β their
    weights are no longer importance weights.

    >>> import pyro
    >>> weight = KLWeight(0.5)
    >>> model = weight(lambda: pyro.sample("z", dist.Normal(0.0, 1.0)))
    >>> float(pyro.poutine.trace(model).get_trace().nodes["z"]["scale"])
    0.5
    """

    def __init__(self, beta: float | Tensor = 1.0):
        super().__init__()
        self.beta = _checked_beta(beta)

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"]:
            msg["scale"] = msg["scale"] * self.beta


class KLWeighted(nn.Module):
    """A program with a KL weight β for training; in evaluation mode it is the program itself.

    So ``fit`` trains the β-ELBO and reports the bound without β, since ``evaluate`` runs in evaluation mode. Epochs are
    compared with β, and only with epochs of the same β. ``set_beta`` sets it at any time, also where the program is
    compiled already:

        for row in Training(weighted, data):
            weighted.set_beta(min(1.0, row["epoch"] / 10))

    >>> from pyro_vae.linear_gaussian import LinearGaussian
    >>> from pyro.infer import Trace_ELBO
    >>> weighted = KLWeighted(LinearGaussian(torch.ones(3, 1)), beta=0.0)
    >>> x = weighted.program.simulate(5)
    >>> free = Trace_ELBO().loss(weighted.model, weighted.guide, x)
    >>> loss = Trace_ELBO().loss(weighted.eval().model, weighted.guide, x)
    >>> abs(loss + weighted.program.log_px(x).sum().item()) < 1e-3  # the guide is exact
    True
    """

    program: Any
    beta: Tensor

    def __init__(self, program: nn.Module, beta: float = 1.0):
        super().__init__()
        self.program = program
        self.register_buffer("beta", torch.tensor(float(_checked_beta(beta))), persistent=False)

    def set_beta(self, beta: float) -> None:
        """Set β. Raises ValueError unless it is a number of at least zero."""
        self.beta.fill_(_checked_beta(beta))

    def anneal(self, optimizer: torch.optim.Optimizer, schedule: Callable[[int], float]) -> torch.optim.Optimizer:
        """Set β to schedule(number of steps taken), now and after each step of the optimiser, which is returned.

        It is for loops of your own, and for ``fit``; the body of ``Training.steps()`` may call ``set_beta`` instead.
        ``schedule`` is a function of the step alone. ``fit`` warns where it does not reach its end. Raises ValueError
        for what is no optimiser of torch or no function, for an optimiser that anneals a weight already, and for a
        schedule that neither begins nor ends at the β that the program was given.

        >>> from pyro_vae.linear_gaussian import LinearGaussian
        >>> weighted = KLWeighted(LinearGaussian(torch.ones(3, 1)))
        >>> optimizer = weighted.anneal(torch.optim.Adam(weighted.parameters()), LinearWarmUp(steps=4))
        >>> optimizer.step()
        >>> weighted.beta
        tensor(0.2500)

        For ``fit``: ``optimizer=lambda parameters: weighted.anneal(torch.optim.Adam(parameters), LinearWarmUp(1000))``.
        """
        if not isinstance(optimizer, torch.optim.Optimizer) or not callable(schedule):
            got = f"{type(optimizer).__name__} and {type(schedule).__name__}"
            raise ValueError(
                f"anneal: wanted a torch optimiser and a function of the step, got {got}; write "
                "weighted.anneal(torch.optim.Adam(parameters), LinearWarmUp(steps=1000))"
            )
        if hasattr(optimizer, "annealing"):
            raise ValueError("anneal: this optimiser anneals a KL weight already; make another one")
        self._check_schedule(schedule)
        optimizer.annealing = schedule  # pyright: ignore[reportAttributeAccessIssue]
        optimizer.param_groups[0]["annealed"] = 0

        def anneal(optimizer: torch.optim.Optimizer, *_: Any, steps: int = 1) -> None:
            # Steps are counted in the optimiser's settings, so that its state dict resumes the schedule.
            optimizer.param_groups[0]["annealed"] += steps
            self.set_beta(schedule(optimizer.param_groups[0]["annealed"]))

        anneal(optimizer, steps=0)
        optimizer.register_step_post_hook(anneal)
        optimizer.register_load_state_dict_post_hook(lambda loaded: anneal(loaded, steps=0))
        return optimizer

    def _check_schedule(self, schedule: Callable[[int], float]) -> None:
        given, start, end = float(self.beta), float(schedule(0)), _end(schedule)
        if end is not None and given not in (1.0, start, end):
            raise ValueError(
                f"beta: the program was given {given:g}, and the schedule goes from {start:g} to {end:g}; write "
                f"LinearWarmUp(steps, end={given:g}), or KLWeighted(program) without beta"
            )

    @staticmethod
    def check_annealing(optimizer: torch.optim.Optimizer, steps: int) -> None:
        """Warn where the schedule of ``anneal``, if there is one, does not reach its end in this number of steps.

        The end is the value after very many steps. It counts as reached within a hundredth of the way from the start.
        Raises ValueError for an impossible β.

        >>> import warnings
        >>> weighted = KLWeighted(nn.Linear(2, 1))
        >>> optimizer = weighted.anneal(torch.optim.Adam(weighted.parameters()), LinearWarmUp(steps=1000))
        >>> with warnings.catch_warnings(record=True) as said:
        ...     warnings.simplefilter("always")
        ...     KLWeighted.check_annealing(optimizer, steps=1000)
        ...     KLWeighted.check_annealing(optimizer, steps=60)
        >>> print(said[0].message)
        beta: its schedule goes on to 1, and is at 0.06 after the 60 steps of this training; ...
        """
        schedule = getattr(optimizer, "annealing", None)
        if schedule is None:
            return
        betas = [float(_checked_beta(schedule(step))) for step in sorted({n * steps // 1000 for n in range(1001)})]
        end = _end(schedule)
        left = [abs(end - beta) for beta in betas if end is not None]
        if left and min(left) > max(left) / 100:
            warn(
                f"beta: its schedule goes on to {end:g}, and is at {betas[-1]:g} after the {steps} steps of "
                "this training; train for more epochs, or warm up in fewer steps, as by "
                f"LinearWarmUp(steps={max(1, steps // 2)})",
                AnnealingWarning,
            )

    def model(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program's model, with β in training mode."""
        return self._weighted(self.program.model)(*args, **kwargs)

    def guide(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program's guide, with β in training mode."""
        return self._weighted(self.program.guide)(*args, **kwargs)

    def observe(self, batch: Any, generator: Generator | None = None) -> Any:
        """Return what the program makes of a batch."""
        return observed(self.program, batch, generator)

    def _weighted(self, fn: Callable) -> Callable:
        return KLWeight(self.beta)(fn) if self.training else fn


def _end(schedule: Callable[[int], float]) -> float | None:
    """Return β after very many steps; None for a schedule that ends with the training, such as a list."""
    try:
        return float(schedule(10**12))
    except Exception:
        return None


@dataclass(frozen=True)
class LinearWarmUp:
    """β as a function of the step: from ``start`` to ``end`` in ``steps`` steps, then constant (Sønderby et al. 2016).

    >>> warm_up = LinearWarmUp(steps=100)
    >>> [warm_up(step) for step in (0, 50, 100, 1000)]
    [0.0, 0.5, 1.0, 1.0]
    """

    steps: float
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        _checked_beta(self.start)
        _checked_beta(self.end)
        if not isinstance(self.steps, Real) or not 0 < self.steps < math.inf:
            raise ValueError(f"steps: got {self.steps}, wanted a positive number, as in LinearWarmUp(steps=1000)")

    def __call__(self, step: float) -> float:
        """Return β after this number of steps."""
        return self.start + (self.end - self.start) * min(1.0, step / self.steps)


class FreeBits(Estimator):
    """The ELBO in which the first λ nats of each latent dimension's KL cost nothing (Kingma et al. 2016).

        E_q log p(x | z) − Σ_j max(λ, mean over the batch of KL_j)      times the number of images; K particles

    j runs over the dimensions of a site where guide and prior are both factorised; any other site counts as one
    dimension. Since max(λ, KL) ≥ KL the loss is still minus a lower bound, looser than that of ``Trace_ELBO``. The KL
    is taken in closed form, since the maximum of a sampled one would be biased. Raises ValueError if no closed form is
    registered, if guide and model draw their sites in different orders, if the guide scores more than its draws, and if
    a latent site is scaled or masked. A gradient also needs reparameterised sites.

    >>> from pyro_vae.linear_gaussian import LinearGaussian, mean_field_guide
    >>> program = LinearGaussian(torch.ones(3, 1))
    >>> program.posterior = mean_field_guide(program)
    >>> loss = FreeBits(nats=0.5)(program.model, program.guide)(program.simulate(4))
    """

    def __init__(self, nats: float, K: int = 1, *, vectorize: bool | None = None):
        super().__init__(K, vectorize=vectorize)
        if not 0 <= nats < math.inf:
            raise ValueError(f"nats: got {nats}, wanted a number of at least zero: the free KL of each dimension")
        self.nats = nats

    @property
    def description(self) -> Description:
        """The ELBO with free nats; nothing is claimed of its gradient, which depends on the particles."""
        return Description(f"ELBO with {self.nats:g} free nats")

    def objective(self, model: Callable, guide: Callable, args: Sequence, kwargs: Mapping) -> tuple[Tensor, Tensor]:
        """Return the bound with free bits twice."""
        model_trace, guide_trace = self._get_trace(model, guide, args, kwargs)
        check_order(model_trace, guide_trace)
        seen = list(sample_sites(guide_trace, observed=True))
        if seen:
            raise ValueError(f"FreeBits: the guide scores {seen}, which it does not draw; use Trace_ELBO and KLWeight")
        observed = sample_sites(model_trace, observed=True).values()
        bound: Any = sum(site["log_prob"].sum() for site in observed) / self.num_particles
        for name, site in sample_sites(guide_trace, observed=False).items():
            kl = kl_of_dimensions(name, site, dict(model_trace.nodes.get(name, {})))
            draws = site["log_prob"].numel() / self.num_particles
            bound = bound - (kl / self.num_particles).clamp(min=self.nats * draws).sum()
        return bound, bound


@contextmanager
def frozen(*parts: Any) -> Iterator[None]:
    """Context manager in which parameters are not trained, neither by SVI nor by a torch optimiser.

    A part is a module, Pyro's parameter store, or a leaf tensor. The parameters take no gradient, and one that they had
    is set aside, since an optimiser with momentum would follow even a gradient of zero.

    >>> layer = nn.Linear(2, 1)
    >>> with frozen(layer):
    ...     layer(torch.ones(2)).requires_grad
    False
    """
    parameters = [parameter for part in parts for parameter in _parameters(part)]
    before = [(parameter, parameter.requires_grad, parameter.grad) for parameter in parameters]
    for parameter in parameters:
        parameter.requires_grad_(False)
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, requires_grad, gradient in before:
            parameter.requires_grad_(requires_grad)
            parameter.grad = gradient


class Unreparameterized(Messenger):
    """Removes the reparameterisation of sites of a guide, so that Pyro's ELBOs use the score function there.

    All reparameterised sites are switched, or those that are named; ValueError at the end of the run where a named one
    was not met. Flows are inverted to score their draws.

    >>> import pyro
    >>> loc = torch.zeros(3, requires_grad=True)
    >>> guide = Unreparameterized()(lambda: pyro.sample("z", dist.Normal(loc, 1.0).to_event(1)))
    >>> guide().requires_grad
    False
    """

    def __init__(self, *sites: str):
        super().__init__()
        self.sites, self.met = sites, set()

    def __enter__(self) -> "Unreparameterized":
        self.met = set()
        return super().__enter__()

    def __exit__(self, exc_type: Any, exc_value: Any, traceback: Any) -> None:
        super().__exit__(exc_type, exc_value, traceback)
        missed = set(self.sites) - self.met
        if missed and exc_type is None:
            raise ValueError(f"the guide has no reparameterised site {sorted(missed)}, so that nothing was switched")

    def _pyro_sample(self, msg: Any) -> None:
        chosen = not self.sites or msg["name"] in self.sites
        if chosen and not msg["is_observed"] and getattr(msg["fn"], "has_rsample", False):
            msg["fn"] = Score(msg["fn"])
            self.met.add(msg["name"])


class Score(dist.TorchDistribution):
    """A distribution whose draws have no path to its parameters, with the density of its base distribution.

    ``has_rsample_(False)`` would do the same, but ``Independent`` does not support it.

    >>> Score(dist.Normal(torch.zeros(3), 1.0).to_event(1)).has_rsample
    False
    """

    has_rsample = False
    arg_constraints: dict = {}  # pyright: ignore[reportIncompatibleMethodOverride]

    def __init__(self, base_dist: Distribution):
        self.base_dist = base_dist
        super().__init__(base_dist.batch_shape, base_dist.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        """The support of the base distribution."""
        return self.base_dist.support

    def expand(self, batch_shape: Sequence[int], _instance: None = None) -> "Score":
        """Return the same distribution with another batch shape."""
        return Score(self.base_dist.expand(torch.Size(batch_shape)))

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw without a path to the parameters."""
        # detach() makes a copy: a flow would score the tensor of its last pass from its cache, without a gradient.
        return self.base_dist.sample(torch.Size(sample_shape)).detach()

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density of the base distribution."""
        return self.base_dist.log_prob(value)


def _checked_beta(beta: float | Tensor) -> float | Tensor:
    if not torch.is_tensor(beta) and not 0 <= beta < math.inf:
        raise ValueError(f"beta: got {beta}, wanted a number of at least zero")
    return beta


def _parameters(part: Any) -> list[Tensor]:
    if torch.is_tensor(part) and part.is_leaf:
        return [part]
    named = getattr(part, "named_parameters", None)
    if named is not None:
        return [parameter for _, parameter in named()]
    raise ValueError(
        f"frozen: got {type(part).__name__}, wanted a module, a leaf tensor, or pyro.get_param_store(); "
        "write frozen(vae.posterior) or frozen(*parameters)"
    )
