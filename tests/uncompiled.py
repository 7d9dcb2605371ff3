"""Graphs without machine code; nothing of the package is imported here, as every test's conftest imports this."""

import torch


def run_as_recorded(patch):
    """Patch the package so that graphs are recorded as ever, and run as they are, without torch's compiler."""
    patch.setattr(torch, "compile", lambda function, **_: function)
    for user in ("training.gradients", "training.shards", "compiling.graphs"):
        patch.setattr(f"pyro_vae.{user}.compiled_graph", lambda graph, *_, **__: graph)
