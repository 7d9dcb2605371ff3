"""The bytes of a saved program."""

import json

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch import nn

from pyro_vae.files import CheckpointError
from pyro_vae.saved.contents import DIGEST, KEY, decode, encode, own_tensors

TENSORS = {
    "loc": torch.arange(6.0).reshape(2, 3),
    "turned": torch.arange(6, dtype=torch.float64).reshape(2, 3).T,
    "channels_last": torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    "number": torch.tensor(3),
    "none": torch.zeros(0, 2),
    "flags": torch.tensor([True, False]),
}


def test_tensors_come_back_with_types_values_and_their_order_in_memory():
    header, tensors = decode(encode({"format": 4}, TENSORS), "it")
    assert header == {"format": 4} and tensors.keys() == TENSORS.keys()
    for name, value in TENSORS.items():
        assert torch.equal(tensors[name], value) and tensors[name].dtype == value.dtype
        assert tensors[name].stride() == value.stride()


def test_other_tools_read_the_file(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(encode({"format": 4}, TENSORS))
    found = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(found[name], value) for name, value in TENSORS.items())
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert json.loads(file.metadata()[KEY])["format"] == 4


def test_every_changed_byte_is_noticed():
    content = encode({"format": 4, "note": "a"}, {"loc": torch.arange(3.0)})
    for i in range(len(content)):
        for new in (content[i] ^ 1, content[i] ^ 41, 9, 10, 13, 32):
            if new != content[i]:
                with pytest.raises(CheckpointError, match="it is no program that save_vae wrote, or is damaged"):
                    decode(content[:i] + bytes([new]) + content[i + 1 :], "it")


def test_a_file_that_is_cut_off_or_too_long_is_refused():
    content = encode({"format": 4}, {"loc": torch.arange(3.0)})
    for other in (*(content[:i] for i in range(len(content))), content + b"\0", content[1:], b" " + content):
        with pytest.raises(CheckpointError, match="it is no program"):
            decode(other, "it")


def test_a_file_of_others_is_refused():
    for metadata in (None, {KEY: "{}"}, {DIGEST: "0"}):
        with pytest.raises(CheckpointError, match="no entry '"):
            decode(safetensors.torch.save({"loc": torch.zeros(1)}, metadata), "it")
    for size in ((1 << 24) + 1, 1 << 40, 1 << 60):
        with pytest.raises(CheckpointError, match="its header is larger than 16 MiB"):
            decode(size.to_bytes(8, "little") + b"{}", "it")


def test_a_state_that_holds_more_than_tensors_is_refused():
    class Extra(nn.Linear):
        def get_extra_state(self):
            return {"steps": 3}

    with pytest.raises(ValueError, match=r"wanted tensors in its state dict, got dict under '_extra_state'"):
        own_tensors(Extra(1, 1))
