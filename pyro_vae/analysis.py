"""What a trained program has learned: codes, images, paths through latent space, probes of the codes.

``vae`` is a ``VAE``, or any other module with ``prior()``, ``likelihood(z)`` and ``posterior(x)``. x holds float images
in [0, 1] of shape (..., C, H, W), made from pixels by ``vae.observe``, or what else the likelihood scores, such as rows
(..., D) of counts; ValueError for others. x and program may be on different devices.

Every function runs without gradients and in evaluation mode, in batches of ``batch_size`` that bound the memory, and
returns tensors on the CPU. Random numbers are drawn from ``seed``: the same seed, batch size and machine give the same
result. The global random state and the training mode of the program stay unchanged.
"""

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, kl_divergence

from pyro_vae.checks import whole_number
from pyro_vae.distributions.rows import Row
from pyro_vae.errors import short_errors
from pyro_vae.optional import optional
from pyro_vae.random import mode, seeded

BATCH = 256
ACTIVE = 0.01  # variance over images of the mean of q above which a latent dimension is active (Burda et al. 2016)


def codes(vae: nn.Module, x: Tensor, *, batch_size: int = BATCH, samples: int = 256, seed: int = 0) -> Tensor:
    """Return the means of q(z | x), shape (..., D).

    For a guide whose mean has no closed form (a flow) it is the average of ``samples`` draws, whose variance is that of
    q divided by ``samples``.

    >>> from pyro_vae.linear_gaussian import LinearGaussian
    >>> codes(LinearGaussian(torch.randn(16, 2), shape=(1, 4, 4)), torch.rand(5, 1, 4, 4)).shape
    torch.Size([5, 2])
    """
    whole_number("samples", samples)
    return _encode(vae, x, lambda q: posterior_mean(q, samples), batch_size, seed)


def posterior_mean(q: Distribution, samples: int) -> Tensor:
    """Return the mean of a distribution in closed form if it has one, otherwise the average of ``samples`` draws.

    >>> posterior_mean(torch.distributions.Normal(torch.tensor([1.0, 2.0]), 1.0), samples=5)
    tensor([1., 2.])
    """
    try:
        return q.mean
    except NotImplementedError:
        return functools.reduce(torch.add, (q.sample() for _ in range(samples))) / samples


def draw_posterior(vae: nn.Module, x: Tensor, *, batch_size: int = BATCH, seed: int = 0) -> Tensor:
    """Draw one z ~ q(z | x) for each image, shape (..., D); together they are draws of the aggregate posterior.

    >>> from pyro_vae.linear_gaussian import LinearGaussian
    >>> draw_posterior(LinearGaussian(torch.randn(16, 2), shape=(1, 4, 4)), torch.rand(5, 1, 4, 4)).shape
    torch.Size([5, 2])
    """
    return _encode(vae, x, lambda q: q.sample(), batch_size, seed)


def draw_prior(vae: nn.Module, n: int, *, seed: int = 0) -> Tensor:
    """Draw n samples of p(z), shape (n, D).

    >>> from pyro_vae.linear_gaussian import LinearGaussian
    >>> draw_prior(LinearGaussian(torch.randn(16, 2), shape=(1, 4, 4)), 3).shape
    torch.Size([3, 2])
    """
    with _evaluating(vae, seed) as program:
        return program.prior().sample((whole_number("n", n),)).cpu()


def decode(vae: nn.Module, z: Tensor, *, batch_size: int = BATCH) -> Tensor:
    """Return the means of p(x | z) for z (..., D): images of shape (..., C, H, W), or rows (..., D).

    In a table's columns of levels it is the most probable level.

    >>> from pyro_vae.linear_gaussian import LinearGaussian
    >>> decode(LinearGaussian(torch.randn(16, 2), shape=(1, 4, 4)), torch.zeros(5, 2)).shape
    torch.Size([5, 1, 4, 4])
    """
    with _evaluating(vae) as program:
        return _batched(vae, lambda z: point(program.likelihood(z)), z, 1, batch_size)


def point(p: Distribution) -> Tensor:
    """Return one value for p(x | z), (*batch, *event): its mean; of a row of a table, its ``point``.

    >>> point(torch.distributions.Normal(torch.tensor([1.0, 2.0]), 1.0))
    tensor([1., 2.])
    """
    return p.point if isinstance(p, Row) else p.mean


def reconstruct(vae: nn.Module, x: Tensor, *, batch_size: int = BATCH, samples: int = 256, seed: int = 0) -> Tensor:
    """Return the decoded codes of x, shape (..., C, H, W); ``samples`` and ``seed`` as in ``codes``.

    >>> from pyro_vae.linear_gaussian import LinearGaussian
    >>> reconstruct(LinearGaussian(torch.randn(16, 2), shape=(1, 4, 4)), torch.rand(5, 1, 4, 4)).shape
    torch.Size([5, 1, 4, 4])
    """
    return decode(vae, codes(vae, x, batch_size=batch_size, samples=samples, seed=seed), batch_size=batch_size)


