"""torch's compiler: whether this machine has one, its options, and what it does ahead of the first graph."""

import logging
import os
import platform
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from threading import Thread
from types import FunctionType
from typing import Any

import torch

from pyro_vae.compiling.private import compile_first_kernel
from pyro_vae.compiling.runtime import compile_ahead
from pyro_vae.compiling.untraceable import Untraceable

# Draw by torch's own generators: the same numbers as eagerly, and on a CPU faster than the compiler's own draws.
OPTIONS: dict[str, Any] = {"fallback_random": True}
# Vector instructions that an x86 CPU names are there: torch would compile three programs to see it, for seconds.
if platform.machine() in ("x86_64", "AMD64") and "TORCHINDUCTOR_VEC_ISA_OK" not in os.environ:
    OPTIONS["cpp.vec_isa_ok"] = True


def missing_compiler() -> str | None:
    """Return why nothing can be compiled on this machine; None if there is a C++ compiler.

    ``torch.compile`` uses the compiler named by the environment variable CXX, or g++.
    """
    name = os.environ.get("CXX") or "g++"
    return None if shutil.which(name) else f"no C++ compiler: {name!r} is not found; install one, or set CXX"


def check_compiler(instead: str) -> None:
    """Raise ``Untraceable`` if nothing can be compiled on this machine; the message ends with what to do instead."""
    missing = missing_compiler()
    if missing:
        raise Untraceable(f"nothing can be compiled here: {missing}; {instead}")


@cache
def warm_up(library: bool, /) -> Thread | None:
    """Start, once per process, what torch's compiler does before its first graph; None if there is no compiler.

    The compiler tests which vector instructions the CPU has and compiles its own headers or, if the graph is to be a
    ``library``, the ``runtime``: seconds, with a cold cache. Python traces the program meanwhile, on another core.
    """
    if missing_compiler():
        return None
    thread = Thread(target=compile_ahead if library else compile_first_kernel, args=(OPTIONS,))
    thread.start()
    return thread


def own_code(function: Callable) -> Callable:
    """Return the function with a code object of its own: torch keeps and counts its graphs by code object.

    >>> own_code(lambda x: 2 * x)(3)
    6
    """
    if not isinstance(function, FunctionType):
        return function
    code = function.__code__.replace()
    return FunctionType(code, function.__globals__, function.__name__, function.__defaults__, function.__closure__)


def unguarded(function: Callable, **options: Any) -> Callable:
    """Return a function compiled for the arguments of its first call; later calls are not checked.

    Checks take longer than a small step. The caller sees to it that shapes and strides stay the same. torch stores
    graphs by code object, so that each needs its own if nothing is checked. ``options`` are further ones of Inductor.
    """
    options = {**OPTIONS, "guard_filter_fn": torch.compiler.skip_all_guards_unsafe, **options}
    return torch.compile(own_code(function), fullgraph=True, dynamic=False, options=options)


@contextmanager
def quiet_torch() -> Iterator[None]:
    """Context manager that silences what torch's compiler logs and warns about torch itself."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"torch\.")
        warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated", FutureWarning)  # by torch 2.11 of its own
        warnings.filterwarnings("ignore", "A model attribute .* requires gradient", UserWarning)
        warnings.filterwarnings("ignore", "The tensor attributes? .* assigned during export", UserWarning)
        try:
            yield
        finally:
            logging.disable(before)
