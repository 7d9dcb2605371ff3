"""Exported parts: values equal to torch's in onnxruntime and in torch, at any number of rows, or an error."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from many_programs import PIXELS, conditional, decoder, mixed, of_torch, rows, vae

import pyro_vae as pv
from pyro_vae import analysis, exporting, guides, likelihoods, networks
from pyro_vae.linear_gaussian import LinearGaussian

pytestmark = pytest.mark.slow


def in_onnxruntime(path, **inputs):
    session = onnxruntime.InferenceSession(path)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {name: np.asarray(value) for name, value in inputs.items()})))


def near(value, wanted):
    torch.testing.assert_close(torch.as_tensor(value), wanted, rtol=1e-5, atol=1e-5)


def test_a_decoder_in_onnxruntime_gives_means_and_parameters(tmp_path):
    program = vae(likelihood=likelihoods.Beta(networks.ConvDecoder(3, (1, 8, 8), maps=2, channels=(8, 4))))
    state, training = torch.get_rng_state(), program.training
    pv.export(program, tmp_path / "decoder.onnx")
    assert torch.equal(state, torch.get_rng_state()) and program.training is training
    file = onnx.load(tmp_path / "decoder.onnx")
    free = {value.type.tensor_type.shape.dim[0].dim_param for value in (*file.graph.input, *file.graph.output)}
    assert free == {"batch"}
    metadata = {entry.key: entry.value for entry in file.metadata_props}
    assert metadata == {"pyro_vae": pv.__version__, "torch": torch.__version__, "part": "decoder"}
    for count in (2, 300):
        z = torch.randn(count, 3)
        found = in_onnxruntime(tmp_path / "decoder.onnx", z=z)
        near(found["mean"], program.decode(z))
        base = program.likelihood(z).base_dist
        assert list(found) == ["mean", "concentration1", "concentration0"]
        near(found["concentration1"], base.concentration1.detach())


def test_an_encoder_and_both_in_onnxruntime(tmp_path):
    program = vae(posterior=guides.LowRank(networks.MLPEncoder((1, 8, 8), hidden=(8,)), 3, rank=2))
    x = pv.fixed_x(program, PIXELS)
    pv.export(program, tmp_path / "encoder.onnx", part="encoder")
    found = in_onnxruntime(tmp_path / "encoder.onnx", x=x)
    near(found["mean"], program.encode(PIXELS))
    near(found["cov_factor"], program.posterior(x).cov_factor.detach())
    pv.export(program, tmp_path / "both.onnx", part="reconstruct")
    near(in_onnxruntime(tmp_path / "both.onnx", x=x)["mean"], program.reconstruct(PIXELS))


def test_a_conditional_takes_its_classes(tmp_path):
    program, z = conditional(), torch.randn(6, 3)
    pv.export(program, tmp_path / "decoder.pt2")
    y = torch.tensor([2, 1, 0, 0, 1, 2])
    near(torch.export.load(tmp_path / "decoder.pt2").module()(z, y)[0], program.decode(z, y))


@pytest.mark.parametrize(
    "program",
    [
        mixed(),
        rows(likelihoods.ZeroInflatedNegativeBinomial(decoder(12, shape=(4,)))),
        vae(posterior=guides.FullRank(networks.MLPEncoder((1, 8, 8), hidden=(8,)), 3)),
        LinearGaussian(torch.randn(64, 3, dtype=torch.float64), shape=(1, 8, 8)),
    ],
    ids=["mixed", "counts", "full-rank", "linear"],
)
def test_programs_in_torchs_own_format(tmp_path, program):
    pv.export(program, tmp_path / "both.pt2", part="reconstruct")
    x = analysis.sample_prior(program, 5)
    near(torch.export.load(tmp_path / "both.pt2").module()(x)[0], analysis.reconstruct(program, x))


@pytest.mark.parametrize(
    ("program", "name", "part", "message"),
    [
        (vae(), "decoder.pt", "decoder", r"path: wanted a name that ends in \.onnx or \.pt2, got 'decoder\.pt'"),
        (vae(), "a.onnx", "prior", "part: wanted one of decoder, encoder, reconstruct, got 'prior'"),
        (of_torch(), "a.onnx", "encoder", r"onnxruntime has no form for this part .*\.pt2, or export vae\.float\(\)"),
        (pv.Masked(vae()), "a.onnx", "decoder", r"got a Masked; export what it holds, \.program"),
        (pv.Masked(vae(), mask_as_input=True), "a.pt2", "encoder", r"beside x .*; export the decoder of \.program"),
        (pv.Averaged(vae(), 0.9), "a.onnx", "decoder", r"got a Averaged; export what it holds, \.average"),
        (
            vae(posterior=guides.Flow(networks.MLPEncoder((1, 8, 8)), 3)),
            "a.onnx",
            "encoder",
            "the guide has no mean in closed form, as a flow has none; vae.encode averages draws",
        ),
    ],
)
def test_what_cannot_be_exported_is_refused(tmp_path, program, name, part, message):
    with pytest.raises(ValueError, match=message):
        pv.export(program, tmp_path / name, part)
    assert not list(tmp_path.iterdir())


def test_a_file_that_gives_other_values_is_not_written(tmp_path, monkeypatch):
    as_pt2 = exporting._as_pt2

    def rounded(module, names):
        content, run = as_pt2(module, names)
        return content, lambda inputs: [value.round(decimals=3) for value in run(inputs)]

    monkeypatch.setattr(exporting, "_as_pt2", rounded)
    with pytest.raises(ValueError, match=r"the output 'mean' of the file is .* away from torch's, more than 1e-05"):
        pv.export(vae(), tmp_path / "decoder.pt2")
    assert not list(tmp_path.iterdir())


def test_the_extra_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"pip install 'pyro_vae\[export\]'"):
        pv.export(vae(), tmp_path / "decoder.onnx")


def test_code_that_fixes_the_number_of_rows_is_named(tmp_path):
    class Fixed(torch.nn.Module):
        def forward(self, z):
            return z.sum(-1).expand(64, len(z)).T.reshape(len(z), 1, 8, 8)

    with pytest.raises(ValueError, match=r"torch\.export cannot follow this part .* write x\.shape\[0\]"):
        pv.export(vae(likelihood=likelihoods.Bernoulli(Fixed())), tmp_path / "decoder.pt2")
