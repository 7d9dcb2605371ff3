"""Which rows are unlike those that a program was trained on? ``score``: log p(x) and two corrections of it."""

import io
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from scipy.optimize import brentq
from scipy.stats import mannwhitneyu, rankdata
from torch import Tensor, as_tensor, float64

from pyro_vae.data import Split
from pyro_vae.data.frames import framed
from pyro_vae.evidence import Evidence, LocalProposal, UntrustedEvidence, log_evidence
from pyro_vae.evidence.results import NORMAL_975
from pyro_vae.likelihoods.base import bits_per_dim
from pyro_vae.observation import fixed_x
from pyro_vae.optional import optional
from pyro_vae.program import Program
from pyro_vae.showing import Shown


@dataclass(frozen=True)
class AUC:
    """The area under the ROC curve: the probability that a strange row has the higher score than a normal one.

    Attributes:
        value: of the area; ties count by half.
        low, high: a 95 % interval, which is no point where all strange rows have the higher score (Newcombe 2006).
        standard_error: over rows (DeLong et al. 1988), those of a kind that has one row left out; NaN for one of each.
        normal, strange: the numbers of rows.
    """

    value: float
    low: float
    high: float
    standard_error: float
    normal: int
    strange: int

    @classmethod
    def of(cls, normal: Tensor | np.ndarray, strange: Tensor | np.ndarray) -> "AUC":
        """Return the area for scores (n,) of normal and (m,) of strange rows. Raises ValueError for none, and for NaN.

        >>> import torch
        >>> found = AUC.of(torch.arange(10.0), torch.tensor([2.5]))
        >>> found.value, round(found.low, 2), round(found.high, 2), round(found.standard_error, 2)
        (0.3, 0.05, 0.79, 0.15)
        """
        a, b = _checked("strange", strange), _checked("normal", normal)
        m, n, rank = len(a), len(b), rankdata(np.concatenate([a, b]))
        above, below = (rank[:m] - rankdata(a)) / n, 1 - (rank[m:] - rankdata(b)) / m
        variances = [share.var(ddof=1) / len(share) for share in (above, below) if len(share) > 1]
        value = float(mannwhitneyu(a, b).statistic) / (m * n)
        low, high = _interval(value, m, n)
        return cls(value, low, high, math.sqrt(sum(variances)) if variances else math.nan, n, m)


@dataclass(frozen=True)
class Scores:
    """Scores of rows, each the larger the stranger the row is: ``scores["-log p(x)"]`` and others, (rows,), float64.

    Attributes:
        evidence: log p(x) of each row, with ``standard_error``, ``pareto_k`` and ``trusted``.
        values: by name, in nats: "-log p(x)"; "typicality" and "complexity", where ``score`` gives them.
        typical: the mean of log p(x) over normal rows, from which typicality is a distance.
    """

    ADVICE: ClassVar[str] = "of strange rows that is to be expected; do not report their log p(x)"

    evidence: Evidence
    values: Mapping[str, Tensor]
    typical: float | None = None

    def __getitem__(self, name: str) -> Tensor:
        return self.values[name]

    def auc(self, other: "Scores") -> dict[str, AUC]:
        """Return for each score how well it finds the rows of ``other`` among these, which are normal.

        Raises ValueError unless both were made in the same way.
        """
        ways = [(list(s.values), s.typical, s.evidence.num_particles, type(s.evidence).__name__) for s in (self, other)]
        if ways[0] != ways[1]:
            raise ValueError(
                "other: wanted scores of the same kinds, typical log p(x) and particles, as in score(program, data, "
                f"particles, normal=normal) of both; got {ways[0][:3]} and {ways[1][:3]}"
            )
        return {name: AUC.of(values, other[name]) for name, values in self.values.items()}

    def to_frame(self) -> Any:
        """Return a pandas frame with a row for each row: its scores, and log p(x) as ``Evidence.to_frame`` has it."""
        columns = {name: values.numpy() for name, values in self.values.items()}
        return framed({**self.evidence.to_frame().reset_index(), **columns}, "image")

    def _shown(self) -> Shown:
        rows = [(name, f"{v.mean():.2f}", f"{v.min():.2f}", f"{v.max():.2f}") for name, v in self.values.items()]
        doubt = (
            f"k̂ > 0.7 for {self.evidence.untrusted:.1%} of the rows, whose log p(x) may be far too low: {self.ADVICE}"
        )
        return Shown(
            f"scores of {len(self.evidence.log_px)} rows, nats",
            rows,
            ("score", "mean", "least", "largest"),
            [doubt] if self.evidence.untrusted > 0 else [],
        )

    def __str__(self) -> str:
        return str(self._shown())

    def _repr_html_(self) -> str:
        return self._shown().html()


