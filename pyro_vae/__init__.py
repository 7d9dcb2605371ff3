"""Variational autoencoders as Pyro programs: prior, likelihood, guide and ELBO estimator, each swapped in one line."""

from typing import TYPE_CHECKING

from pyro_vae._lazy import MovedModules, lazy

if TYPE_CHECKING:
    from pyro_vae import analysis as analysis
    from pyro_vae import comparison as comparison
    from pyro_vae import compiling as compiling
    from pyro_vae import config as config
    from pyro_vae import data as data
    from pyro_vae import distributions as distributions
    from pyro_vae import estimators as estimators
    from pyro_vae import evidence as evidence
    from pyro_vae import guides as guides
    from pyro_vae import handlers as handlers
    from pyro_vae import imputation as imputation
    from pyro_vae import likelihoods as likelihoods
    from pyro_vae import linear_gaussian as linear_gaussian
    from pyro_vae import missing as missing
    from pyro_vae import networks as networks
    from pyro_vae import plots as plots
    from pyro_vae import priors as priors
    from pyro_vae import scoring as scoring
    from pyro_vae import tables as tables
    from pyro_vae import tracing as tracing
    from pyro_vae import training as training
    from pyro_vae.augmentation import Augmented as Augmented
    from pyro_vae.averaging import Averaged as Averaged
    from pyro_vae.comparison import Comparison as Comparison
    from pyro_vae.comparison import best_estimator as best_estimator
    from pyro_vae.comparison import compare_estimators as compare_estimators
    from pyro_vae.compiling import CompiledSVI as CompiledSVI
    from pyro_vae.compiling import Untraceable as Untraceable
    from pyro_vae.compiling import compiled as compiled
    from pyro_vae.conditional import Conditional as Conditional
    from pyro_vae.data import Data as Data
    from pyro_vae.data import DataError as DataError
    from pyro_vae.data import DataWarning as DataWarning
    from pyro_vae.data import MissingData as MissingData
    from pyro_vae.data import Split as Split
    from pyro_vae.data import load as load
    from pyro_vae.evidence import AnnealedEvidence as AnnealedEvidence
    from pyro_vae.evidence import Evidence as Evidence
    from pyro_vae.evidence import LocalProposal as LocalProposal
    from pyro_vae.evidence import Sandwich as Sandwich
    from pyro_vae.evidence import StuckChains as StuckChains
    from pyro_vae.evidence import UntrustedEvidence as UntrustedEvidence
    from pyro_vae.evidence import annealed_evidence as annealed_evidence
    from pyro_vae.evidence import bidirectional as bidirectional
    from pyro_vae.evidence import certify as certify
    from pyro_vae.evidence import log_evidence as log_evidence
    from pyro_vae.evidence import refit_guide as refit_guide
    from pyro_vae.exporting import export as export
    from pyro_vae.files import CheckpointError as CheckpointError
    from pyro_vae.imputation import UntrustedImputation as UntrustedImputation
    from pyro_vae.imputation import impute as impute
    from pyro_vae.labels import one_hot as one_hot
    from pyro_vae.missing import Masked as Masked
    from pyro_vae.observation import fixed_x as fixed_x
    from pyro_vae.program import Program as Program
    from pyro_vae.saved import load_vae as load_vae
    from pyro_vae.saved import save_vae as save_vae
    from pyro_vae.scoring import Scores as Scores
    from pyro_vae.scoring import score as score
    from pyro_vae.sites import parameter_sites as parameter_sites
    from pyro_vae.training import Checkpoints as Checkpoints
    from pyro_vae.training import EngineWarning as EngineWarning
    from pyro_vae.training import Evaluation as Evaluation
    from pyro_vae.training import History as History
    from pyro_vae.training import NonFiniteLoss as NonFiniteLoss
    from pyro_vae.training import Step as Step
    from pyro_vae.training import Training as Training
    from pyro_vae.training import TrainingWarning as TrainingWarning
    from pyro_vae.training import check_program as check_program
    from pyro_vae.training import evaluate as evaluate
    from pyro_vae.training import fit as fit
    from pyro_vae.training import warm_cosine as warm_cosine
    from pyro_vae.transformer import VAETransformer as VAETransformer
    from pyro_vae.vae import VAE as VAE

