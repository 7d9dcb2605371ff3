"""Counts of genes in simulated cells.

- ``simulation``: cells of known types, states, library sizes and labs.
- ``program``: the program with a library size and a label of the lab.
- ``recovery``: how much of the truth is found again.
"""
