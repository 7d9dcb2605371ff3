#!/usr/bin/env python
"""How tight are the bounds on log p(x)? The same as ``pyro-vae evidence``.

python experiments/run.py --latent 20 --out figures/mnist
python experiments/evidence.py --run figures/mnist
"""

import sys

from pyro_vae.runs.evidence import main

if __name__ == "__main__":
    sys.exit(main())
