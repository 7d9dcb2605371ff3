"""Rounds of draws in which estimators of one target are raced against each other."""

import math
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from pyro.infer import ELBO
from tqdm import tqdm

from pyro_vae.comparison.drawing import Drawer
from pyro_vae.comparison.intervals import TAIL, Estimate, interval
from pyro_vae.comparison.measuring import TIMED, Measurement, times_of_draws
from pyro_vae.comparison.ranking import Ranked
from pyro_vae.comparison.separation import Score, log_ratio
from pyro_vae.estimation import describe

ALARMS = 0.05  # chance that any two equal estimators are told apart, at most
CLOSE = math.log(1.1)  # a difference of scores that is not worth more draws
ROUNDS = 12  # at most


@dataclass
class Racer:
    """An estimator in the race: what its last round has measured, and all its times."""

    target: str | None
    score: Score | None = None
    parts: Mapping[str, float] = field(default_factory=dict)
    times: list[float] = field(default_factory=list)
    round: int = -1
    draws: int = 0
    wall: float = 0.0


class Race:
    """Successive halving (Karnin et al. 2013) of estimators by variance × cost, target by target.

    Round r takes ``draws`` × 2^r new draws of each estimator that is left: selection by earlier rounds biases none of
    its numbers. Then those go that can be told apart from the best of their target, and of the others all but the
    better half, or the best two. A target is decided when all that is left is within 10 % of the best.

    Estimators are told apart by intervals that allow for all pairs of a target and for all rounds (Bonferroni): the
    comparison of one round with another spends a share 1/(r + 1)(r + 2) of the chance of a false alarm for each.

    Args:
        drawer: the program.
        estimators: by name.
        draws: of the first round.
        costs: of a draw, by name; None: its seconds are measured, the estimators taking turns.
        images: that the loss sums over, or None.
        seed: of the random numbers, with the name and the round.
    """

    def __init__(
        self,
        drawer: Drawer,
        estimators: Mapping[str, ELBO],
        draws: int,
        costs: Mapping[str, float] | None,
        images: int | None,
        seed: int,
    ):
        self.drawer, self.estimators, self.draws, self.costs = drawer, estimators, draws, costs
        self.images, self.seed = images, seed
        self.racers = {name: Racer(target_of(elbo)) for name, elbo in estimators.items()}
        self.rounds, self.stopped = 0, False

    def run(self, seconds: float | None, bar: tqdm) -> None:
        """Race until all is decided, or the next round would not end within so many seconds from now."""
        started, left = time.perf_counter(), list(self.estimators)
        while left and self.rounds < ROUNDS and not self.stopped:
            bar.set_description(f"round {self.rounds + 1}, {len(left)} estimators")
            self._round(left, bar)
            left = self._left(left)
            expected = time.perf_counter() - started + 2 * sum(self.racers[name].wall for name in left)
            self.stopped = bool(left) and seconds is not None and expected > seconds

    def places(self) -> list[Ranked]:
        """Return all estimators in the order of their places."""
        targets = dict.fromkeys(racer.target for racer in self.racers.values())
        return [entry for target in sorted(targets, key=lambda target: target is None) for entry in self._of(target)]

    def _round(self, names: Sequence[str], bar: tqdm) -> None:
        draws = self.draws * 2**self.rounds
        if self.costs is None:
            turns = max(TIMED, draws // 8)
            found = times_of_draws(self.drawer, {name: self.estimators[name] for name in names}, turns)
            for name, times in found.items():
                self.racers[name].times += times
        for name in names:
            racer, began = self.racers[name], time.perf_counter()
            measurement = Measurement(self.drawer, name, draws, self.images, self.seed + 7919 * self.rounds)
            measurement.run(self.estimators[name], bar)
            racer.score, racer.parts = self._scored(name, measurement)
            racer.round, racer.draws, racer.wall = self.rounds, draws, time.perf_counter() - began
        self.rounds += 1

    def _scored(self, name: str, measurement: Measurement) -> tuple[Score, dict[str, float]]:
        moments = measurement.moments
        parts = {group: each.trace().value for group, each in moments.items()}
        sections = torch.stack([each.sections_of_trace() for each in moments.values()]).sum(0)
        times = tuple(self.racers[name].times)
        cost = statistics.median(times) if self.costs is None else self.costs[name]
        return Score(sum(parts.values()), sections, cost, times), parts

    def _left(self, names: Sequence[str]) -> list[str]:
        """Return the estimators that the next round draws."""
        left = []
        for target in dict.fromkeys(self.racers[name].target for name in names):
            rivals = self._in_order(name for name in names if self.racers[name].target == target)
            if target is not None:
                left += self._undecided(rivals)
        return left

    def _undecided(self, rivals: Sequence[str]) -> list[str]:
        """Return those of the rivals, in the order of their scores, between whom more draws decide."""
        ratios = {name: self._behind(rivals[0], name) for name in rivals[1:]}
        near = [name for name, (_, low, _) in ratios.items() if not low > 0]
        near = near[: max(2, math.ceil(len(rivals) / 2)) - 1]
        return [rivals[0], *near] if any(not ratios[name][2] < CLOSE for name in near) else []

    def _behind(self, first: str, other: str) -> tuple[float, float, float]:
        """Return log(score of the other / score of the first) with its interval."""
        one, two = self.racers[first], self.racers[other]
        rivals = sum(racer.target == one.target for racer in self.racers.values())
        spent = math.prod(1 / ((racer.round + 1) * (racer.round + 2)) for racer in (one, two))
        assert one.score and two.score
        return log_ratio(two.score, one.score, 1 - ALARMS * spent / max(1, math.comb(rivals, 2)))

    def _in_order(self, names: Iterable[str]) -> list[str]:
        """Return names by how long they were in the race, and then by their scores."""

        def key(name: str) -> tuple[int, float]:
            racer = self.racers[name]
            return -racer.round, racer.score.value if racer.score else math.inf

        return sorted(names, key=key)

    def _of(self, target: str | None) -> list[Ranked]:
        names = self._in_order(name for name, racer in self.racers.items() if racer.target == target)
        return [self._entry(name, place, names[0]) for place, name in enumerate(names, 1)]

    def _entry(self, name: str, place: int, first: str) -> Ranked:
        racer = self.racers[name]
        assert racer.score
        low, high, freedom = interval(racer.score.variance, racer.score.sections, TAIL)
        known = racer.target is not None
        return Ranked(
            name=name,
            target=racer.target,
            rank=place if known else None,
            tied=known and (name == first or not self._behind(first, name)[1] > 0),
            score=racer.score.estimate(),
            variance=Estimate(racer.score.variance, max(low, 0.0), high, freedom),
            guide=racer.parts.get("guide"),
            model=racer.parts.get("model"),
            cost=racer.score.cost,
            draws=racer.draws,
        )


def target_of(elbo: ELBO) -> str | None:
    """Return the bound whose gradient an estimator has on average; None where it claims none, or is biased.

    >>> from pyro.infer import RenyiELBO, ReweightedWakeSleep, Trace_ELBO
    >>> target_of(Trace_ELBO()), target_of(RenyiELBO(num_particles=5)), target_of(ReweightedWakeSleep())
    ('ELBO', 'L_5', None)
    """
    described = describe(elbo)
    guide, model = described.guide_gradient, described.model_gradient
    if guide is None or model is None:
        return None
    return guide if guide == model else f"{guide} (guide) and {model} (model)"