def sample_prior(vae: nn.Module, n: int, *, batch_size: int = BATCH, seed: int = 0) -> Tensor:
    """Return the decoded images of n draws of p(z), shape (n, C, H, W): means of p(x | z), without pixel noise.

    >>> from pyro_vae.linear_gaussian import LinearGaussian
    >>> sample_prior(LinearGaussian(torch.randn(16, 2), shape=(1, 4, 4)), 3).shape
    torch.Size([3, 1, 4, 4])
    """
    return decode(vae, draw_prior(vae, n, seed=seed), batch_size=batch_size)


def interpolate(vae: nn.Module, x_a: Tensor, x_b: Tensor, steps: int = 10, *, batch_size: int = BATCH) -> Tensor:
    """Decode the straight line from the code of x_a to the code of x_b: images of shape (..., steps, C, H, W).

    x_a and x_b have shape (..., C, H, W). The first and the last image are their reconstructions.

    >>> from pyro_vae.linear_gaussian import LinearGaussian
    >>> vae, x = LinearGaussian(torch.randn(16, 2), shape=(1, 4, 4)), torch.rand(2, 1, 4, 4)
    >>> interpolate(vae, x[0], x[1], steps=5).shape
    torch.Size([5, 1, 4, 4])
    """
    if x_a.shape != x_b.shape:
        raise ValueError(f"x_a and x_b: wanted images of one shape, got {tuple(x_a.shape)} and {tuple(x_b.shape)}")
    z_a, z_b = (codes(vae, x, batch_size=batch_size).unsqueeze(-2) for x in (x_a, x_b))
    t = torch.linspace(0, 1, whole_number("steps", steps, least=2), dtype=z_a.dtype).unsqueeze(-1)
    return decode(vae, (1 - t) * z_a + t * z_b, batch_size=batch_size)


def manifold(vae: nn.Module, side: int = 20, *, batch_size: int = BATCH) -> Tensor:
    """Decode a grid of the latent plane, shape (side, side, C, H, W) (Kingma & Welling 2013, figure 4).

    z = Φ⁻¹(u) for the midpoints u = (i + ½) / side of the unit square. Each cell has equal mass under N(0, I), also if
    the program has another prior. z_1 grows to the right and z_2 upwards: the first row has the greatest z_2. Raises
    ValueError unless z has two dimensions.

    >>> from pyro_vae.linear_gaussian import LinearGaussian
    >>> manifold(LinearGaussian(torch.randn(16, 2), shape=(1, 4, 4)), side=3).shape
    torch.Size([3, 3, 1, 4, 4])
    """
    latent = _latent(vae)
    if latent != 2:
        raise ValueError(f"manifold: wanted a latent plane (D = 2), got D = {latent}; use interpolate or sample_prior")
    u = (torch.arange(whole_number("side", side), dtype=torch.float64) + 0.5) / side
    z = torch.special.ndtri(u)
    z_2, z_1 = torch.meshgrid(z.flip(0), z, indexing="ij")
    return decode(vae, torch.stack([z_1, z_2], -1), batch_size=batch_size)


def pseudo_gibbs(
    vae: nn.Module, x: Tensor, mask: Tensor, *, steps: int = 100, batch_size: int = BATCH, seed: int = 0
) -> Tensor:
    """Return x with its missing pixels filled in by a Markov chain, shape (..., C, H, W) (Rezende et al. 2014).

    The chain z ~ q(z | x), x_missing ~ p(x | z) runs for ``steps`` steps from a draw of the program. It is pseudo-Gibbs
    sampling, exact if q is. The missing values returned are the ``point`` of p(x | z) at the last z, of pixels their
    mean: those of one draw of z, without an error bar. ``imputation.impute`` gives E[x_missing | x_seen] and its error
    bars, for any program. ``mask`` is a boolean tensor, True for each value that was seen, and broadcasts against x.

    >>> from pyro_vae.linear_gaussian import LinearGaussian
    >>> vae, x = LinearGaussian(torch.randn(16, 2), shape=(1, 4, 4)), torch.rand(5, 1, 4, 4)
    >>> mask = torch.arange(4) >= 2  # the right half
    >>> torch.equal(pseudo_gibbs(vae, x, mask)[..., 2:], x[..., 2:])
    True
    """
    dims = _event_dim(vae, x)
    whole_number("steps", steps)
    if mask.dtype != torch.bool:
        raise ValueError(f"mask: wanted a boolean tensor, True where the pixel was seen, got {mask.dtype}")
    mask = mask.to(x.device).expand(x.shape)

    def chain(pair: Tensor) -> Tensor:
        x, mask = pair[:, 0], pair[:, 1].bool()
        p = program.likelihood(program.prior().sample(x.shape[:1]))
        for _ in range(steps):
            x = torch.where(mask, x, p.sample())
            p = program.likelihood(program.posterior(x).sample())
        return torch.where(mask, x, point(p))

    with _evaluating(vae, seed) as program:
        return _batched(vae, chain, torch.stack([x, mask.to(x.dtype)], -dims - 1), dims + 1, batch_size)