def score(
    program: Program,
    data: Split | Tensor,
    particles: int = 50,
    *,
    normal: Scores | None = None,
    proposal: LocalProposal | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Scores:
    """Score rows: the larger, the less they are like those that the program was trained on.

    - "-log p(x)", by ``log_evidence``. It calls simple images normal: a black one more than any image of the data.
    - "typicality": |log p(x) − its mean over normal rows| (Nalisnick et al. 2019), if ``normal`` has scores of these.
    - "complexity": −log P(x) less the length of x as a PNG file, 8 ln 2 nats a byte (Serrà et al. 2020). Of images
      whose ``program.likelihood`` is one of grey levels, so that there is a mass P, and which PNG can hold.

    Args:
        program: a trained module with ``model``, ``guide`` and ``observe``.
        data: a split, or images, uint8 (N, C, H, W), which the program observes by a fixed seed.
        particles: K, draws of z for each row.
        normal: ``score(program, held_out)``, of rows that are normal and that the program was not trained on.
        proposal: as in ``log_evidence``; ``LocalProposal()`` makes log p(x) right where the guide is poor.
        seed, progress: as in ``log_evidence``.

    Raises ValueError as ``log_evidence`` does. It warns of no row with k̂ > 0.7; the result has the share of these.

    >>> import pyro_vae as pv
    >>> digits = pv.load("digits").test
    >>> decoder = pv.networks.MLPDecoder(2, (1, 8, 8), maps=2)
    >>> encoder = pv.networks.MLPEncoder((1, 8, 8))
    >>> likelihood = pv.likelihoods.DiscretizedLogistic(decoder)
    >>> vae = pv.VAE(pv.priors.StandardNormal(2), likelihood, pv.guides.MeanField(encoder, 2))
    >>> held_out = score(vae, digits[:50])
    >>> list(score(vae, digits[50:], normal=held_out).values)
    ['-log p(x)', 'typicality', 'complexity']
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UntrustedEvidence)
        x: Any = fixed_x(program, data)
        evidence = log_evidence(program, x, particles, proposal=proposal, seed=seed, progress=progress)
    log_px, typical = evidence.log_px, None if normal is None else normal.evidence.mean
    values = {"-log p(x)": -log_px}
    if typical is not None:
        values["typicality"] = (log_px - typical).abs()
    width, images = getattr(getattr(program, "likelihood", None), "level_width", None), _images(data)
    if width is not None and images is not None and images.shape[1] in (1, 3):
        bits = bits_per_dim(log_px, images[0].numel(), width) * images[0].numel()
        values["complexity"] = (bits - png_bits(images)) * math.log(2)
    return Scores(evidence, values, typical)


def png_bits(pixels: Tensor) -> Tensor:
    """Return the length of images, uint8 (N, 1 or 3, H, W), as PNG files, in bits, (N,). It needs Pillow.

    >>> import torch
    >>> bool(png_bits(torch.zeros(1, 1, 28, 28, dtype=torch.uint8)) < 1000)
    True
    """
    pictures = optional("PIL.Image", "lengths of PNG files")

    def bits(image: np.ndarray) -> int:
        file = io.BytesIO()
        pictures.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(file, "png", optimize=True)
        return 8 * file.tell()

    return as_tensor([bits(image) for image in pixels.permute(0, 2, 3, 1).cpu().numpy()], dtype=float64)


def _images(data: Split | Tensor) -> Tensor | None:
    return data.images if isinstance(data, Split) else data


def _checked(kind: str, scores: Tensor | np.ndarray) -> np.ndarray:
    """Return scores as an array (n,), float64; raise ValueError unless there are some, none of them NaN."""
    values = as_tensor(scores).detach().cpu().double().numpy()
    if values.ndim != 1 or not len(values) or np.isnan(values).any():
        raise ValueError(
            f"{kind}: wanted scores (n,) of at least one row, got {np.isnan(values).sum()} NaN in shape "
            f"{values.shape}; leave out the rows that have none"
        )
    return values


def _interval(value: float, m: int, n: int) -> tuple[float, float]:
    """Return the areas whose own standard error is 1.96 times smaller than their distance (Newcombe 2006, method 5)."""

    def excess(area: float) -> float:
        variance = area * (1 - area) * (1 + ((m + n) / 2 - 1) * ((1 - area) / (2 - area) + area / (1 + area))) / (m * n)
        return (value - area) ** 2 - NORMAL_975**2 * variance

    tiny = 1e-9
    return brentq(excess, 0, min(value, 1 - tiny)), brentq(excess, max(value, tiny), 1)  # pyright: ignore[reportReturnType]
