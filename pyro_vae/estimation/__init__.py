"""What gradient estimators have in common, and families of them; ``pyro_vae.estimators`` has all of them.

base.py                    the abstract ``Estimator``
description.py             what an estimator estimates and needs: its class or a table of Pyro's classes says it
closed_form.py             whether every KL of a program has a closed form
doubly_reparameterized.py  bounds of several weights whose guide's gradient goes through the draws alone
generalized.py             the same, with the priors' gradient
score_function.py          the log-derivative trick, with baselines and antithetic pairs
straight_through.py        biased paths through discrete draws
combined.py                one bound for the model and one for the guide, or a bound mixed with the ELBO
thermodynamic.py           a bound by temperatures between guide and posterior
coupled.py                 estimators whose particles depend on each other
"""

from pyro_vae.estimation.base import Estimator
from pyro_vae.estimation.closed_form import check_analytic_kl
from pyro_vae.estimation.description import Description, describe, importance_weighted_bound, settings_of

__all__ = ["Description", "Estimator", "check_analytic_kl", "describe", "importance_weighted_bound", "settings_of"]
