"""Estimates of log p(x) with their diagnostics, and their summaries over images."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from pyro_vae._lazy import LazyModule
from pyro_vae.data.frames import framed
from pyro_vae.errors import warn
from pyro_vae.evidence.pareto import LIGHT, error_freedom, pareto_k, rounding_error, shape_limit
from pyro_vae.printing import listed
from pyro_vae.showing import Shown, on_one_line

if TYPE_CHECKING:
    from scipy import special
else:
    special = LazyModule("scipy.special")

TRUSTED = 0.7  # the largest Pareto k̂ at which importance sampling can be trusted (Vehtari et al. 2024)
NORMAL_975 = 1.959964  # the 97.5 % quantile of the standard normal


class UntrustedEvidence(UserWarning):
    """Log p(x) of some images is still a lower bound in expectation, but may be far below.

    Their Pareto k̂ is above 0.7, or a single one of few annealed chains makes up most of the estimate.
    """


@dataclass(frozen=True)
class Evidence:
    """Estimates of log p(x), one for each image: tensors of shape (images,), float64, on the CPU.

    If the images share a latent variable (``joint``), there is one estimate, of all together, and the shape is (1,).

    Attributes:
        log_px: log p̂(x) = log 1/K Σ w, in nats. p̂ is unbiased, so its logarithm is a lower bound on log p(x) in
            expectation, too low by about ``standard_error²`` / 2.
        standard_error: of log p̂, by the delta method: sd(w) / (mean(w) √K). NaN for K = 1. See ``interval``.
        ess: effective sample size (Σ w)² / Σ w², from 1 to K (Kong 1992).
        pareto_k: k̂, the shape of the tail of w (Vehtari et al. 2024). The variance of w is infinite for k > ½. For
            k̂ > 0.7 neither the estimate nor its error can be trusted. −inf if the five largest weights are equal,
            +inf if a few dominate all others, NaN if there are too few different weights, as for any K ≤ 20.
        num_particles: K, the number of weights for each image.
        seed: of the random numbers; None if the caller's generator was used.
        joint: whether the one estimate is of all images together.

    >>> evidence = from_log_weights(torch.tensor([[0.0, -1.0], [0.0, -3.0]]))
    >>> torch.allclose(evidence.log_px[1].exp() * 2, torch.tensor([-1.0, -3.0]).double().exp().sum())
    True
    """

    # What helps where k̂ is above 0.7: in every warning and table.
    ADVICE: ClassVar[str] = (
        "more particles do not cure it, since the guide hardly ever draws the z that count most; "
        "proposal=LocalProposal() helps, which fits a distribution to the posterior of each image, and so do "
        "annealed_evidence, which moves the guide's draws to where the posterior is, and refit_guide, which trains a "
        "richer guide for this model; as it stands, log p(x) is a lower bound in expectation"
    )
    DOUBT: ClassVar[str] = f"Pareto k̂ > {TRUSTED}"
    COLUMNS: ClassVar[tuple[str, ...]] = ("log_px", "standard_error", "ess", "pareto_k")

    log_px: Tensor
    standard_error: Tensor
    ess: Tensor
    pareto_k: Tensor
    num_particles: int
    seed: int | None = None
    joint: bool = False

    @property
    def mean(self) -> float:
        """Mean of log p̂ over the images, in nats per image."""
        return self.log_px.mean().item()

    @property
    def mean_standard_error(self) -> float:
        """Standard error of the mean as an estimate for all images of the data's distribution: sd(log p̂) / √n.

        The Monte Carlo errors of different images are independent and already part of the spread of log p̂, so nothing
        is added. NaN for a single image.
        """
        return standard_error(self.log_px)

    @property
    def monte_carlo_error(self) -> float:
        """Standard error of the mean for exactly these images, √(Σ standard_error²) / n; more particles reduce it."""
        return self.standard_error.square().sum().sqrt().item() / len(self.standard_error)

    @property
    def trusted(self) -> Tensor:
        """Whether value and error of each image can be trusted, (images,); none for K ≤ 20.

        They can where the tail has a shape of at most ½ with 95 % confidence, by the k̂ of all images (``shape_limit``),
        and its own k̂ is at most 0.7. Of these about 95 % of the ``interval`` hold log p(x).
        """
        return torch.from_numpy(self._shape_limit() <= LIGHT) & ~(self.pareto_k > TRUSTED)

    @property
    def interval(self) -> Tensor:
        """Lower and upper end of a 95 % interval of log p(x) for each image, (images, 2), in nats.

        It is log p̂ ± t standard errors. The draws that decide whether an image is ``trusted`` are those that count, and
        a sample that missed large weights has a small error and a small k̂ as well. So t is the quantile of Student's
        distribution that belongs to an error as uncertain as it may be (``error_freedom``): 1.96 where the tail is
        light, 4.3 where its shape may be ½ or more. NaN for K = 1.

        >>> evidence = from_log_weights(-0.1 * torch.linspace(0.001, 1, 1000).log().unsqueeze(-1))
        >>> ((evidence.interval - evidence.log_px) / evidence.standard_error).numpy().round(2)
        array([[-1.96,  1.96]])
        """
        reach = torch.from_numpy(self._quantile()) * self.standard_error
        return torch.stack([self.log_px - reach, self.log_px + reach], -1)

    def _quantile(self) -> np.ndarray:
        """Return how many standard errors an interval reaches on either side, (images,)."""
        return special.stdtrit(error_freedom(self._shape_limit(), self.num_particles), 0.975)

    def _shape_limit(self) -> np.ndarray:
        return shape_limit(as_array(self.pareto_k), self.num_particles)

    @property
    def untrusted(self) -> float:
        """Share of the images with k̂ above 0.7; NaN if there are too few particles for k̂."""
        return math.nan if self.pareto_k.isnan().all() else float((self.pareto_k > TRUSTED).numpy().mean())

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as plain numbers, in nats per image (if ``joint``, of all images).

        Undefined values are None.

        >>> from_log_weights(torch.zeros(5, 2)).to_dict()["monte_carlo_error"]
        0.0
        """
        values = {
            "log_px": self.mean,
            "standard_error": self.mean_standard_error,
            "monte_carlo_error": self.monte_carlo_error,
            "images": len(self.log_px),
            "num_particles": self.num_particles,
            "seed": self.seed,
            "ess_median": self.ess.median().item(),
            "ess_min": self.ess.min().item(),
            "pareto_k_median": self.pareto_k.median().item(),
            "pareto_k_max": self.pareto_k.max().item(),
            "share_pareto_k_above_0.7": self.untrusted,
            "share_trusted": self.trusted.double().mean().item(),
            "joint": self.joint,
        }
        return {name: finite_or_none(value) for name, value in values.items()}

    def to_frame(self) -> Any:
        """Return a pandas frame with a row for each image (a single row if ``joint``). Raises ImportError without it.

        >>> list(from_log_weights(torch.zeros(30, 2)).to_frame())
        ['log_px', 'standard_error', 'ess', 'pareto_k']
        """
        return framed(numbered({name: getattr(self, name) for name in self.COLUMNS}), "image")

    def _shown(self) -> Shown:
        """Return what ``print`` and notebooks show."""
        unit = "of all images together" if self.joint else "per image"
        count = "" if self.joint else f"n = {len(self.log_px)}, "
        trusted = f"{self.pareto_k.median():.2f} (median), {self.pareto_k.max():.2f} (largest)"
        surely = f"{self.trusted.double().mean():.1%} of the images"
        unknown, untrusted = math.isnan(self.untrusted), f"k̂ > {TRUSTED} for {self.untrusted:.1%} of the images"
        rows = (
            ("Monte Carlo error", f"{self.monte_carlo_error:.4f} nats"),
            ("effective sample size", f"{self.ess.median():.0f} (median), {self.ess.min():.1f} (least)"),
            ("Pareto k̂", "too few particles for k̂" if unknown else trusted),
            ("error can be trusted", "too few particles to tell" if unknown else surely),
        )
        doubt = f"{untrusted}: neither their log p(x) nor its error can be trusted; {self.ADVICE}"
        title = f"log p(x) ≥ {self._value(3)} nats {unit} ({count}K = {self.num_particles}, seed {self.seed})"
        return Shown(title, rows, notes=[doubt] if self.untrusted > 0 else [])

    def __str__(self) -> str:
        return str(self._shown())

    def __repr__(self) -> str:
        unit = "of all images together" if self.joint else f"per image, n = {len(self.log_px)}"
        k_hat = "" if math.isnan(self.untrusted) else f", {self.DOUBT} for {self.untrusted:.1%}"
        name, value = type(self).__name__, self._value(2)
        return on_one_line(f"{name}(log p(x) ≥ {value} nats {unit}, K = {self.num_particles}{k_hat})")

    def _repr_html_(self) -> str:
        return self._shown().html()

    def _value(self, digits: int) -> str:
        error = self.mean_standard_error
        return f"{self.mean:.{digits}f}" + ("" if math.isnan(error) else f" ± {error:.{digits}f}")


