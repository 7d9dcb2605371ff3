"""Training of any program: the loop, its engines and checkpoints, and several processes."""

from pyro_vae.training.checkpoint import Checkpoints
from pyro_vae.training.engines import EngineWarning
from pyro_vae.training.loop import Evaluation, History, check_program, evaluate, fit, fixed_x, warm_cosine
from pyro_vae.training.nonfinite import NonFiniteLoss

__all__ = [
    "Checkpoints",
    "EngineWarning",
    "Evaluation",
    "History",
    "NonFiniteLoss",
    "check_program",
    "evaluate",
    "fit",
    "fixed_x",
    "warm_cosine",
]
