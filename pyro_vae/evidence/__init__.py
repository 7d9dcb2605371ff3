"""Estimates of log p(x): importance sampling, annealing, and bounds from both sides."""

from pyro_vae.evidence.annealing import linear, sigmoid
from pyro_vae.evidence.estimates import (
    AnnealedEvidence,
    Evidence,
    Sandwich,
    UntrustedEvidence,
    annealed_evidence,
    bidirectional,
    from_log_weights,
    log_evidence,
)
from pyro_vae.evidence.pareto import pareto_k

__all__ = [
    "AnnealedEvidence",
    "Evidence",
    "Sandwich",
    "UntrustedEvidence",
    "annealed_evidence",
    "bidirectional",
    "from_log_weights",
    "linear",
    "log_evidence",
    "pareto_k",
    "sigmoid",
]
