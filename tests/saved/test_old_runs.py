"""Folders of runs of earlier versions: what is loaded is what was saved, and nothing else is."""

import hashlib
import json
import os
import shutil

import pytest
import torch
from saved_programs import CHOSEN, FIXTURE, PIXELS, change, saved_in_format_3

from pyro_vae import evaluate, load, load_vae
from pyro_vae.files import CheckpointError
from pyro_vae.saved.old_runs import METRICS, OLD_PARAMETERS, checksum, load_old
from pyro_vae.training import fixed_x

VARIED = [("scale", "shared"), ("scale", "0.3"), ("binarize", "intensity"), ("activation", "silu")]


@pytest.mark.parametrize(("slot", "name"), CHOSEN + VARIED)
def test_what_was_saved_is_loaded(tmp_path, slot, name):
    settings = {slot: name} | ({"lik": "normal"} if slot == "scale" else {})
    vae, state = saved_in_format_3(tmp_path, **settings), torch.get_rng_state()
    again = load_vae(tmp_path)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in vae.state_dict().items())
    x = fixed_x(vae, PIXELS)
    assert torch.equal(evaluate(vae, x).bound, evaluate(again, fixed_x(again, PIXELS)).bound)


def test_a_folder_of_the_first_format_gives_the_model_that_was_measured():
    vae, metrics = load_vae(FIXTURE), json.loads((FIXTURE / METRICS).read_text())
    assert "format" not in metrics
    bound = evaluate(vae, fixed_x(vae, load("digits").test.images)).summary()["bound"]
    assert bound == pytest.approx(metrics["test"]["bound"], abs=1e-5)


def test_it_is_loaded_onto_a_device():
    assert {value.device.type for value in load_vae(FIXTURE, "meta").state_dict().values()} == {"meta"}


def test_settings_that_changed_by_accident_are_refused(tmp_path):
    saved_in_format_3(tmp_path)
    text = (tmp_path / METRICS).read_text()
    (tmp_path / METRICS).write_text(text.replace('"bernoulli"', '"continuous-bernoulli"'))  # of the same networks
    with pytest.raises(CheckpointError, match=r"the model in metrics\.json is damaged"):
        load_vae(tmp_path)


def test_a_folder_of_the_format_before_is_read(tmp_path):
    vae = saved_in_format_3(tmp_path)
    metrics = json.loads((tmp_path / METRICS).read_text())
    del metrics["model"]["sha256"]
    (tmp_path / METRICS).write_text(json.dumps({**metrics, "format": 2}))
    assert all(torch.equal(a, b) for a, b in zip(load_vae(tmp_path).parameters(), vae.parameters()))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("format",), 4, "format 4, where this version of pyro_vae reads 1 to 3"),
        (("model", "parts", "temperature"), 1, r"unknown settings \['temperature'\]; a later version wrote them"),
        (("model", "parts", "lik"), "os.system", "lik: wanted one of bernoulli, .*, got 'os.system'"),
        (("model", "parts", "latent"), 10**9, "latent: wanted a whole number from 1 to 1048576, got 1000000000"),
        (("model", "parts", "latent"), True, "latent: wanted a whole number"),
        (("model", "parts", "hidden"), [10**6, 10**6], r"ask for tensors of shapes .*parameters\.pt has none"),
        (("model", "parts", "guide"), "inverse-autoregressive", "ask for tensors of shapes"),
        (("model", "shape"), [1, 28, 28], "ask for tensors of shapes"),
        (("model", "shape"), "1, 8, 8", r"shape: wanted \[C, H, W\]"),
        (("model",), None, "wanted an object 'model', got NoneType"),
        (("model", "parameters_sha256"), "0" * 64, r"parameters\.pt is damaged: it does not have the checksum"),
    ],
)
def test_what_is_not_known_is_refused(tmp_path, path, value, message):
    saved_in_format_3(tmp_path)
    change(tmp_path, *path, value=value)
    with pytest.raises(CheckpointError, match=f"holds no model that can be loaded: .*{message}"):
        load_vae(tmp_path)


def test_every_changed_byte_of_the_parameters_is_noticed(tmp_path):
    saved_in_format_3(tmp_path)
    data = bytearray((tmp_path / OLD_PARAMETERS).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / OLD_PARAMETERS).write_bytes(data)
    with pytest.raises(CheckpointError, match="is damaged"):
        load_vae(tmp_path)


def test_malicious_parameters_run_no_code(tmp_path):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "victim"),)

    shutil.copytree(FIXTURE, tmp_path / "run")
    torch.save({"prior.loc": Payload()}, tmp_path / "run" / OLD_PARAMETERS)
    with pytest.raises(CheckpointError, match=r"holds posix\.mkdir"):
        load_vae(tmp_path / "run")
    saved_in_format_3(tmp_path)
    torch.save({"prior.loc": Payload()}, tmp_path / OLD_PARAMETERS)
    digest = hashlib.sha256((tmp_path / OLD_PARAMETERS).read_bytes()).hexdigest()
    change(tmp_path, "model", "parameters_sha256", value=digest)
    with pytest.raises(CheckpointError, match=r"holds posix\.mkdir"):
        load_vae(tmp_path)
    assert not (tmp_path / "victim").exists()


def test_a_tensor_may_not_claim_more_memory_than_the_file_has(tmp_path):
    shutil.copytree(FIXTURE, tmp_path / "run")
    state = torch.load(FIXTURE / OLD_PARAMETERS, weights_only=True)
    state["prior.loc"] = torch.zeros(1).expand(10**12)
    torch.save(state, tmp_path / "run" / OLD_PARAMETERS)
    with pytest.raises(CheckpointError, match="something else than plain tensors"):
        load_vae(tmp_path / "run")


def test_metrics_that_are_no_json_or_none_at_all(tmp_path):
    with pytest.raises(CheckpointError, match=r"metrics\.json cannot be read \(No such file"):
        load_old(tmp_path)
    for content in ("[]", "{", "[" * 100_000):
        (tmp_path / METRICS).write_text(content)
        with pytest.raises(CheckpointError, match=r"metrics\.json"):
            load_old(tmp_path)


def test_a_checksum_does_not_depend_on_the_order_of_the_entries(tmp_path):
    assert checksum({"a": 1, "b": {"c": 2, "d": 3}}) == checksum({"b": {"d": 3, "c": 2}, "a": 1}) != checksum({"a": 1})
    vae = saved_in_format_3(tmp_path)
    metrics = json.loads((tmp_path / METRICS).read_text())
    model = dict(reversed(metrics["model"].items()))
    (tmp_path / METRICS).write_text(json.dumps({**metrics, "model": model}))
    assert all(torch.equal(a, b) for a, b in zip(load_vae(tmp_path).parameters(), vae.parameters()))
