"""One script for each question, run as ``python experiments/NAME.py`` or ``python -m experiments.NAME``.

Both forms need ``pip install -e .``, which puts this clone on Python's path. After a plain ``pip install .`` the second
form works in the root of the clone, and the first only for scripts that import no other module of this folder.

``run``, ``evidence`` and ``compare_estimators`` are ``pyro-vae train``, ``evidence`` and ``compare``. What several
scripts share is in ``pyro_vae.runs``. The modules of a single script are in a folder: ``aevb`` for
``reproduce_aevb``, ``benchmarks`` for ``benchmark``, ``cells`` for ``counts``, ``imputation`` for ``missing``,
``likelihoods`` for ``compare_likelihoods``, ``m2`` for ``semi_supervised``, ``markov`` for ``sequences``,
``on_gpu`` for ``gpu``.
"""
