"""Estimates of log p(x): importance sampling, annealing, and bounds from both sides.

- ``results``: what the estimates return, with diagnostics and summaries.
- ``importance``: ``log_evidence``, importance sampling from the guide.
- ``batches``: a given number of draws of each image, batch by batch; ``saving``: the file in which they are kept.
- ``budget``: pilot draws decide how each image is measured, and the draws that count follow.
- ``methods``: the methods of a budget, from the cheapest to the surest.
- ``spending``: its options and result; ``budgeted``: ``BudgetedEvidence`` and ``EvidencePlan``.
- ``annealed``: ``annealed_evidence`` and, on simulated data, ``bidirectional``.
- ``certificate``: ``certify``, both bounds by importance sampling on simulated data; ``simulation``: these data.
- ``sandwich``: what the bounds from both sides return.
- ``annealing``: the chains: temperatures, Hamiltonian transitions, weights.
- ``pilots``: chains without weight that find temperatures and step sizes.
- ``smc``: resampling among the chains of an image.
- ``path``: the densities that the chains pass, and their gradients; ``moved``: the sites that they move.
- ``plan``: how a program is measured: its rows, its batches, what can be compiled.
- ``arguments``: the arguments of a program, cut into batches of rows.
- ``measuring``: what the functions share: the two forms of a call, options, the state of torch.
- ``proposals``: ``LocalProposal``, a proposal fitted to the posterior of each row.
- ``matching``: normal distributions fitted to gradients.
- ``refitting``: ``refit_guide``, another guide for a trained program.
- ``pareto``: k̂, the shape of the tail of importance weights.
"""

from pyro_vae.evidence.annealed import StuckChains, annealed_evidence, bidirectional
from pyro_vae.evidence.annealing import linear, sigmoid
from pyro_vae.evidence.budgeted import BudgetedEvidence, EvidenceInterrupted, EvidencePlan
from pyro_vae.evidence.certificate import certify
from pyro_vae.evidence.importance import log_evidence
from pyro_vae.evidence.pareto import pareto_k
from pyro_vae.evidence.proposals import LocalProposal
from pyro_vae.evidence.refitting import refit_guide
from pyro_vae.evidence.results import (
    AnnealedEvidence,
    Evidence,
    UntrustedEvidence,
    from_log_weights,
)
from pyro_vae.evidence.sandwich import AnnealedSandwich, Sandwich

__all__ = [
    "AnnealedEvidence",
    "AnnealedSandwich",
    "BudgetedEvidence",
    "Evidence",
    "EvidenceInterrupted",
    "EvidencePlan",
    "LocalProposal",
    "Sandwich",
    "StuckChains",
    "UntrustedEvidence",
    "annealed_evidence",
    "bidirectional",
    "certify",
    "from_log_weights",
    "linear",
    "log_evidence",
    "pareto_k",
    "refit_guide",
    "sigmoid",
]
