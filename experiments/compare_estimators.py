#!/usr/bin/env python
"""How much do gradient estimators vary? The same as ``pyro-vae compare``.

python experiments/compare_estimators.py
python experiments/compare_estimators.py --quick
"""

import sys

from pyro_vae.runs.compare import main

if __name__ == "__main__":
    sys.exit(main())