def knn_accuracy(
    train_codes: Tensor, train_labels: Tensor, test_codes: Tensor, test_labels: Tensor, neighbours: int = 15
) -> float:
    """Return the share of test codes whose label is the majority label of their nearest training codes (Euclidean).

    Codes of the label −1, unknown, are left out.

    >>> a, b = torch.tensor([[0.0], [0.1], [1.0], [1.1]]), torch.tensor([0, 0, 1, 1])
    >>> knn_accuracy(a, b, torch.tensor([[-1.0], [2.0]]), torch.tensor([0, 1]), neighbours=1)
    1.0
    """
    train, test = _labelled("train", train_codes, train_labels), _labelled("test", test_codes, test_labels)
    if not 1 <= neighbours <= len(train[0]):
        raise ValueError(f"neighbours: wanted 1 to {len(train[0])} (the training codes), got {neighbours}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The number of unique classes is greater than")  # labels are classes
        classifier = optional("sklearn.neighbors", "probes of codes").KNeighborsClassifier(neighbours)
        return float(classifier.fit(*train).score(*test))


def linear_probe_accuracy(
    train_codes: Tensor, train_labels: Tensor, test_codes: Tensor, test_labels: Tensor, max_iter: int = 1000
) -> float:
    """Return the accuracy on test codes of a logistic regression on the training codes, each dimension standardised.

    Codes of the label −1, unknown, are left out.

    >>> a, b = torch.tensor([[0.0], [0.1], [1.0], [1.1]]), torch.tensor([0, 0, 1, 1])
    >>> linear_probe_accuracy(a, b, torch.tensor([[-1.0], [2.0]]), torch.tensor([0, 1]))
    1.0
    """
    train, test = _labelled("train", train_codes, train_labels), _labelled("test", test_codes, test_labels)
    scaler = optional("sklearn.preprocessing", "probes of codes").StandardScaler()
    regression = optional("sklearn.linear_model", "probes of codes").LogisticRegression(max_iter=max_iter)
    probe = optional("sklearn.pipeline", "probes of codes").make_pipeline(scaler, regression)
    return float(probe.fit(*train).score(*test))


def active_units(codes: Tensor, threshold: float = ACTIVE) -> Tensor:
    """Return which latent dimensions are used, Var_x(E_q[z_d | x]) > threshold: shape (D,), bool (Burda et al. 2016).

    ``codes`` (N, D) are the means of q. Means that are themselves averages of S draws add Var(z_d | x) / S to the
    variance, 0.004 for an unused dimension at the default of ``codes``: choose a threshold well above that.

    >>> active_units(torch.tensor([[1.0, 0.01], [-1.0, -0.01]]))
    tensor([ True, False])
    """
    if codes.dim() != 2 or len(codes) < 2:
        raise ValueError(f"codes: wanted at least two codes, shape (N, D), got {tuple(codes.shape)}")
    if codes.isnan().any():
        raise ValueError(f"codes: {codes.isnan().any(1).sum()} of {len(codes)} hold NaN; leave them out, or look at x")
    return codes.double().var(0) > threshold


def rate_per_dimension(vae: nn.Module, x: Tensor, *, batch_size: int = BATCH) -> Tensor:
    """Return KL(q(z_d | x) ‖ p(z_d)), averaged over the images: shape (D,), float64, in nats per image.

    The prior must be factorised. If q is too, the sum over d is the rate. For a normal with full or low-rank covariance
    these are the KLs of its marginals, whose sum is the rate minus the total correlation of q (Watanabe 1960). Raises
    ValueError for any other prior or guide, whose rate does not split into dimensions, and for no images.

    >>> from pyro_vae.linear_gaussian import LinearGaussian
    >>> rate_per_dimension(LinearGaussian(torch.randn(16, 2), shape=(1, 4, 4)), torch.rand(5, 1, 4, 4)).shape
    torch.Size([2])
    """

    def rate(x: Tensor) -> Tensor:
        q, p = _marginals("posterior", program.posterior(x)), _factors("prior", program.prior())
        try:
            return kl_divergence(q, p).double()
        except NotImplementedError as error:
            kinds = f"{type(q).__name__} and {type(p).__name__}"
            raise ValueError(
                f"prior, posterior: wanted a registered KL divergence, got none between {kinds}; register_kl adds one"
            ) from error

    dims = _event_dim(vae, x)
    if not x.numel():
        raise ValueError(f"x: wanted at least one row to average over, got shape {tuple(x.shape)}; give some rows")
    with _evaluating(vae) as program, short_errors([x]):
        return _batched(vae, rate, x, dims, batch_size).reshape(-1, _latent(vae)).mean(0)


