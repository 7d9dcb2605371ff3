"""A measurement of log p(x) by a budget: draws go where the error is.

Pilot draws decide on the method and the number of draws of each image, and are then thrown away. The draws that count
are new ones, so that stopping where the numbers look good biases nothing.
"""

import hashlib
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from tqdm import tqdm

from pyro_vae.arguments import ProgramArguments
from pyro_vae.evidence.budgeted import EvidencePlan
from pyro_vae.evidence.methods import Method
from pyro_vae.evidence.results import weight_statistics
from pyro_vae.random import seeded

SAFETY = 1.2  # the variance that few draws show is mostly too small
PILOTS_SHARE = 0.4  # of the seconds, after which no further image is tried by a dearer method
UNTRUSTED = 4  # times its pilot draws, of an image that no method can be trusted for
TARGETS = np.geomspace(1e-3, 10, 161)  # standard errors to which ``seconds`` is rounded
DEFAULT_TARGET = 0.05


@dataclass
class Draws:
    """Weights of rows that are drawn in batches of one shape, each with random numbers of its own.

    Args:
        given: the arguments of the program.
        seed: from which the seeds of all batches follow.
        check: called before each batch; it may raise KeyboardInterrupt.

    Attributes:
        seconds: that the batches of each method took.
        weights: how many of each method were drawn, by purpose.
    """

    given: ProgramArguments
    seed: int
    check: Callable[[], None] = lambda: None
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    weights: Counter = field(default_factory=Counter)

    def of(
        self, method: Method, images: Sequence[int], counts: Sequence[int], purpose: str, done: int = 0
    ) -> Iterator[np.ndarray]:
        """Yield log weights (draws × count, 1) of each image in order, but not of the first ``done``.

        An image takes as many rows of a batch as it gets units of draws. The last batch is filled up, so that all have
        one shape, for which the program is compiled once.
        """
        index, ends = np.repeat(np.asarray(images, int), counts), np.cumsum(counts)
        first, kept = int(ends[done - 1]) if done else 0, []
        for start in range(first - first % method.rows, len(index), method.rows):
            part = index[start : start + method.rows]
            log_w = self._batch(method, part, f"{purpose} {method.name} {start}")
            for row in range(max(first - start, 0), len(part)):
                kept.append(log_w[:, row])
                if len(kept) == counts[done]:
                    self.weights[purpose, method.name] += method.draws * len(kept)
                    yield np.concatenate(kept)[:, None]
                    kept, done = [], done + 1

    def speed(self, method: Method) -> float:
        """Return the seconds of a unit of draws: those of most batches, since the first may be compiled."""
        batches = self.seconds[method.name]
        return float(np.median(batches)) / method.rows if batches else 0.0

    def _batch(self, method: Method, part: np.ndarray, purpose: str) -> np.ndarray:
        self.check()
        started = time.perf_counter()
        filled = [*part.tolist(), *[int(part[-1])] * (method.rows - len(part))]
        with seeded(seed_of(self.seed, purpose), self.given.device):
            log_w = method.weigh(self.given.at(filled))
        self.seconds[method.name].append(time.perf_counter() - started)
        return log_w


