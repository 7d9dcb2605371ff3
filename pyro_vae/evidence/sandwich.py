"""Lower and upper bounds on log p(x) of images that the model drew, and their summary over images."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pyro_vae.data.frames import framed
from pyro_vae.evidence.results import finite_or_none, numbered, standard_error
from pyro_vae.showing import Shown, on_one_line

BOUNDS = ("lower", "upper", "gap")


@dataclass(frozen=True)
class Sandwich:
    """Lower and upper bounds on log p(x) of images drawn from the model, (images,), float64, in nats.

    In expectation lower ≤ log p(x) ≤ upper, so the mean gap bounds the error of either.

    Attributes:
        lower, upper: the bounds.
        x: the simulated images.
        num_particles: K, the number of weights for each image.
        seed: of the random numbers; None if the caller's generator was used.
        joint: whether each bound is one value, of all images together, because they share a latent variable.
    """

    lower: Tensor
    upper: Tensor
    x: Tensor
    num_particles: int
    seed: int | None = None
    joint: bool = False

    @property
    def gap(self) -> Tensor:
        """Upper − lower, (images,). The gap of a single image may be negative; its expectation is not."""
        return self.upper - self.lower

    def to_dict(self) -> dict[str, Any]:
        """Return the means over images with their standard errors, in nats per image."""
        means = {}
        for name in BOUNDS:
            values = getattr(self, name)
            means |= {name: values.mean().item(), f"{name}_standard_error": standard_error(values)}
        found = {**means, "images": len(self.lower), **self._settings(), "seed": self.seed}
        return {name: finite_or_none(value) for name, value in found.items()}

    def to_frame(self) -> Any:
        """Return a pandas frame with a row for each image: lower, upper, gap. Raises ImportError without pandas."""
        return framed(numbered({name: getattr(self, name) for name in BOUNDS}), "image")

    def _settings(self) -> dict[str, Any]:
        return {"num_particles": self.num_particles}

    def _rows(self) -> Iterator[tuple[str, str]]:
        yield "settings", f"K = {self.num_particles}, seed {self.seed}"

    def _shown(self) -> Shown:
        """Return what ``print`` and notebooks show."""
        images = "of all images together" if self.joint else f"per image on {len(self.lower)} simulated images"
        rows = [
            (name, f"{values.mean():.3f}" + (f" ± {standard_error(values):.3f}" if len(values) > 1 else ""))
            for name, values in (("lower bound", self.lower), ("upper bound", self.upper), ("gap", self.gap))
        ]
        lower, upper, gap = (getattr(self, name).mean().item() for name in BOUNDS)
        between = f"{lower:.3f} ≤ log p(x) ≤ {upper:.3f}" if gap >= 0 else f"log p(x) of {lower:.3f} to {upper:.3f}"
        crossed = "in expectation the upper bound is the higher one: here chance has crossed them"
        return Shown(
            f"{between} nats {images}, gap {gap:.3f}", [*rows, *self._rows()], notes=[crossed] if gap < 0 else []
        )

    def __str__(self) -> str:
        return str(self._shown())

    def __repr__(self) -> str:
        return on_one_line(f"{type(self).__name__}({self._shown().title})")

    def _repr_html_(self) -> str:
        return self._shown().html()


@dataclass(frozen=True, kw_only=True, repr=False)
class AnnealedSandwich(Sandwich):
    """``Sandwich`` from ``num_particles`` forward and as many reverse chains for each image.

    Attributes:
        acceptance: of the forward chains' proposals, (images,).
        num_temperatures: their number, T.
    """

    acceptance: Tensor
    num_temperatures: int

    def _settings(self) -> dict[str, Any]:
        acceptance = self.acceptance.mean().item()
        return {
            "num_particles": self.num_particles,
            "num_temperatures": self.num_temperatures,
            "acceptance": acceptance,
        }

    def _rows(self) -> Iterator[tuple[str, str]]:
        yield "acceptance", f"{self.acceptance.mean():.2f}"
        yield "settings", f"{self.num_particles} chains, {self.num_temperatures} temperatures, seed {self.seed}"
