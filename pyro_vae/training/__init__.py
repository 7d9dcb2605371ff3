"""Training of any program: the open loop and ``fit``, evaluation, checkpoints, and several processes.

``loop.py``        ``Training``, the loop that users can enter, and ``fit``, which runs it to its end
``epochs.py``      what happens in the loop: gradient steps, and the measurement of each epoch
``state.py``       all that changes in the course of a training
``saving.py``      when and where that state is saved, and which saved state may be resumed
``checkpoint.py``  the file format of checkpoints
``history.py``     the rows that a training reports, and its warnings
``progress.py``    what a training shows while it runs
``evaluation.py``  bound, rate and distortion of single images
``selection.py``   the objective by which epochs are compared
``settings.py``    the checks of the settings
``changes.py``     the check of what the user changes between steps
``held.py``        the parameters that an optimiser holds
``schedules.py``   schedules of the learning rate
``rehearsal.py``   the trial of all that would fail in the middle of a training
``nonfinite.py``   the search for the site where a loss became non-finite
``engines.py``     what takes a gradient step, chosen by name
``worth.py``       whether compiling the steps is earned back
``eager.py``       the engine of eager steps
``compiled.py``    the engine of compiled steps
``gradients.py``   loss and gradients as one compiled graph
``shards.py``      the rows of a batch shared out among the cores
``adam.py``        Adam's step without its overhead in Python
``lazy_compiler.py``  torch's optimisers without the import of torch's compiler
``svi.py``         the engine of ``pyro.infer.SVI``
``ranks.py``       data-parallel training over the processes of ``torchrun``
"""

from pyro_vae.observation import fixed_x
from pyro_vae.program import check_program
from pyro_vae.training.checkpoint import Checkpoints
from pyro_vae.training.engines import EngineWarning
from pyro_vae.training.epochs import Step
from pyro_vae.training.evaluation import Evaluation, evaluate
from pyro_vae.training.history import History, TrainingWarning
from pyro_vae.training.loop import Training, fit
from pyro_vae.training.nonfinite import NonFiniteLoss
from pyro_vae.training.schedules import warm_cosine

__all__ = [
    "Checkpoints",
    "EngineWarning",
    "Evaluation",
    "History",
    "NonFiniteLoss",
    "Step",
    "Training",
    "TrainingWarning",
    "check_program",
    "evaluate",
    "fit",
    "fixed_x",
    "warm_cosine",
]
