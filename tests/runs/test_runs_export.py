"""The command ``pyro-vae export``."""

import pytest
import torch
from many_programs import vae

import pyro_vae as pv
from pyro_vae.runs import export


@pytest.mark.slow
def test_a_saved_program_is_exported(tmp_path, capsys):
    program, z = vae(), torch.randn(5, 3)
    pv.save_vae(program, tmp_path / "folder")
    path = tmp_path / "encoder.pt2"
    assert export.main([str(tmp_path / "folder"), str(path), "--part", "encoder"]) == 0
    assert capsys.readouterr().out == f"{path} holds the encoder of {tmp_path / 'folder'}, and agrees with torch\n"
    assert torch.export.load(path).module()(torch.rand(9, 1, 8, 8))[0].shape == (9, 3)
    assert export.main([str(tmp_path / "folder"), str(tmp_path / "decoder.pt2")]) == 0
    torch.testing.assert_close(torch.export.load(tmp_path / "decoder.pt2").module()(z)[0], program.decode(z))


def test_errors_are_one_line(tmp_path, capsys):
    assert export.main([str(tmp_path), str(tmp_path / "decoder.onnx")]) == 1
    assert capsys.readouterr().err == f"error: {tmp_path} holds no program: there is no model.safetensors in it\n"
