"""Whether the mean gradients of two estimators agree."""

import itertools
import math
from collections.abc import Collection, Iterator, Mapping

import torch
from pyro.infer import ELBO
from scipy.special import fdtrc, ndtri
from torch import Tensor

from pyro_vae.comparison.intervals import TAIL, skewness, without_skewness
from pyro_vae.comparison.moments import Mean, rounding
from pyro_vae.comparison.results import Agreement
from pyro_vae.estimation import describe
from pyro_vae.tracing.leaves import ProgramParameters


def agreements(
    estimators: Mapping[str, ELBO],
    means: Mapping[str, Mapping[str, Mean]],
    parameters: ProgramParameters,
    agree: Collection[frozenset[str]],
) -> Iterator[Agreement]:
    """Compare each pair of estimators in each group of parameters.

    Args:
        estimators: by name.
        means: mean gradients by name of the estimator and group, "guide" or "model".
        parameters: of the program, in the order of the gradients.
        agree: pairs of names that should agree, beyond those whose descriptions say so.
    """
    described = {name: describe(elbo) for name, elbo in estimators.items()}
    for first, second in itertools.combinations(estimators, 2):
        for group in means[first]:
            mean, other = means[first][group], means[second][group]
            z, coordinate = largest_z(mean, other)
            known = described[first].agrees_with(described[second], group)
            yield Agreement(
                first=first,
                second=second,
                group=group,
                largest_z=z,
                typical_largest_z=typical_largest_z(len(mean.mean)),
                parameter=_parameter_name(getattr(parameters, group), coordinate),
                p_value=equal_means_p_value(mean, other),
                expected=known or frozenset((first, second)) in agree,
            )


def largest_z(a: Mean, b: Mean) -> tuple[float, int]:
    """Return the largest |difference of the means| in standard errors over all coordinates, and the coordinate.

    A difference within rounding counts as zero.

    >>> nothing = torch.zeros(1, 1)
    >>> mean = lambda m: Mean(torch.tensor(m), torch.tensor([0.3, 0.3]), nothing[0], nothing, 9, nothing)
    >>> z, coordinate = largest_z(mean([0.0, 1.0]), mean([0.0, 2.0]))
    >>> round(z, 1), coordinate
    (2.4, 1)
    """
    best, where = 0.0, 0
    step = 1 << 18
    for start in range(0, len(a.mean), step):
        (mean_a, mean_b), (error_a, error_b) = (
            [getattr(mean, name)[start : start + step].to(a.mean) for mean in (a, b)] for name in ("mean", "error")
        )
        error = (error_a.square() + error_b.square() + rounding(mean_a).square() + rounding(mean_b).square()).sqrt()
        z = ((mean_a - mean_b).abs() / error).nan_to_num(0.0)
        top = z.max(0)
        if top.values > best:
            best, where = top.values.item(), start + int(top.indices)
    return best, where


def typical_largest_z(coordinates: int) -> float:
    """Return the median of the largest |z| of this many independent z ~ N(0, 1).

    >>> round(typical_largest_z(1), 2), round(typical_largest_z(1_000_000), 2)
    (0.67, 4.96)
    """
    return float(-ndtri(-math.expm1(-math.log(2) / coordinates) / 2))


def equal_means_p_value(a: Mean, b: Mean) -> float:
    """Return the p-value of the hypothesis that two vectors have one mean.

    The test is Hotelling's T² of the projections with unequal covariances: T² = dᵀ (S_a/n_a + S_b/n_b)⁻¹ d is compared
    with ν k/(ν − k + 1) F(k, ν − k + 1), ν by Krishnamoorthy & Yu (2004). Before that, T is corrected for the skewness
    of the draws (Hall 1992, see ``intervals.interval``) if the correction makes it smaller: if draws have missed a
    heavy tail on one side, their mean is shifted. The skewness is taken in the direction in which the means differ
    most. The p-value is 0 if projections differ that vary by no more than rounding.

    >>> from pyro_vae.comparison.moments import Moments
    >>> moments = Moments([5], torch.zeros(1)), Moments([5], torch.zeros(1))
    >>> for i in range(2):
    ...     for g in torch.randn(100, 5, generator=torch.Generator().manual_seed(i)) + i:
    ...         t = moments[i].add(g)
    ...     moments[i].end_batch()
    >>> equal_means_p_value(moments[0].mean(), moments[1].mean()) < 1e-6
    True
    """
    d, scale = a.projected - b.projected, (a.covariance + b.covariance).diagonal().sqrt()
    noise = (rounding(a.projected.to(a.mean)) + rounding(b.projected.to(b.mean))).double()
    varies = scale > noise
    if (d.abs() > 10 * noise)[~varies].any():
        return 0.0
    if not varies.any():
        return 1.0
    d, scale = d[varies] / scale[varies], scale[varies]
    covariances = [mean.covariance[varies][:, varies] / torch.outer(scale, scale) for mean in (a, b)]
    white = _whitening(covariances[0] + covariances[1])
    k, whitened = white.shape[1], d @ white
    t = whitened.norm().item()
    direction = white @ (whitened / max(t, 1e-300))  # in which the means differ most
    u = torch.cat([sign * mean.sections[:, varies] / scale @ direction for sign, mean in ((1, a), (-1, b))])
    t_squared = max(0.0, min(t, without_skewness(t, TAIL * skewness(u)))) ** 2  # t where the skewness is NaN
    parts = [white.T @ covariance @ white for covariance in covariances]
    spread = sum((part.square().sum() + part.trace() ** 2).item() / mean.freedom for part, mean in zip(parts, (a, b)))
    freedom = (k + k * k) / spread
    return float(fdtrc(k, freedom - k + 1, t_squared * (freedom - k + 1) / (freedom * k))) if freedom > k else math.nan


def _whitening(covariance: Tensor) -> Tensor:
    """Return W with Wᵀ covariance W = I, without the directions that do not vary."""
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > 1e-9 * values.max()
    return vectors[:, kept] / values[kept].sqrt()


def _parameter_name(leaves: Mapping[str, Tensor], coordinate: int) -> str:
    """Return the parameter that a coordinate of the flat vector belongs to, with its index."""
    for name, leaf in leaves.items():
        if coordinate < leaf.numel():
            index = [str(int(i)) for i in torch.unravel_index(torch.tensor(coordinate), leaf.shape)]
            return f"{name}[{', '.join(index)}]" if index else name
        coordinate -= leaf.numel()
    raise IndexError(coordinate)
