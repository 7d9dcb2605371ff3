"""Graphs compiled to shared libraries by torch's AOTInductor, and the functions in them.

A library consists of a wrapper, which calls the kernels, and of the kernels. The wrapper is compiled without
optimisation, at the same time as the kernels; most of it is the same for every graph (``runtime``). Precompiled headers
would take longer to make than they save for the first three graphs, and 300 MB in the folder of temporary files.
"""

import ctypes
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.fx import GraphModule

from pyro_vae.compiling.private import member
from pyro_vae.compiling.runtime import BUILDER, BUILDING, build_wrapper
from pyro_vae.compiling.untraceable import OR_EAGERLY, Untraceable

AHEAD, HANDLES = ("torch._inductor", "aot_compile"), "torch._C._aoti"
PROXY = "aoti_torch_proxy_executor_call_function(proxy_executor"  # how a library calls other operators
TO_POINTERS, TO_TENSORS = "unsafe_alloc_void_ptrs_from_tensors", "alloc_tensors_by_stealing_from_void_ptrs"
POINTER = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
CAPSULE = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", ctypes.pythonapi)
)


def compiled_library(graph: GraphModule, example: Sequence[Tensor], path: Path, options: dict[str, Any]) -> bool:
    """Compile a graph to a shared library at a path; return whether it can run by itself.

    It cannot if it uses operators of torch without a C function. Raises ``Untraceable`` if torch has no such compiler.
    """
    compile_ahead = member(*AHEAD)
    if compile_ahead is None:
        raise Untraceable(f"torch {torch.__version__} has no {'.'.join(AHEAD)}; install torch 2.11, {OR_EAGERLY}")
    options = options | BUILDING | {"aot_inductor.output_path": str(path)}
    with torch.no_grad(), torch.autocast("cpu", enabled=False), _wrapper_beside_kernels():
        compile_ahead(graph, tuple(example), options=options)
    return all(PROXY not in source.read_text() for source in path.parent.rglob("*.cpp"))


def library_runner(path: Path, results: int) -> Callable[[list[Tensor]], list[Tensor]]:
    """Return the function in a library of ``compiled_library``; as many threads as there are cores can run it at once.

    The library's own C functions are called by ctypes, which releases Python's lock; torch's runner holds it. Raises
    OSError or AttributeError if the file is no such library, and ``Untraceable`` if torch cannot pass tensors to it.
    """
    to_pointers, to_tensors = member(HANDLES, TO_POINTERS), member(HANDLES, TO_TENSORS)
    if to_pointers is None or to_tensors is None:
        raise Untraceable(f"torch {torch.__version__} has no {TO_POINTERS}; install torch 2.11, {OR_EAGERLY}")
    library, container = ctypes.CDLL(str(path)), ctypes.c_void_p()
    create, run = library.AOTInductorModelContainerCreateWithDevice, library.AOTInductorModelContainerRun
    if create(ctypes.byref(container), ctypes.c_size_t(os.cpu_count() or 1), b"cpu", None):
        raise OSError(f"{path}: torch cannot start this library")
    found = ctypes.c_void_p * results

    def call(tensors: list[Tensor]) -> list[Tensor]:
        pointers, outputs = to_pointers(tensors), found()
        given = (ctypes.c_void_p * len(pointers))(*(POINTER(each, None) for each in pointers))  # taken over by the call
        sizes = ctypes.c_size_t(len(pointers)), ctypes.c_size_t(results)
        if run(container, given, sizes[0], outputs, sizes[1], None, None):
            raise RuntimeError("a compiled graph failed; the reason is on the standard error")
        return to_tensors([CAPSULE(each, None, None) for each in outputs])

    return call


@contextmanager
def _wrapper_beside_kernels() -> Iterator[None]:
    """Context manager in which torch compiles a wrapper in a thread, and waits for it before its next link."""
    builder = member(*BUILDER)
    if not hasattr(builder, "build") or not hasattr(builder, "get_target_file_path"):
        yield
        return
    build, started = builder.build, list[Future]()

    def beside(self: Any) -> None:
        target = self.get_target_file_path()
        if target.endswith(".wrapper.o"):
            started.append(pool.submit(build_wrapper, build, self))
            return
        if not target.endswith(".o"):
            for each in started:
                each.result()
        build(self)

    with ThreadPoolExecutor(1) as pool, mock.patch.object(builder, "build", beside):
        yield
