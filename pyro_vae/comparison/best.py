"""``best_estimator``: which gradient estimator of any Pyro program to take, by variance × cost."""

from collections.abc import Callable, Mapping
from typing import Any, overload

from pyro.infer import ELBO
from tqdm import tqdm

from pyro_vae.checks import positive_number, whole_number
from pyro_vae.comparison.candidates import candidates
from pyro_vae.comparison.compare import (
    arguments_of,
    at_rest,
    check_estimators,
    check_kl,
    checked_batches,
    explored,
)
from pyro_vae.comparison.drawing import Drawer, Engine, checked_engine
from pyro_vae.comparison.racing import Race
from pyro_vae.comparison.ranking import Ranking
from pyro_vae.estimation import describe
from pyro_vae.program import Program, model_and_guide


@overload
def best_estimator(
    program: Program,
    /,
    *args: Any,
    estimators: Mapping[str, ELBO] | None = None,
    seconds: float | None = 60.0,
    draws: int = 32,
    costs: Mapping[str, float] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    engine: Engine = "auto",
    seed: int = 0,
    progress: bool = True,
) -> Ranking: ...


@overload
def best_estimator(
    model: Callable,
    guide: Callable,
    /,
    *args: Any,
    estimators: Mapping[str, ELBO] | None = None,
    seconds: float | None = 60.0,
    draws: int = 32,
    costs: Mapping[str, float] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    engine: Engine = "auto",
    seed: int = 0,
    progress: bool = True,
) -> Ranking: ...


def best_estimator(
    first: Any,
    /,
    *rest: Any,
    estimators: Mapping[str, ELBO] | None = None,
    seconds: float | None = 60.0,
    draws: int = 32,
    costs: Mapping[str, float] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    engine: Engine = "auto",
    seed: int = 0,
    progress: bool = True,
) -> Ranking:
    """Rank estimators by the variance of the whole gradient, the guide's and the model's, times the cost of a draw.

    Write ``best_estimator(program, *args, ...)`` or ``best_estimator(model, guide, *args, ...)``, at the parameters and
    arguments as they are; a ranking at the start of a training need not be that at its end. Half the variance at twice
    the cost is an even trade, since one may average two draws.

    Estimators are ranked where their gradients are on average those of one bound, as their descriptions say
    (``estimators.describe``): the ELBO, or L_K for each K. Variances of different bounds say nothing about which bound
    to take. An estimator that is biased, or of which nothing is known, is measured and has no rank.

    Draws are taken in rounds by successive halving, see ``racing.Race``: from ``draws`` of all, to twice as many of the
    better half, and so on, until the first is told apart from the others or is within 10 % of them.

    The draws of a round, their number and so each measured variance depend on ``seed``, the name of the estimator and
    the number of the round alone. The clock decides how many rounds there are, and, without ``costs``, by the cost
    which estimators are left. Costs are seconds of a draw as ``SVI`` takes it; ``fit`` compiles its steps, so that
    estimators may cost less there, and others relative to each other. With ``costs`` and without ``seconds`` the same
    seed gives the same result, bit by bit.

    When it returns or raises, the program, Pyro's settings and the random state are as they were.

    Args:
        first: the program, or its model, followed by the guide.
        rest: the guide, where ``first`` is a model, and positional arguments, or a split; see ``compare_estimators``.
        estimators: any ``pyro.infer.ELBO`` by name; None: those of ``candidates`` that the program takes.
        seconds: a round that would end later is not begun; the first always is. None: no limit.
        draws: of each estimator in the first round; at least 8.
        costs: of a draw by name, such as measured seconds of a training step; None: they are measured.
        kwargs: keyword arguments of model and guide.
        engine: how draws are made, see ``compare_estimators``; costs are those of eager ones.
        seed: of all random numbers.
        progress: whether to show a progress bar on a terminal.

    Raises ValueError for settings out of range, costs that lack a name, and for what ``compare_estimators`` refuses.

    >>> from pyro_vae.linear_gaussian import LinearGaussian
    >>> import torch
    >>> program = LinearGaussian(torch.tensor([[1.0], [2.0]]))
    >>> kinds = {name: candidates([1])[name] for name in ("L^A", "STL, K = 1")}
    >>> ranking = best_estimator(program, program.simulate(8), estimators=kinds, costs=dict.fromkeys(kinds, 1.0))
    >>> ranking.best(), ranking.tied()  # the guide is exact
    ('STL, K = 1', ('STL, K = 1',))
    """
    model, guide, args = model_and_guide(*arguments_of(first, *rest))
    if guide is None:
        raise ValueError("guide: wanted a function, got None; write best_estimator(model, guide, ...)")
    kwargs, given = dict(kwargs or {}), estimators is not None
    draws, seed = whole_number("draws", draws, least=8), whole_number("seed", seed, least=None)
    seconds = seconds if seconds is None else positive_number("seconds", seconds)
    (batch,) = checked_batches(args, None, kwargs)
    chosen = dict(estimators) if isinstance(estimators, Mapping) else candidates() if estimators is None else estimators
    check_estimators(chosen)
    _check_costs(costs, chosen if given else None)
    with at_rest(model, guide, seed):
        left_out = {} if given else _without_closed_kl(chosen, model, guide, batch, kwargs)
        parameters, images, no_bound = explored(model, guide, [batch], kwargs, _but(chosen, left_out))
        drawer = Drawer((model, guide), [batch], kwargs, parameters, checked_engine(engine))
        left_out |= {} if given else _refused(_but(chosen, left_out), drawer)
        chosen = _but(chosen, left_out)
        _check_costs(costs, chosen)
        race = Race(drawer, chosen, draws, costs, images, seed)
        with tqdm(unit="draw", disable=None if progress else True) as bar:
            race.run(seconds, bar)
    return Ranking(tuple(race.places()), left_out, race.rounds, race.stopped, costs is None, images, seed, no_bound)


