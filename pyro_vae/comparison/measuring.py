"""Many draws of an estimator: the moments of its loss and gradient, and the time of a draw."""

import math
import statistics
import zlib
from collections.abc import Mapping

import pyro
from pyro.infer import ELBO
from tqdm import tqdm

from pyro_vae.comparison.drawing import Drawer
from pyro_vae.comparison.moments import PROJECTIONS, Mean, Moments
from pyro_vae.comparison.results import BoundStatistics, EstimatorStatistics, GradientStatistics
from pyro_vae.estimation import describe

TIMED = 20  # the most draws that are timed, for their median
FEWEST = 5  # draws that are timed where a quarter of all draws is less


def seconds_per_draw(drawer: Drawer, estimators: Mapping[str, ELBO], draws: int) -> dict[str, float]:
    """Return the median time of a draw of each estimator; they take turns, and the first draw is left out."""
    times = times_of_draws(drawer, estimators, min(draws, max(FEWEST, draws // 4), TIMED))
    return {name: statistics.median(elapsed) for name, elapsed in times.items()}


def times_of_draws(drawer: Drawer, estimators: Mapping[str, ELBO], turns: int) -> dict[str, list[float]]:
    """Return the seconds of each estimator's draws, turn by turn; the first turn is left out."""
    times: dict[str, list[float]] = {name: [] for name in estimators}
    for number in range(1, turns + 2):
        for name, elbo in estimators.items():
            _, elapsed = drawer.draw(name, elbo, drawer.batches[0], number, turns)
            times[name].append(elapsed)
    return {name: elapsed[1:] for name, elapsed in times.items()}


def measure(
    drawer: Drawer, name: str, elbo: ELBO, draws: int, images: int | None, seed: int, seconds: float, bar: tqdm
) -> tuple[EstimatorStatistics, dict[str, Mean]]:
    """Return the statistics of an estimator and its mean gradients; see ``Measurement``."""
    measurement = Measurement(drawer, name, draws, images, seed)
    measurement.run(elbo, bar)
    return measurement.result(elbo, seconds), measurement.means()


class Measurement:
    """Streaming moments of one estimator's loss and gradient.

    Args:
        drawer: the program.
        name: of the estimator; with ``seed`` it determines the random numbers.
        draws: at each batch.
        images: the number of images that the loss sums over; None if it is unknown.
        seed: of the random numbers.
    """

    def __init__(self, drawer: Drawer, name: str, draws: int, images: int | None, seed: int):
        self.drawer, self.name, self.draws, self.images, self.seed = drawer, name, draws, images, seed
        projections = max(1, min(PROJECTIONS, draws * len(drawer.batches) // 4))
        self.moments = {
            group: Moments(sizes, drawer.flat[:1], projections, seed) for group, sizes in drawer.sizes.items()
        }
        self.bounds = ScalarMoments()

    def run(self, elbo: ELBO, bar: tqdm) -> None:
        """Draw the estimator at all batches; ValueError where a loss or a gradient is not finite."""
        pyro.set_rng_seed((self.seed + zlib.crc32(self.name.encode())) % 2**32)
        for args in self.drawer.batches:
            number = 1
            for losses, gradients in self.drawer.blocks(self.name, elbo, args, self.draws):
                sizes = [self.moments[group].extend(pieces).tolist() for group, pieces in gradients.items()]
                for loss, *of_groups in zip(losses, *sizes):
                    if not all(map(math.isfinite, (loss, *of_groups))):
                        raise ValueError(self._not_finite(number, loss))
                    self.bounds.add(-loss / (self.images or 1))
                    number += 1
                bar.update(len(losses))
            for accumulator in (self.bounds, *self.moments.values()):
                accumulator.end_batch()

    def result(self, elbo: ELBO, seconds: float) -> EstimatorStatistics:
        """Return the statistics of the estimator; ``seconds`` is the time of one draw."""
        described = describe(elbo)
        return EstimatorStatistics(
            kind=type(elbo).__name__,
            particles=getattr(elbo, "num_particles", 1),
            estimates=described.estimates,
            is_bound=described.is_bound,
            bound=self.bounds.statistics(),
            guide=_gradient_statistics(self.moments.get("guide")),
            model=_gradient_statistics(self.moments.get("model")),
            seconds=seconds,
        )

    def means(self) -> dict[str, Mean]:
        """Return the mean gradient in each group of parameters."""
        return {group: moments.mean() for group, moments in self.moments.items()}

    def _not_finite(self, number: int, loss: float) -> str:
        got = f"the loss is {loss}" if not math.isfinite(loss) else "a gradient is not finite"
        return (
            f"{self.name}, draw {number} of {self.draws}: {got}, wanted finite numbers; check the parameters, and that "
            "the data lie in the support of the likelihood (pyro.enable_validation(True) shows where)"
        )


class ScalarMoments:
    """Streaming mean and variance of a scalar, in one or several batches.

    >>> moments = ScalarMoments()
    >>> moments.add(1.0), moments.add(3.0), moments.end_batch()
    (None, None, None)
    >>> moments.statistics()
    BoundStatistics(2.0000 ± 1.0000, variance 2)
    """

    def __init__(self) -> None:
        self._means: list[float] = []
        self._count, self._mean, self._squares, self._total = 0, 0.0, 0.0, 0

    def add(self, value: float) -> None:
        """Add one draw."""
        self._count += 1
        delta = value - self._mean
        self._mean += delta / self._count
        self._squares += delta * (value - self._mean)

    def end_batch(self) -> None:
        """End a batch."""
        self._means.append(self._mean)
        self._total += self._count
        self._count, self._mean = 0, 0.0

    def statistics(self) -> BoundStatistics:
        """Return mean, standard error, and the variances within and between batches."""
        means = self._means
        variance = self._squares / (self._total - len(means))
        between = statistics.variance(means) - variance * len(means) / self._total if means[1:] else None
        return BoundStatistics(statistics.fmean(means), math.sqrt(variance / self._total), variance, between)


def _gradient_statistics(moments: Moments | None) -> GradientStatistics | None:
    if moments is None:
        return None
    return GradientStatistics(
        parameters=moments.size,
        varying=moments.varying(),
        variance=moments.trace(),
        snr=moments.snr(),
        norm_ratio=moments.norm_ratio(),
        minibatch_variance=moments.between(),
    )
