"""The runtime of libraries, compiled apart; ``test_artifacts`` compiles and runs whole libraries."""

import subprocess

import pytest
import torch
from programs import needs_compiler

from pyro_vae.compiling import compiler, runtime
from pyro_vae.compiling.artifacts import compiled_graph
from pyro_vae.compiling.recorder import recorded
from pyro_vae.compiling.store import store

X = torch.linspace(0, 1, 8).view(4, 2)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PYRO_VAE_CACHE", str(tmp_path))
    monkeypatch.setattr(runtime, "_objects", {})
    monkeypatch.setattr(compiler, "warm_up", lambda library: None)


def sine(scale):
    return recorded(lambda x: (scale * x.sin(),), [X])


class Found(BaseException):
    """A library has asked for its runtime; any ``Exception`` would have its wrapper compiled as a whole."""


@pytest.mark.slow
@needs_compiler
def test_a_runtime_compiled_ahead_is_that_of_the_libraries(cache, monkeypatch):
    monkeypatch.setattr(runtime, "_compiled", lambda *args: b"machine code")
    runtime.compile_ahead(compiler.OPTIONS)
    (kept,) = store().glob("*.o")
    assert kept.read_bytes() == b"machine code"

    def join(compiler, target, other):
        raise Found(other.read_bytes())

    monkeypatch.setattr(runtime, "_objects", {})  # as in another process
    monkeypatch.setattr(runtime, "_compiled", lambda *args: pytest.fail("compiled, where it was kept"))
    monkeypatch.setattr(runtime, "_join", join)
    monkeypatch.setattr(runtime.member(*runtime.BUILDER), "build", lambda builder: None)
    with pytest.raises(Found, match="machine code"):
        compiled_graph(sine(2.0), [X], threads=1)
    assert list(store().glob("*.o")) == [kept]


class Builder:
    """Stands for torch's builder of a wrapper, and keeps what it is to compile."""

    def __init__(self, path):
        self.source, self.compiled = path.with_suffix(".cpp"), []
        self.source.write_text(f"{runtime.source()}\nint wrapper;")

    def get_target_file_path(self):
        return str(self.source.with_suffix(".o"))

    def get_command_line(self):
        return f"g++ {self.source}"

    def build(self):
        self.compiled.append(self.source.read_text())


@pytest.fixture
def broken(monkeypatch):
    """A C++ compiler that cannot compile the runtime."""

    def fail(*args):
        raise subprocess.CalledProcessError(1, "g++")

    monkeypatch.setattr(runtime, "_compiled", fail)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["no such source", "it does not compile"])
def test_where_it_cannot_be_compiled_apart_the_wrapper_is_whole(cache, broken, monkeypatch, tmp_path, fault):
    builder = Builder(tmp_path / "graph.wrapper")
    whole = builder.source.read_text()
    if fault == "no such source":
        monkeypatch.setattr(runtime, "SOURCE", ("no.cpp",))
    runtime.compile_ahead(compiler.OPTIONS)
    runtime.build_wrapper(Builder.build, builder)
    apart = [f"{runtime.HEADER}\nint wrapper;"] if fault == "it does not compile" else []
    assert builder.compiled == [*apart, whole] and builder.source.read_text() == whole
    assert not list(store().glob("*.o"))


@pytest.mark.slow
@needs_compiler
def test_a_library_with_a_whole_wrapper_computes(cache, broken):
    assert torch.allclose(compiled_graph(sine(3.0), [X], threads=1)(X)[0], 3 * X.sin())
    assert not list(store().glob("*.o"))
