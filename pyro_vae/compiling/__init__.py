"""Pyro programs traced by ``torch.export``, compiled, and compared with the eager ones."""

from pyro_vae.compiling.convolutions import Conv2d, ConvTranspose2d
from pyro_vae.compiling.export import Compiled, Untraceable, compiled

__all__ = [
    "Compiled",
    "Conv2d",
    "ConvTranspose2d",
    "Untraceable",
    "compiled",
]