@dataclass(frozen=True, kw_only=True, repr=False)
class AnnealedEvidence(Evidence):
    """``Evidence`` whose weights are those of ``num_particles`` annealed chains for each image.

    Attributes:
        acceptance: mean acceptance probability of the chains' proposals, (images,).
        step_size: at the last transition, (images,), in standard deviations of the starting density.
        num_temperatures: their number, T.
    """

    ADVICE: ClassVar[str] = "more temperatures (num_temperatures) help, more chains do not"
    COLUMNS: ClassVar[tuple[str, ...]] = (*Evidence.COLUMNS, "acceptance", "step_size")

    acceptance: Tensor
    step_size: Tensor
    num_temperatures: int

    @property
    def lone(self) -> Tensor:
        """The images of which a single chain makes up most of p̂, (images,): where chains are too few for k̂, ess < 2.

        Their chains have not reached the posterior together, and log p(x) may be far above log p̂.
        """
        return self.pareto_k.isnan() & (self.ess < 2) & (self.num_particles >= 4)

    @property
    def doubt(self) -> str:
        """A sentence about the images that are ``lone``; empty where there is none."""
        count, images = int(self.lone.sum()), len(self.lone)
        if not count:
            return ""
        return (
            f"a single one of {self.num_particles} chains makes up most of p(x) for {count} of {images} images: "
            f"log p(x) may be far higher than any error here says; {self.ADVICE}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the summary of ``Evidence``, with acceptance, step size and number of temperatures."""
        return super().to_dict() | {
            "num_temperatures": self.num_temperatures,
            "acceptance": self.acceptance.mean().item(),
            "step_size": self.step_size.mean().item(),
        }

    def _shown(self) -> Shown:
        """Return what ``print`` and notebooks show."""
        shown, acceptance = super()._shown(), f"{self.acceptance.mean():.2f}"
        rows = (*shown.rows, ("temperatures", self.num_temperatures), ("acceptance", acceptance))
        return replace(shown, rows=rows, notes=[*shown.notes, *filter(None, [self.doubt])])


def from_log_weights(log_w: Tensor, seed: int | None = None) -> Evidence:
    """Return the ``Evidence`` of log weights (K, images) from any source.

    Raises ValueError unless ``log_w`` is a tensor of two dimensions in float32 or float64; if the log weights of an
    image are all −inf; and if any is NaN or +inf.

    >>> from_log_weights(torch.zeros(100, 2)).ess
    tensor([100., 100.], dtype=torch.float64)
    """
    precise = isinstance(log_w, Tensor) and log_w.dtype in (torch.float32, torch.float64)
    if not precise or log_w.dim() != 2 or not log_w.numel():
        got = f"{log_w.dtype} of shape {tuple(log_w.shape)}" if isinstance(log_w, Tensor) else type(log_w).__name__
        raise ValueError(f"log_w: wanted a tensor (K, images) of float32 or float64, got {got}")
    log_px, error, ess, k_hat = joined([weight_statistics(as_array(log_w))])
    return Evidence(log_px, error, ess, k_hat, len(log_w), seed)


def weight_statistics(log_w: np.ndarray, first: int = 0) -> tuple[np.ndarray, ...]:
    """Compute log p̂, standard error, effective sample size and k̂ from log weights (K, B), in float64.

    NumPy has float64 on every machine; some devices of torch do not. ``first`` is the index of image 0, for errors.

    >>> [value.round(2).tolist() for value in weight_statistics(np.log([[1.0], [3.0]]))[:3]]
    [[0.69], [0.5], [1.6]]
    """
    log_w, rounded = log_w.astype(np.float64), log_w
    peak = log_w.max(0)
    _check_weights(log_w, peak, first)
    w = np.exp(log_w - peak)
    mean, K = w.mean(0), len(w)
    error = w.std(0, ddof=1) / (mean * math.sqrt(K)) if K > 1 else np.full_like(mean, np.nan)
    ess = w.sum(0) ** 2 / (w**2).sum(0)
    return peak + np.log(mean), error, ess, pareto_k(log_w, rounding_error(rounded))


def as_array(tensor: Tensor) -> np.ndarray:
    """Return the values of a tensor on any device as a NumPy array."""
    return tensor.detach().cpu().numpy()


def joined(batches: Iterable[Sequence[np.ndarray]]) -> Iterator[Tensor]:
    """Yield each value of the images, joined from its batches."""
    # Unlike torch.from_numpy, DLPack never converts float64.
    return (torch.from_dlpack(np.concatenate(values)) for values in zip(*batches))


def warn_untrusted(evidence: Evidence) -> None:
    """Warn the caller of an evidence function of images that cannot be trusted, and give advice."""
    if evidence.untrusted > 0:
        count = round(evidence.untrusted * len(evidence.pareto_k))
        warn(
            f"{evidence.DOUBT} for {count} of {len(evidence.pareto_k)} images ({evidence.untrusted:.1%}): neither "
            f"their log p(x) nor its standard error can be trusted; {evidence.ADVICE}",
            UntrustedEvidence,  # the caller of a function under takes_program
        )


def _check_weights(log_w: np.ndarray, peak: np.ndarray, first: int) -> None:
    broken = (np.flatnonzero(np.isnan(log_w).any(0) | (peak == math.inf)) + first).tolist()
    if broken:
        raise ValueError(
            f"log weights are NaN or +inf for the images {listed(broken)}; look at their x and at the parameters with "
            "pyro.validation_enabled(True)"
        )
    lost = (np.flatnonzero(peak == -math.inf) + first).tolist()
    if lost:
        raise ValueError(
            f"every log weight is −inf for the images {listed(lost)}: no draw of z can have made them; give more "
            "particles, a broader guide, or a likelihood that is nowhere zero"
        )


def standard_error(values: Tensor) -> float:
    """Return the standard error of the mean of values (images,); NaN for a single one.

    >>> round(standard_error(torch.tensor([0.0, 2.0])), 3)
    1.0
    """
    return values.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.nan


def numbered(columns: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """Return columns as arrays, and the number of each image."""
    arrays = {name: as_array(values) for name, values in columns.items()}
    return {"image": np.arange(len(next(iter(arrays.values())))), **arrays}


def finite_or_none(value: Any) -> Any:
    """Return the value, or None for a float that JSON does not have.

    >>> finite_or_none(math.nan), finite_or_none(2)
    (None, 2)
    """
    return value if not isinstance(value, float) or math.isfinite(value) else None
