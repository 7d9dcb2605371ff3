"""Folders of machine code that tests fill."""

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
