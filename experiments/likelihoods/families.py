"""The likelihoods that are compared, and the settings that the numbers of a run depend on."""

from dataclasses import dataclass

RUNS = "likelihood_runs"  # folder in --out
# The numbers of a run depend on these settings, and on the data; the first ones and the seed differ from run to run.
FAMILY_SETTINGS = ("lik", "binarize", "bins", "scale", "seed")
SHARED_SETTINGS = (
    "prior",
    "guide",
    "net",
    "latent",
    "hidden",
    "estimator",
    "particles",
    "epochs",
    "batch",
    "lr",
    "schedule",
)


@dataclass(frozen=True)
class Family:
    """A likelihood: its name in tables, and the options of run.py that choose it."""

    label: str
    words: str


FAMILIES = {
    "normal-pixel": Family("Normal, scale per pixel", "--lik normal --scale pixel"),
    "normal-shared": Family("Normal, one shared scale", "--lik normal --scale shared"),
    "beta": Family("Beta", "--lik beta"),
    "continuous-bernoulli": Family("continuous Bernoulli", "--lik continuous-bernoulli"),
    "logistic": Family("discretised logistic", "--lik logistic"),
    **{f"categorical-{B}": Family(f"Categorical, {B} bins", f"--lik categorical --bins {B}") for B in (4, 16, 64, 256)},
    "bernoulli-dynamic": Family("Bernoulli, dynamic", "--lik bernoulli --binarize dynamic"),
    "bernoulli-threshold": Family("Bernoulli, threshold", "--lik bernoulli --binarize threshold"),
}
DEFAULT = [name for name in FAMILIES if name != "categorical-256"]  # it takes as long as five others
