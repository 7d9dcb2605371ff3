"""The pictures of a run."""

from collections.abc import Callable
from functools import cache

from torch import Tensor

from pyro_vae import VAE, analysis, plots
from pyro_vae.data import Data
from pyro_vae.runs.folders import png
from pyro_vae.runs.measurement import SHOWN
from pyro_vae.training import History, fixed_x

PICTURES = (
    "latent_plane",
    "reconstructions",
    "samples",
    "aggregate_posterior",
    "interpolation",
    "learning_curves",
    "manifold",
)


def pictures(vae: VAE, images: Data, history: History) -> dict[str, Callable[[], bytes]]:
    """Return the functions that draw each picture, by the name of its file."""
    labels = None if images.test.labels is None else images.test.labels[:SHOWN]
    x = cache(lambda: fixed_x(vae, images.test.images[:SHOWN]))
    named = {"labels": labels, "legend": "digit" if images.name in ("mnist", "digits") else "label"}
    figures = {
        "latent_plane": lambda: plots.latent_plane(analysis.codes(vae, x()), **named),
        "reconstructions": lambda: plots.reconstructions(x()[:20], analysis.reconstruct(vae, x()[:20])),
        "samples": lambda: plots.samples(analysis.sample_prior(vae, 100)),
        "aggregate_posterior": lambda: plots.aggregate_posterior(
            analysis.draw_posterior(vae, x()), analysis.draw_prior(vae, SHOWN), **named
        ),
        "interpolation": lambda: plots.interpolation(analysis.interpolate(vae, *first_two(x()), steps=10)),
        "learning_curves": lambda: plots.learning_curves(history.rows),
    }
    if vae.prior().event_shape == (2,):
        figures["manifold"] = lambda: plots.manifold(analysis.manifold(vae, side=20))
    return {f"{name}.png": lambda figure=figure: png(figure()) for name, figure in figures.items()}


def first_two(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first two images, each as a batch of one."""
    if len(x) < 2:
        raise ValueError("it needs two test images, got one")
    return x[0:1], x[1:2]
