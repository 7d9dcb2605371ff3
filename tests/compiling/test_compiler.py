"""torch's compiler: what is done ahead of the first graph, and what it is kept from saying."""

import logging
import warnings
from contextlib import nullcontext

import pytest
import torch
from programs import needs_compiler

from pyro_vae.compiling import compiler, private


@pytest.mark.slow
@needs_compiler
def test_torch_compiles_a_kernel_ahead_of_the_first_graph(monkeypatch):
    compiler.warm_up.cache_clear()
    thread = compiler.warm_up(False)
    assert thread is compiler.warm_up(False)
    thread.join()
    monkeypatch.setattr(private, "suppress", nullcontext)  # it is torch's own function, and may come to be another
    private.compile_first_kernel(compiler.OPTIONS)


def test_without_a_compiler_nothing_is_compiled_ahead(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    compiler.warm_up.cache_clear()
    assert compiler.warm_up(False) is None
    compiler.warm_up.cache_clear()


def test_a_compiler_is_that_of_the_environment_or_gcc(monkeypatch):
    found = {"g++": None, "clang++": "/usr/bin/clang++"}
    monkeypatch.setattr(compiler.shutil, "which", found.get)
    monkeypatch.delenv("CXX", raising=False)
    assert compiler.missing_compiler() == "no C++ compiler: 'g++' is not found; install one, or set CXX"
    monkeypatch.setenv("CXX", "clang++")
    assert compiler.missing_compiler() is None


def test_a_copy_of_a_function_has_another_code_object():
    number = 2

    def scaled(x, by=3):
        return number * by * x

    copies = [compiler.own_code(scaled) for _ in range(2)]
    assert [copy(5) for copy in copies] == [30, 30]
    assert len({id(function.__code__) for function in (scaled, *copies)}) == 3
    assert compiler.own_code(torch.sin) is torch.sin  # which Python did not make


def test_torch_is_quiet_and_others_are_heard(caplog):
    disabled = logging.root.manager.disable
    with compiler.quiet_torch():
        logging.getLogger("torch").warning("about torch")
        warnings.warn_explicit("about torch", UserWarning, "torch/x.py", 1, module="torch.x")
        with pytest.raises(UserWarning, match="about a program"):  # an error, as in all tests
            warnings.warn("about a program", UserWarning, stacklevel=1)
    assert not caplog.records and logging.root.manager.disable == disabled
    with pytest.raises(UserWarning, match="about torch"):
        warnings.warn_explicit("about torch", UserWarning, "torch/x.py", 1, module="torch.x")
