"""The linear Gaussian program, in which everything is known in closed form: probabilistic PCA.

- ``program``: the program, its exact guides and its maximum likelihood solution.
- ``variances``: the variances of gradient estimators.
"""

from pyro_vae.linear_gaussian.program import (
    LinearGaussian,
    LinearPosterior,
    exact_guide,
    maximum_likelihood,
    mean_field_guide,
)
from pyro_vae.linear_gaussian.variances import (
    mean_field_elbo_variance,
    model_variance,
    path_variance,
    trace_elbo_variance,
)

__all__ = [
    "LinearGaussian",
    "LinearPosterior",
    "exact_guide",
    "maximum_likelihood",
    "mean_field_elbo_variance",
    "mean_field_guide",
    "model_variance",
    "path_variance",
    "trace_elbo_variance",
]
