"""A VAE of the rows of a matrix, as an estimator of scikit-learn."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from pyro_vae.checks import positive_number, whole_number
from pyro_vae.data.splits import Data, Split
from pyro_vae.evidence.results import Evidence, as_array, joined, warn_untrusted, weight_statistics
from pyro_vae.guides import MeanField
from pyro_vae.likelihoods import NegativeBinomial, RealNormal
from pyro_vae.likelihoods.base import RowLikelihood
from pyro_vae.networks import Log1p, MLPDecoder, MLPEncoder
from pyro_vae.priors import StandardNormal
from pyro_vae.random import measurement, seeded
from pyro_vae.training import History, fit
from pyro_vae.vae import VAE

try:
    from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
    from sklearn.preprocessing import StandardScaler
    from sklearn.utils import check_array, check_random_state
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise ImportError("VAETransformer needs scikit-learn 1.6; install it by pip install 'pyro_vae[data]'") from error

NUMBERS_AT_ONCE = 1 << 22  # outputs of a decoder that are in memory at once


class Bits(RowLikelihood):
    """Bernoulli distributions of rows of 0 and 1, (..., D), the field ``table``.

    >>> Bits(MLPDecoder(2, (7,), maps=7))(torch.zeros(5, 2)).event_shape
    torch.Size([7])
    """

    field = "table"
    parameters_per_pixel = 1

    def pixel_distribution(self, logits: Tensor) -> TorchDistribution:
        """Return Bernoulli distributions with these logits."""
        return dist.Bernoulli(logits=logits)


class Family(NamedTuple):
    """What a word for the likelihood stands for.

    ``make`` returns the likelihood of a network and D; ``start`` the decoder's last bias from the means of the columns,
    so that training begins at these; ``scaling`` is the encoder's first layer; ``allows`` says which values have a
    probability, in words ``support``; ``cure`` is what to write for others.
    """

    make: Callable[[nn.Module, int], RowLikelihood]
    start: Callable[[Tensor], Tensor]
    scaling: Callable[[], nn.Module] | None
    allows: Callable[[np.ndarray], np.ndarray]
    support: str
    cure: str


FAMILIES = {
    "normal": Family(
        lambda network, D: RealNormal(network, nn.Parameter(torch.zeros(D))),
        torch.zeros_like,
        None,
        np.isfinite,
        "",
        "",
    ),
    "bernoulli": Family(
        lambda network, D: Bits(network),
        lambda mean: mean.clamp(1e-3, 1 - 1e-3).logit(),
        None,
        lambda X: (X == 0) | (X == 1),
        "0 or 1",
        'write X > threshold, or likelihood="normal"',
    ),
    "negative-binomial": Family(
        lambda network, D: NegativeBinomial(network, nn.Parameter(torch.zeros(D))),
        lambda mean: mean.clamp(min=1e-3).log(),
        Log1p,
        lambda X: (X >= 0) & (X.round() == X),
        "counts, whole numbers from 0",
        'give the raw counts, or write likelihood="normal"',
    ),
}


class VAETransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """A VAE that scikit-learn can use: codes by ``transform``, log p(x) by ``score_samples``.

    X is a matrix (N, D) of finite numbers; reshape pictures by ``images.reshape(len(images), -1)``. The prior is
    N(0, I), q(z | x) a diagonal normal, both networks are dense. For other parts, for labels, missing cells or columns
    of several kinds write a program, such as ``pyro_vae.VAE``, and train it by ``pyro_vae.fit``.

    Args:
        latent: dimensions of z.
        hidden: widths of the hidden layers of the encoder; the decoder has them in reverse. With () both are linear,
            and "normal" is factor analysis.
        likelihood: "normal", of real columns, which ``fit`` standardises; each has its own learned scale, at least
            e⁻⁶ standard deviations. "bernoulli", of 0 and 1. "negative-binomial", of counts.
        epochs: passes over the training rows. The epoch with the highest bound on the held-out rows is kept.
        batch_size: rows of a step; all of them where there are fewer.
        lr: step of Adam.
        particles: K, draws of z for each row in ``score_samples``.
        validation_fraction: share of the rows that are held out to choose the epoch, at least one row.
        random_state: an int, a ``RandomState`` or None. With an int, ``fit`` gives the same result each time.

    Attributes:
        vae_: the trained ``pyro_vae.VAE``, in float64. It scores (X − mean_) / scale_.
        history_: the ``History`` of the training.
        mean_, scale_: of the columns, (D,), as in ``StandardScaler``: a constant column has scale 1. Zeros and ones
            where the likelihood is not "normal".
        n_features_in_, feature_names_in_: of X in ``fit``; names only where X has them.

    Raises ValueError for NaN, for values outside the likelihood's support, and, in ``fit``, for invalid settings.

    >>> from sklearn.datasets import load_wine
    >>> X = load_wine().data
    >>> model = VAETransformer(latent=1, hidden=(), epochs=20, random_state=0).fit(X)
    >>> Z = model.transform(X)
    >>> Z.shape, model.inverse_transform(Z).shape, model.score_samples(X).shape
    ((178, 1), (178, 13), (178,))
    """

    vae_: VAE
    history_: History
    mean_: np.ndarray
    scale_: np.ndarray

    def __init__(
        self,
        latent: int = 2,
        *,
        hidden: Sequence[int] = (64,),
        likelihood: str = "normal",
        epochs: int = 100,
        batch_size: int = 64,
        lr: float = 3e-3,
        particles: int = 100,
        validation_fraction: float = 0.1,
        random_state: Any = None,
    ):
        self.latent = latent
        self.hidden = hidden
        self.likelihood = likelihood
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.particles = particles
        self.validation_fraction = validation_fraction
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> "VAETransformer":
        """Train the VAE on the rows of X (N, D), N ≥ 2; y is not used."""
        self._check_settings()
        X = self._checked(X, reset=True, ensure_min_samples=2)
        self.mean_, self.scale_ = _units(X, standard=self.likelihood == "normal")
        self._seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        rows = self._standardised(X).float()
        with seeded(self._seed):
            vae = self._built(rows)
            data = _held_out(str(vae.likelihood.field), rows, self.validation_fraction)
        self.history_ = fit(
            vae,
            data,
            epochs=self.epochs,
            batch_size=min(self.batch_size, len(data.train)),
            lr=self.lr,
            seed=self._seed,
            progress=False,
            engine="eager",
        )
        self.vae_, self._n_features_out = vae.double().eval(), self.latent
        return self

    @measurement
    def transform(self, X: Any) -> np.ndarray:
        """Return the means of q(z | x), (N, latent)."""
        x = self._observed(X)
        return as_array(self.vae_.posterior(x).mean)

    @measurement
    def inverse_transform(self, Z: Any) -> np.ndarray:
        """Return the means of p(x | z), (N, D), in the units of X, for codes (N, latent)."""
        check_is_fitted(self)
        Z = check_array(Z, dtype="float64", input_name="Z")
        if Z.shape[1] != self._n_features_out:
            raise ValueError(f"Z: wanted {self._n_features_out} columns, as transform returns, got {Z.shape[1]}")
        return as_array(self.vae_.likelihood(torch.tensor(Z)).mean) * self.scale_ + self.mean_

    @measurement
    def score_samples(self, X: Any) -> np.ndarray:
        """Return log p(x) of each row, (N,), in nats and in the units of X, by importance sampling with K draws.

        Log p is the logarithm of a density, or of a mass where the likelihood is one of 0 and 1 or of counts. In
        expectation the estimate is a lower bound (Burda et al. 2016). All rows share one set of K standard normal
        draws, so that the value of a row is always the same, whichever rows stand beside it. Warns by
        ``UntrustedEvidence`` where k̂ > 0.7; ``pyro_vae.log_evidence(model.vae_, x, K)`` gives the error of each row.
        """
        x = self._observed(X)
        K = whole_number("particles", self.particles)
        noise = torch.randn(K, 1, self._n_features_out, generator=torch.Generator().manual_seed(self._seed)).double()
        widest = max(x.shape[1], *map(int, self.hidden), *noise.shape[2:])
        size = max(1, NUMBERS_AT_ONCE // (K * widest))
        weights = (as_array(_log_weights(self.vae_, part, noise)) for part in x.split(size))
        found = [weight_statistics(log_w, first=i * size) for i, log_w in enumerate(weights)]
        log_px, error, ess, k_hat = joined(found)
        evidence = Evidence(log_px, error, ess, k_hat, K, self._seed)
        warn_untrusted(evidence)
        return as_array(evidence.log_px) - np.log(self.scale_).sum()

    def score(self, X: Any, y: Any = None) -> float:
        """Return the mean of ``score_samples(X)``, in nats per row; y is not used."""
        return float(self.score_samples(X).mean())

    def _check_settings(self) -> None:
        """Raise ValueError for settings that ``pyro_vae.fit`` does not check."""
        if not isinstance(self.hidden, Sequence | np.ndarray) or isinstance(self.hidden, str):
            raise ValueError(f"hidden: wanted a tuple of widths, got {self.hidden!r}; write e.g. (64,)")
        if self.likelihood not in FAMILIES:
            raise ValueError(f"likelihood: wanted one of {', '.join(FAMILIES)}, got {self.likelihood!r}")
        for name in ("latent", "particles", "batch_size"):
            whole_number(name, getattr(self, name))
        for width in self.hidden:
            whole_number("hidden", width)
        if positive_number("validation_fraction", self.validation_fraction) >= 1:
            raise ValueError(
                f"validation_fraction: wanted a number between 0 and 1, got {self.validation_fraction}; write e.g. 0.1"
            )

    def _checked(self, X: Any, **options: Any) -> np.ndarray:
        """Return X as scikit-learn checks it, in float64; raise ValueError for what has no probability."""
        X, family = validate_data(self, X, dtype=np.float64, **options), FAMILIES[self.likelihood]
        if not (allowed := family.allows(X)).all():
            raise ValueError(
                f"X: wanted {family.support}, got {X[~allowed][0]} for likelihood={self.likelihood!r}; {family.cure}"
            )
        return X

    def _standardised(self, X: np.ndarray) -> Tensor:
        return torch.from_numpy((X - self.mean_) / self.scale_)

    def _observed(self, X: Any) -> Tensor:
        """Return x, (N, D) in float64, of the rows that a fitted estimator is given."""
        check_is_fitted(self)
        return self._standardised(self._checked(X, reset=False))

    def _built(self, rows: Tensor) -> VAE:
        """Return a new VAE of rows (N, D)."""
        family, D, hidden = FAMILIES[self.likelihood], rows.shape[1], tuple(map(int, self.hidden))
        decoder = MLPDecoder(self.latent, (D,), maps=D, hidden=hidden[::-1])
        decoder.layers[-2].get_parameter("bias").data.copy_(family.start(rows.mean(0)))
        encoder = MLPEncoder((D,), hidden=hidden, scaling=family.scaling and family.scaling())
        return VAE(StandardNormal(self.latent), family.make(decoder, D), MeanField(encoder, self.latent))


def _units(X: np.ndarray, standard: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the means and scales of the columns; zeros and ones unless they are to be standardised."""
    if not standard:
        return np.zeros(X.shape[1]), np.ones(X.shape[1])
    scaler = StandardScaler().fit(X)
    return np.asarray(scaler.mean_), np.asarray(scaler.scale_)


def _held_out(field: str, rows: Tensor, fraction: float) -> Data:
    """Return the rows, shuffled, in two splits for training and validation; the latter stands for the test set too."""
    count = min(max(1, round(fraction * len(rows))), len(rows) - 1)
    valid, train = rows[torch.randperm(len(rows))].tensor_split([count])
    held_out = Split(**{field: valid})
    return Data("rows", Split(**{field: train}), held_out, held_out)


def _log_weights(vae: VAE, x: Tensor, noise: Tensor) -> Tensor:
    """Return log p(x, z) − log q(z | x), (K, N), for z = loc + scale ε with noise ε (K, 1, D)."""
    q = vae.posterior(x)
    z = q.mean + q.stddev * noise
    return vae.prior().log_prob(z) + vae.likelihood(z).log_prob(x) - q.log_prob(z)