_HOMES = {
    "AnnealedEvidence": "pyro_vae.evidence",
    "Augmented": "pyro_vae.augmentation",
    "Averaged": "pyro_vae.averaging",
    "CheckpointError": "pyro_vae.files",
    "Checkpoints": "pyro_vae.training",
    "Comparison": "pyro_vae.comparison",
    "CompiledSVI": "pyro_vae.compiling",
    "Conditional": "pyro_vae.conditional",
    "Data": "pyro_vae.data",
    "DataError": "pyro_vae.data",
    "DataWarning": "pyro_vae.data",
    "EngineWarning": "pyro_vae.training",
    "Evaluation": "pyro_vae.training",
    "Evidence": "pyro_vae.evidence",
    "History": "pyro_vae.training",
    "LocalProposal": "pyro_vae.evidence",
    "Masked": "pyro_vae.missing",
    "MissingData": "pyro_vae.data",
    "NonFiniteLoss": "pyro_vae.training",
    "Program": "pyro_vae.program",
    "Sandwich": "pyro_vae.evidence",
    "Scores": "pyro_vae.scoring",
    "Split": "pyro_vae.data",
    "Step": "pyro_vae.training",
    "StuckChains": "pyro_vae.evidence",
    "Training": "pyro_vae.training",
    "TrainingWarning": "pyro_vae.training",
    "Untraceable": "pyro_vae.compiling",
    "UntrustedEvidence": "pyro_vae.evidence",
    "UntrustedImputation": "pyro_vae.imputation",
    "VAE": "pyro_vae.vae",
    "VAETransformer": "pyro_vae.transformer",
    "analysis": "pyro_vae.analysis",
    "annealed_evidence": "pyro_vae.evidence",
    "best_estimator": "pyro_vae.comparison",
    "bidirectional": "pyro_vae.evidence",
    "certify": "pyro_vae.evidence",
    "check_program": "pyro_vae.training",
    "compare_estimators": "pyro_vae.comparison",
    "comparison": "pyro_vae.comparison",
    "compiled": "pyro_vae.compiling",
    "compiling": "pyro_vae.compiling",
    "config": "pyro_vae.config",
    "data": "pyro_vae.data",
    "distributions": "pyro_vae.distributions",
    "estimators": "pyro_vae.estimators",
    "evaluate": "pyro_vae.training",
    "evidence": "pyro_vae.evidence",
    "export": "pyro_vae.exporting",
    "fit": "pyro_vae.training",
    "fixed_x": "pyro_vae.observation",
    "guides": "pyro_vae.guides",
    "handlers": "pyro_vae.handlers",
    "imputation": "pyro_vae.imputation",
    "impute": "pyro_vae.imputation",
    "likelihoods": "pyro_vae.likelihoods",
    "linear_gaussian": "pyro_vae.linear_gaussian",
    "load": "pyro_vae.data",
    "load_vae": "pyro_vae.saved",
    "log_evidence": "pyro_vae.evidence",
    "missing": "pyro_vae.missing",
    "networks": "pyro_vae.networks",
    "one_hot": "pyro_vae.labels",
    "parameter_sites": "pyro_vae.sites",
    "plots": "pyro_vae.plots",
    "priors": "pyro_vae.priors",
    "refit_guide": "pyro_vae.evidence",
    "save_vae": "pyro_vae.saved",
    "score": "pyro_vae.scoring",
    "scoring": "pyro_vae.scoring",
    "tables": "pyro_vae.tables",
    "tracing": "pyro_vae.tracing",
    "training": "pyro_vae.training",
    "warm_cosine": "pyro_vae.training",
}
# Modules that had another name in 0.1.
_MOVED = {
    "annealing": "pyro_vae.evidence.annealing",
    "checkpoint": "pyro_vae.training.checkpoint",
    "convolutions": "pyro_vae.compiling.convolutions",
    "distributed": "pyro_vae.training.ranks",
    "divergences": "pyro_vae.distributions.divergences",
    "engines": "pyro_vae.training.engines",
    "families": "pyro_vae.distributions.families",
    "flows": "pyro_vae.distributions.transforms",
    "importance": "pyro_vae.evidence.importance",
    "leaves": "pyro_vae.tracing.leaves",
    "mapped": "pyro_vae.data.mapped",
    "moments": "pyro_vae.comparison.moments",
    "nonfinite": "pyro_vae.training.nonfinite",
    "parts": "pyro_vae.config",
    "paths": "pyro_vae.tracing.paths",
    "state": "pyro_vae.random",
    "traces": "pyro_vae.tracing.traces",
    "variance": "pyro_vae.comparison",
}

__all__ = [
    "VAE",
    "AnnealedEvidence",
    "Augmented",
    "Averaged",
    "CheckpointError",
    "Checkpoints",
    "Comparison",
    "CompiledSVI",
    "Conditional",
    "Data",
    "DataError",
    "DataWarning",
    "EngineWarning",
    "Evaluation",
    "Evidence",
    "History",
    "LocalProposal",
    "Masked",
    "MissingData",
    "NonFiniteLoss",
    "Program",
    "Sandwich",
    "Scores",
    "Split",
    "Step",
    "StuckChains",
    "Training",
    "TrainingWarning",
    "Untraceable",
    "UntrustedEvidence",
    "UntrustedImputation",
    "VAETransformer",
    "__version__",
    "analysis",
    "annealed_evidence",
    "best_estimator",
    "bidirectional",
    "certify",
    "check_program",
    "compare_estimators",
    "comparison",
    "compiled",
    "compiling",
    "config",
    "data",
    "distributions",
    "estimators",
    "evaluate",
    "evidence",
    "export",
    "fit",
    "fixed_x",
    "guides",
    "handlers",
    "imputation",
    "impute",
    "likelihoods",
    "linear_gaussian",
    "load",
    "load_vae",
    "log_evidence",
    "missing",
    "networks",
    "one_hot",
    "parameter_sites",
    "plots",
    "priors",
    "refit_guide",
    "save_vae",
    "score",
    "scoring",
    "tables",
    "tracing",
    "training",
    "warm_cosine",
]
__version__ = "0.2.0.dev0"
__getattr__, __dir__ = lazy(__name__, _HOMES | _MOVED, eager=["__version__"])
MovedModules(__name__, _MOVED).register()
