"""The pictures of a run."""

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyro_vae import VAE, analysis
from pyro_vae._lazy import LazyModule
from pyro_vae.conditional import Conditional
from pyro_vae.data import Data
from pyro_vae.random import mode, seeded
from pyro_vae.runs.folders import png
from pyro_vae.runs.measurement import SHOWN
from pyro_vae.training import History, fixed_x

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pyro_vae import plots
    from pyro_vae.plots import classes
else:  # after the training, as is matplotlib
    plots, classes = map(LazyModule, ("pyro_vae.plots", "pyro_vae.plots.classes"))

PICTURES = (
    "latent_plane",
    "reconstructions",
    "samples",
    "aggregate_posterior",
    "interpolation",
    "manifold",
    "learning_curves",
)
PATHS = 4  # in the picture of interpolations


def pictures(vae: VAE | Conditional, images: Data, history: History) -> dict[str, Callable[[], bytes]]:
    """Return the functions that draw each picture, by the name of its file."""
    figures = pictures_of_codes(vae, images) if isinstance(vae, VAE) else pictures_of_classes(vae, images)
    figures["learning_curves"] = lambda: plots.learning_curves(history)
    return {f"{name}.png": lambda figure=figure: png(figure()) for name, figure in figures.items()}


def pictures_of_classes(program: Conditional, images: Data) -> dict[str, Callable[[], "Figure"]]:
    """Return the functions that draw samples, ten of each class with the same ten z, and reconstructions."""

    def decoded(z: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad(), mode(program, training=False):
            return program.likelihood(torch.cat([z, program.one_hot(y, z)], -1)).mean

    def samples() -> "Figure":
        y = torch.arange(program.classes, device=images.test.labels.device).repeat_interleave(10)
        with seeded(0, y.device):
            z = program.prior().sample((10,)).repeat(program.classes, 1)
        names = [classes.plain(name) for name in images.classes] or [str(label) for label in range(program.classes)]
        return plots.image_rows(dict(zip(names, decoded(z, y).split(10))))

    def reconstructions() -> "Figure":
        x, y = fixed_x(program, images.test[:20])
        with torch.no_grad(), mode(program, training=False):
            q = program.q(x, y)
        return plots.reconstructions(x, decoded(q.mean, y))

    return {"samples": samples, "reconstructions": reconstructions}


def pictures_of_codes(vae: VAE, images: Data) -> dict[str, Callable[[], "Figure"]]:
    """Return the functions that draw the pictures of a VAE and its codes."""
    labels = None if images.test.labels is None else images.test.labels[:SHOWN]
    x = cache(lambda: fixed_x(vae, images.test.images[:SHOWN]))
    legend = "digit" if images.name in ("mnist", "digits") else "class"
    named = {"labels": labels, "legend": legend, "classes": images.classes}
    figures: dict[str, Callable[[], Figure]] = {
        "latent_plane": lambda: plots.latent_plane(analysis.codes(vae, x()), **named),
        "reconstructions": lambda: plots.reconstructions(x()[:20], analysis.reconstruct(vae, x()[:20])),
        "samples": lambda: plots.samples(analysis.sample_prior(vae, 100)),
        "aggregate_posterior": lambda: plots.aggregate_posterior(
            analysis.draw_posterior(vae, x()), analysis.draw_prior(vae, SHOWN), **named
        ),
        "interpolation": lambda: interpolation(vae, x()),
    }
    if vae.prior().event_shape == (2,):
        figures["manifold"] = lambda: plots.manifold(analysis.manifold(vae, side=20))
    return figures


def interpolation(vae: VAE, x: Tensor) -> "Figure":
    """Draw paths between pairs of images, the first and the second, the third and the fourth, and so on."""
    if len(x) < 2:
        raise ValueError("it needs two test images, got one")
    pairs = min(PATHS, len(x) // 2)
    ends = x[0 : 2 * pairs : 2], x[1 : 2 * pairs : 2]
    return plots.interpolation(analysis.interpolate(vae, *ends, steps=10), ends)
