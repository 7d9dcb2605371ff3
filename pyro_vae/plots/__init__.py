"""Figures from results: each function takes tensors, arrays or numbers and returns a ``Figure``.

- ``plane``: codes in the latent plane, with ``classes`` for the labels.
- ``images``: images in rows and grids.
- ``curves``: learning curves, and the variance of gradient estimators.
- ``figures``: the one place that makes figures.
- ``style``: the colours and the resolution of all figures.

A notebook shows the figure that a function returns, with or without ``%matplotlib inline``. Save it with
``figure.savefig("plane.png")``. To draw into a figure of your own, give its axes: ``ax=`` for one panel, ``axes=`` for
a list of several; the function then returns these. The functions neither train nor draw random numbers, leave the
global state of matplotlib unchanged and need no display. Images are (..., C, H, W), in [0, 1] or uint8, grey (C = 1) or
red, green, blue (C = 3). With any other number of channels each channel is drawn as a grey image, one below the other.
matplotlib is imported when a function is first used: ``pip install 'pyro_vae[plots]'``.
"""

from typing import TYPE_CHECKING

from pyro_vae._lazy import lazy
from pyro_vae.plots.style import COLOURS, DPI, GREY, TRAIN, UNKNOWN, VALID

if TYPE_CHECKING:
    from pyro_vae.plots import classes as classes
    from pyro_vae.plots import curves as curves
    from pyro_vae.plots import figures as figures
    from pyro_vae.plots import images as images
    from pyro_vae.plots import plane as plane
    from pyro_vae.plots.curves import estimator_variance as estimator_variance
    from pyro_vae.plots.curves import learning_curves as learning_curves
    from pyro_vae.plots.figures import Figure as Figure
    from pyro_vae.plots.images import image_rows as image_rows
    from pyro_vae.plots.images import interpolation as interpolation
    from pyro_vae.plots.images import manifold as manifold
    from pyro_vae.plots.images import reconstructions as reconstructions
    from pyro_vae.plots.images import samples as samples
    from pyro_vae.plots.images import tiled as tiled
    from pyro_vae.plots.plane import aggregate_posterior as aggregate_posterior
    from pyro_vae.plots.plane import latent_plane as latent_plane

_EAGER = ["COLOURS", "DPI", "GREY", "TRAIN", "UNKNOWN", "VALID"]
_HOMES = {
    "Figure": "pyro_vae.plots.figures",
    "aggregate_posterior": "pyro_vae.plots.plane",
    "classes": "pyro_vae.plots.classes",
    "curves": "pyro_vae.plots.curves",
    "estimator_variance": "pyro_vae.plots.curves",
    "figures": "pyro_vae.plots.figures",
    "image_rows": "pyro_vae.plots.images",
    "images": "pyro_vae.plots.images",
    "interpolation": "pyro_vae.plots.images",
    "latent_plane": "pyro_vae.plots.plane",
    "learning_curves": "pyro_vae.plots.curves",
    "manifold": "pyro_vae.plots.images",
    "plane": "pyro_vae.plots.plane",
    "reconstructions": "pyro_vae.plots.images",
    "samples": "pyro_vae.plots.images",
    "tiled": "pyro_vae.plots.images",
}

__all__ = [
    "COLOURS",
    "DPI",
    "GREY",
    "TRAIN",
    "UNKNOWN",
    "VALID",
    "Figure",
    "aggregate_posterior",
    "estimator_variance",
    "image_rows",
    "interpolation",
    "latent_plane",
    "learning_curves",
    "manifold",
    "reconstructions",
    "samples",
    "tiled",
]
__getattr__, __dir__ = lazy(__name__, _HOMES, _EAGER)