class Verdicts:
    """What the pilot draws say of each image: its method, the relative variance of a weight, whether it is trusted.

    Args:
        methods: that are tried.
        images: their number.
    """

    def __init__(self, methods: Sequence[Method], images: int):
        self.methods, self.method = methods, np.zeros(images, int)
        self.variance, self.trusted = np.full(images, math.inf), np.zeros(images, bool)
        self.enough = np.zeros(images)  # draws for which log p̂ is about normal

    def judge(self, number: int, images: Sequence[int], log_w: np.ndarray) -> None:
        """Take note of pilot draws (K, B) of images; a later method must be trusted where an earlier one was."""
        method, index = self.methods[number], np.asarray(images, int)
        trusted, variance = method.trusts(log_w), method.variance(log_w)
        better = trusted | ~self.trusted[index]
        index = index[better]
        self.method[index], self.trusted[index] = number, trusted[better]
        self.variance[index], self.enough[index] = variance[better], method.enough(log_w)[better]

    def unsettled(self, target: float) -> np.ndarray:
        """Return the numbers of the images that are not trusted, or too dear, the largest error first."""
        index = np.flatnonzero(~self.trusted | (self._needed(target) > self._of_each("dear")))
        return index[np.argsort(-self.variance[index], kind="stable")]

    def units(self, target: float) -> np.ndarray:
        """Return how many units of draws each image gets: few if they cannot be trusted, since more cure nothing."""
        most = np.where(self.trusted, self._of_each("most"), UNTRUSTED * self._of_each("pilots"))
        return np.clip(self._needed(target), self._of_each("least"), most).astype(int)

    def affordable(self, draws: Draws, seconds: float) -> float:
        """Return the smallest standard error, of some round ones, that all images can have within these seconds."""
        speed = np.array([draws.speed(method) for method in self.methods])[self.method]
        fits = (target for target in TARGETS if (speed * self.units(target)).sum() <= seconds)
        return float(next(fits, TARGETS[-1]))

    def plan(self, target: float) -> EvidencePlan:
        """Return the plan whose standard errors are about the target."""
        draws = self.units(target) * self._of_each("draws")
        names = tuple(method.name for method in self.methods)
        method, draws, trusted = map(torch.from_numpy, (self.method, draws, self.trusted))
        return EvidencePlan(names, method, draws, trusted, target)

    def _needed(self, target: float) -> np.ndarray:
        wanted = np.maximum(SAFETY * self.variance / target**2, self.enough)
        return np.ceil(wanted / self._of_each("draws"))

    def _of_each(self, name: str) -> np.ndarray:
        return np.array([getattr(method, name) for method in self.methods])[self.method]


def planned(
    methods: Sequence[Method], draws: Draws, images: int, target: float | None, seconds: float | None
) -> EvidencePlan:
    """Return the plan of a budget, by pilot draws.

    Each method in turn looks at the images that those before it did not settle. With ``seconds`` none is tried by a
    dearer method after a share of the time.
    """
    ends = math.inf if seconds is None else time.perf_counter() + seconds
    found, wanted = Verdicts(methods, images), target or DEFAULT_TARGET
    for number in range(len(methods)):
        until = math.inf if seconds is None or not number else ends - (1 - PILOTS_SHARE) * seconds
        order = found.unsettled(wanted).tolist()
        pilots = _pilots(methods[number], draws, order, until)
        if pilots:
            found.judge(number, order[: len(pilots)], np.concatenate(pilots, 1))
    if seconds is not None:
        wanted = max(found.affordable(draws, ends - time.perf_counter()), target or 0.0)
    return found.plan(wanted)


def _pilots(method: Method, draws: Draws, order: list[int], until: float) -> list[np.ndarray]:
    """Return pilot draws (K, 1) of images in this order; of no further ones after a time."""
    units, found = max(method.pilots, math.ceil(method.together / (method.draws * max(len(order), 1)))), []
    for image, log_w in zip(order, draws.of(method, order, [units] * len(order), "pilot")):
        weight_statistics(log_w, first=image)  # raises if there are none
        found.append(log_w)
        if time.perf_counter() > until:
            break
    return found


def count(
    methods: Sequence[Method], draws: Draws, plan: EvidencePlan, bar: tqdm, done: dict[int, tuple[np.ndarray, ...]]
) -> None:
    """Put the statistics of each image that is not yet there into ``done``.

    Its draws are independent of those that made the plan.
    """
    bar.update(int(plan.draws[[*done]].sum()))
    for number, method in enumerate(methods):
        images = torch.nonzero(plan.method == number).flatten().tolist()
        counts = [int(plan.draws[image]) // method.draws for image in images]
        before = sum(image in done for image in images)
        for image, log_w in zip(images[before:], draws.of(method, images, counts, "count", before)):
            done[image] = weight_statistics(log_w, first=image)
            bar.update(len(log_w))
            if not bar.disable:
                bar.set_postfix_str(f"{np.mean([column[0] for column in done.values()]):.2f} nats", refresh=False)


def seed_of(seed: int, purpose: str) -> int:
    """Return a seed for one purpose, as good as independent of those for others.

    >>> seed_of(0, "pilot") != seed_of(0, "count")
    True
    """
    return int.from_bytes(hashlib.sha256(f"{seed} {purpose}".encode()).digest()[:7], "big")
