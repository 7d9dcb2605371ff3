"""A small comparison without a bar, and the programs that its tests compare on."""

import torch
from programs import SHAPE

from pyro_vae.comparison import compare_estimators
from pyro_vae.linear_gaussian import LinearGaussian


def compare(*program_and_args, draws=100, **options):
    return compare_estimators(*program_and_args, draws=draws, progress=False, **options)


def oracle(offset=0.0):
    torch.manual_seed(0)
    program = LinearGaussian(torch.randn(5, 2, dtype=torch.float64), scale=0.7)
    program.posterior.loc_bias.data += offset
    return program, program.simulate(6)


def pictures(n=4):
    return torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(3)).round()