def _but(estimators: Mapping[str, ELBO], left_out: Mapping[str, str]) -> dict[str, ELBO]:
    return {name: elbo for name, elbo in estimators.items() if name not in left_out}


def _without_closed_kl(
    estimators: Mapping[str, ELBO], model: Callable, guide: Callable, args: tuple, kwargs: dict[str, Any]
) -> dict[str, str]:
    """Return the estimators that take a KL in closed form where the program has none, and why."""
    refused = {}
    for name, elbo in estimators.items():
        if describe(elbo).closed_form_kl:
            try:
                check_kl(name, elbo, model, guide, args, kwargs)
            except ValueError as error:
                refused[name] = str(error).removeprefix(f"{name}: ")
    return refused


def _refused(estimators: Mapping[str, ELBO], drawer: Drawer) -> dict[str, str]:
    """Return the estimators that do not take the program, and why; ValueError if none does."""
    refused = {}
    for name, elbo in estimators.items():
        try:
            drawer.draw(name, elbo, drawer.batches[0], 1, 1)
        except (ValueError, NotImplementedError) as error:
            refused[name] = str(error).removeprefix(f"{name}, draw 1 of 1: ")
    if len(refused) == len(estimators):
        name, why = next(iter(refused.items()))
        raise ValueError(f"no estimator takes the program, among them {name}: {why}; give estimators={{name: ELBO}}")
    return refused


def _check_costs(costs: Mapping[str, float] | None, estimators: Mapping[str, ELBO] | None) -> None:
    """Raise ValueError unless there is a positive cost of each estimator."""
    for name, cost in (costs or {}).items():
        positive_number(f"costs[{name!r}]", cost)
    missing = [name for name in estimators or () if costs is not None and name not in costs]
    if missing:
        raise ValueError(f"costs: wanted one of each estimator, got none of {missing}; leave costs out to measure them")
