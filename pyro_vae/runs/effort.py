"""How many test images a run measures, and about how long that takes.

The number follows from the settings alone: a number of a run must not depend on the speed of the machine.
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pyro_vae.data import Data
from pyro_vae.printing import duration

REPEATS = 10  # draws of each estimator of the bound
LEAST, LEAST_WORK = 100, 20_000  # images, and work, which are always measured: a few seconds
TRAINED = 3.0  # work of a training image, forward and backward, where decoding one z is 1
ENCODED = 0.6  # work of encoding an image


@dataclass(frozen=True)
class Effort:
    """What a run measures, in test images and in work, whose unit is the work of decoding one z.

    By ``--measure short`` it is half the work of training: log p(x) and the repeated bounds are measured on as many
    test images as the rest leaves time for.

    Args:
        train, test: the number of training and test images.
        trained: the number of z that the training has decoded.
        particles: K, of log p(x).
        measure: "short", "full" or "none".

    >>> [Effort(50_000, 10_000, epochs * 50_000, particles=50).images for epochs in (1, 2, 5, 10)]
    [375, 1601, 5277, 10000]
    """

    train: int
    test: int
    trained: int
    particles: int
    measure: str = "short"

    @classmethod
    def of(cls, args: argparse.Namespace, images: Data, epochs: int) -> "Effort":
        """Return the effort of a run that was trained for so many epochs."""
        train = len(images.train)
        return cls(train, len(images.test), epochs * train * args.particles, args.evidence, args.measure)

    @property
    def images(self) -> int:
        """The number of test images on which log p(x) and the repeated bounds are measured."""
        if self.measure == "full":
            return self.test
        left = max(self.trained * TRAINED / 2 - self._bound - self._codes, LEAST_WORK)
        return min(self.test, max(int(left / self._each), LEAST))

    @property
    def works(self) -> dict[str, tuple[str, float]]:
        """The entries of metrics.json that take their time: what is measured in words, and its work."""
        some = f"{self.images:,} of {self.test:,} test images" if self.images < self.test else f"{self.test:,} images"
        share = (self.particles + ENCODED) / self._each
        return {
            "test": (f"the bound of {self.test:,} test images", self._bound),
            "evidence": (f"log p(x) of {some}, {self.particles} draws of z for each", share * self.images * self._each),
            "estimators": (f"the bound of {some}, {REPEATS} times", (1 - share) * self.images * self._each),
            "knn_accuracy": (f"the codes of {self.train:,} training images", self._codes),
        }

    @property
    def _bound(self) -> float:
        return self.test * (1 + ENCODED)

    @property
    def _codes(self) -> float:
        return (self.train + self.test) * ENCODED

    @property
    def _each(self) -> float:
        """The work of log p(x) and of the repeated bounds of one image."""
        return self.particles + REPEATS + 2 * ENCODED

    def announced(
        self, entries: Mapping[str, Callable[[], Any]], seconds: float, say: Callable[[str], None]
    ) -> dict[str, Callable[[], Any]]:
        """Return the functions that measure each entry; they say first what they do, and about how long it takes.

        ``seconds``: those that the training took.
        """
        unit = seconds / (TRAINED * max(self.trained, 1))
        works = {name: work for name, work in self.works.items() if name in entries}
        total = max(1.0, unit * sum(work for _, work in works.values()))

        def measured(name: str) -> Any:
            if name == next(iter(entries)):
                whole = "" if self.images == self.test else "; --measure full takes all test images"
                say(f"measuring   about {duration(total)}; --measure none leaves it out{whole}")
            if name in works:
                what, work = works[name]
                say(f"  {what}" + (f": about {duration(work * unit)}" if work * unit >= 1 else ""))
            return entries[name]()

        return {name: lambda name=name: measured(name) for name in entries}
