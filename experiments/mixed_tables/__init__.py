"""Parts of ``experiments/tables.py``: the frames, the densities that are known by other means, imputation, pictures."""
