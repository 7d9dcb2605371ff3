"""What ``reproduce_aevb.py`` is made of: the algorithms, the paper's numbers, tables and figures."""
