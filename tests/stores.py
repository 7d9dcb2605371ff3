"""Machine code in tests: folders of it, and tests that do without."""

import torch

from pyro_vae.compiling import runtime
from pyro_vae.compiling.compiler import OPTIONS
from pyro_vae.compiling.store import keep


def with_runtime(folder):
    """Give a folder, that PYRO_VAE_CACHE will name, the runtime of all libraries: to compile it takes seconds."""
    runtime.compile_ahead(OPTIONS)  # it is read from the user's own folder, where other tests have compiled it
    target = folder / "compiled"
    target.mkdir(mode=0o700)
    for name, data in runtime._objects.items():
        keep(data, target / f"{name}.o")
    return folder


def run_as_recorded(patch):
    """Patch the package so that graphs are recorded as ever, and run as they are, without torch's compiler."""
    patch.setattr(torch, "compile", lambda function, **_: function)
    for user in ("training.gradients", "training.shards", "compiling.graphs"):
        patch.setattr(f"pyro_vae.{user}.compiled_graph", lambda graph, *_, **__: graph)
