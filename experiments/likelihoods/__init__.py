"""The parts of ``compare_likelihoods``: the families, their measures, table and figures."""