def _marginals(slot: str, p: Distribution) -> Distribution:
    """Return the distributions of the single z_d, batch (..., D), event ()."""
    if isinstance(p, torch.distributions.MultivariateNormal | torch.distributions.LowRankMultivariateNormal):
        return torch.distributions.Normal(p.mean, p.variance.sqrt())
    return _factors(slot, p)


def _factors(slot: str, p: Distribution) -> Distribution:
    if isinstance(p, Independent) and p.reinterpreted_batch_ndims == 1 and not p.base_dist.event_shape:
        return p.base_dist
    raise ValueError(
        f"{slot}: the rate splits into dimensions only for a distribution such as Normal(...).to_event(1), "
        f"got {type(p).__name__}; evaluate(program, images) gives the rate as a whole"
    )


@contextmanager
def _evaluating(vae: nn.Module, seed: int = 0) -> Iterator[Any]:
    """Context manager with evaluation mode, no gradients and random numbers of its own; it yields the program."""
    with torch.no_grad(), seeded(seed, _like(vae).device), mode(vae, training=False):
        yield vae


def _encode(
    vae: nn.Module, x: Tensor, statistic: Callable[[Distribution], Tensor], batch_size: int, seed: int
) -> Tensor:
    dims = _event_dim(vae, x)
    with _evaluating(vae, seed) as program, short_errors([x]):
        return _batched(vae, lambda x: statistic(program.posterior(x)), x, dims, batch_size)


def _batched(
    vae: nn.Module, function: Callable[[Tensor], Tensor], value: Tensor, event_dim: int, batch_size: int
) -> Tensor:
    """Apply the function to batches of a value (..., *event), and join the results on the CPU."""
    batch, event = value.shape[: value.dim() - event_dim], value.shape[value.dim() - event_dim :]
    parts = value.reshape(batch.numel(), *event).split(whole_number("batch_size", batch_size))
    out = torch.cat([function(part.to(_like(vae))).cpu() for part in parts])
    return out.reshape(*batch, *out.shape[1:])


def _like(vae: nn.Module) -> Tensor:
    """Return a tensor with the device and the dtype of the program."""
    return next(parameter for parameter in vae.parameters() if parameter.is_floating_point())


def _latent(vae: Any) -> int:
    with torch.no_grad():
        return vae.prior().event_shape[-1]


def _event_dim(vae: Any, x: Tensor) -> int:
    """Return the number of event dimensions of x, and check that x may be that of the program."""
    dims = getattr(vae.likelihood, "event_dim", 3 if hasattr(vae, "classes") else None)  # given classes, x are images
    if dims is None:
        with _evaluating(vae) as program:
            dims = program.likelihood(program.prior().sample((1,))).event_dim
    if not x.is_floating_point() or x.dim() < dims:
        wanted, raw = ("images", "uint8 pixels") if dims == 3 else (f"x of {dims} or more dimensions", "raw rows")
        shape = " of shape (..., C, H, W)" if dims == 3 else ""
        raise ValueError(
            f"x: wanted float {wanted}{shape}, got {x.dtype} of shape {tuple(x.shape)}; make x from {raw} by "
            "vae.observe(batch)"
        )
    if dims == 3 and getattr(vae.likelihood, "field", None) == "images":
        first = x[..., 0, :, :]  # the last channel may be that of a class
        if ((first < 0) | (first > 1)).any():
            raise ValueError(
                f"x: wanted images in [0, 1], got values from {first.min():.4g} to {first.max():.4g}; make x from "
                "uint8 pixels by vae.observe(batch)"
            )
    return dims


def _labelled(split: str, codes: Tensor, labels: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return the codes whose class is known, and their labels."""
    if labels is None or codes.dim() != 2 or labels.shape != codes.shape[:1]:
        got = "no labels" if labels is None else f"{tuple(codes.shape)} and {tuple(labels.shape)}"
        raise ValueError(f"{split}: wanted codes (N, D) and as many labels (N,), got {got}")
    known = labels != -1
    if not known.any():
        raise ValueError(f"{split}: wanted codes whose class is known, got {len(codes)} of the label −1, unknown")
    return codes[known.to(codes.device)].detach().cpu().numpy(), labels[known].detach().cpu().numpy()


def __getattr__(name: str) -> Any:
    if name == "impute":  # its name in 0.1, where the mask said what is missing
        raise AttributeError(
            "analysis.impute is now analysis.pseudo_gibbs(vae, x, mask), with a mask that is True where a value was "
            "seen; pyro_vae.impute gives error bars"
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
