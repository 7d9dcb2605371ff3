"""Libraries of compiled graphs; ``test_artifacts`` compiles and runs them."""

import pytest

from pyro_vae.compiling import library
from pyro_vae.compiling.untraceable import Untraceable


@pytest.mark.parametrize("content", [b"", b"no library"])
def test_a_file_that_is_no_library_is_refused(tmp_path, content):
    (tmp_path / "graph.so").write_bytes(content)
    with pytest.raises(OSError, match=r"graph\.so"):
        library.library_runner(tmp_path / "graph.so", 1)


@pytest.mark.parametrize("gone", ["AHEAD", "TO_POINTERS"])
def test_a_torch_without_the_compiler_is_named(tmp_path, monkeypatch, gone):
    monkeypatch.setattr(library, gone, ("torch._inductor", "no_such_name") if gone == "AHEAD" else "no_such_name")
    with pytest.raises(Untraceable, match=r"install torch 2\.11"):
        if gone == "AHEAD":
            library.compiled_library(None, [], tmp_path / "graph.so", {})
        else:
            library.library_runner(tmp_path / "graph.so", 1)
