#!/usr/bin/env python
"""Train one VAE and measure it: pictures, metrics and parameters in one folder. The same as ``pyro-vae train``.

    python experiments/run.py --lik bernoulli
    python experiments/run.py --lik categorical --bins 32 --latent 32 --epochs 20
    python experiments/run.py --recipe fast

Several processes, or machines, train one VAE together, each on its share of every batch:

    torchrun --nproc-per-node=2 experiments/run.py --lik bernoulli

A run that was stopped, by Ctrl-C, a signal or a loss of power, goes on where it stood with the same command and
--resume. So does one that has ended, with --resume and more --epochs.
"""

import sys

from pyro_vae.runs import train


def main(argv: list[str] | None = None) -> int:
    """Train and measure the VAE that the options describe; return the exit status."""
    return train.main(argv, __doc__, __file__)


if __name__ == "__main__":
    sys.exit(main())
