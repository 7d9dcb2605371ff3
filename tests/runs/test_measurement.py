"""Any images and labels are measured and drawn; what cannot be is named and costs nothing else."""

import json
import re

import pytest
import torch
from programs import small_vae
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from small_runs import SMALL, command, drawn, own_images, twice

from experiments import run
from pyro_vae import analysis, load, plots
from pyro_vae.linear_gaussian import LinearGaussian
from pyro_vae.observation import fixed_arguments
from pyro_vae.random import mode, seeded
from pyro_vae.runs import drawing, measurement
from pyro_vae.runs.bounds import load_run
from pyro_vae.training.checkpoint import Checkpoints

pytestmark = pytest.mark.slow


@pytest.mark.usefixtures("rendered")
@pytest.mark.parametrize("labels", [range(1, 27), range(47), [3, 10**6], range(1000)], ids=len)
def test_any_number_of_classes(tmp_path, capsys, labels):
    every = {split: list(labels) for split in ("train", "valid", "test")}
    metrics, printed = twice(tmp_path, capsys, own_images(tmp_path / "letters", (1200, 20, 100), labels=every))
    assert metrics["left_out"] == {} and "left out" not in printed
    assert drawn(tmp_path) == set(drawing.PICTURES) and 0 <= metrics["knn_accuracy"] <= 1


@pytest.mark.parametrize("split", ["train", "test"])
def test_labels_of_one_split_alone_give_no_accuracy_and_cost_nothing_else(tmp_path, capsys, split):
    metrics, printed = twice(tmp_path, capsys, own_images(tmp_path / "parts", (60, 20, 20), labels={split: [0, 1]}))
    other = {"train": "test", "test": "train"}[split]
    assert list(metrics["left_out"]) == ["knn_accuracy"] and "knn_accuracy" not in metrics
    assert (
        f"left out knn_accuracy: it takes labels of training and test images, and the {other} images have none"
        in " ".join(printed.split())
    )
    assert drawn(tmp_path) == set(drawing.PICTURES)


@pytest.mark.usefixtures("rendered")
@pytest.mark.parametrize("channels", [2, 4])
def test_images_whose_channels_are_no_colours(tmp_path, capsys, channels):
    metrics, _ = twice(tmp_path, capsys, own_images(tmp_path / "rgba", (60, 20, 20), (channels, 8, 8)))
    assert metrics["left_out"] == {} and drawn(tmp_path) == set(drawing.PICTURES)


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_the_layout_that_an_error_asks_for(tmp_path, capsys, layout):
    """Both answers to the question can be given, and the evidence is measured on the images that were trained on."""
    shape = (8, 8, 3)
    data = own_images(tmp_path / "asked", (60, 20, 20), shape)
    assert run.main(["--dataset", data, *SMALL, "--out", str(tmp_path / "out")]) == 1
    assert "or by pyro-vae train --layout; or," in capsys.readouterr().err
    metrics, _ = twice(tmp_path, capsys, data, "--layout", layout)
    wanted = list(shape) if layout == "NCHW" else [3, 8, 8]
    assert metrics["dataset"]["shape"] == wanted and drawn(tmp_path) == set(drawing.PICTURES)
    _, rows, _ = load_run(tmp_path / "out", torch.device("cpu"))
    assert list(rows.images.shape[1:]) == wanted
    assert command(tmp_path, "--layout", "NCHW", "--overwrite") == 1
    assert 'layout: wanted "NCHW" or "NHWC" for a folder, else None' in capsys.readouterr().err


@pytest.mark.usefixtures("rendered")
@pytest.mark.parametrize(
    ("sizes", "left_out"),
    [
        (
            (12, 1, 1),
            {"active_units", "knn_accuracy", "latent_plane.png", "aggregate_posterior.png", "interpolation.png"},
        ),
        ((1, 1, 2), {"knn_accuracy"}),
        ((15, 2, 2), set()),
    ],
)
def test_few_images(tmp_path, capsys, sizes, left_out):
    every = {split: [0, 1, 2] for split in ("train", "valid", "test")}
    data = own_images(tmp_path / "few", sizes, labels=every)
    metrics, printed = twice(tmp_path, capsys, data, "--lik", "logistic", "--evidence", "3")
    assert set(metrics["left_out"]) == left_out and printed.count("left out") == len(left_out)
    assert metrics["settings"]["batch"] == sizes[0]
    single = sizes[2] == 1
    for entry in (metrics["test"], metrics["evidence"]):
        assert (entry["standard_error"] is None) == single == (entry["bits_per_dim_standard_error"] is None)
    assert re.search(r"^test bound +-[\d.]+ nats per image, 1 images", printed, re.MULTILINE) or not single


@pytest.mark.usefixtures("rendered")
@pytest.mark.parametrize(("lik", "pixels"), [("bernoulli", 0), ("normal", 255), ("beta", 0)])
def test_images_that_are_all_the_same(tmp_path, capsys, lik, pixels):
    data = own_images(tmp_path / "same", (30, 5, 5), labels={"train": [0, 1], "test": [0, 1]}, pixels=pixels)
    metrics, _ = twice(tmp_path, capsys, data, "--lik", lik, "--latent", "3")
    assert metrics["left_out"] == {}


def test_what_cannot_be_measured_or_drawn_is_named_and_costs_nothing_else(tmp_path, capsys, monkeypatch):
    def fails(*args, **kwargs):
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr(analysis, "knn_accuracy", fails)
    monkeypatch.setattr(measurement, "evaluate", fails)
    monkeypatch.setattr(measurement, "log_evidence", fails)
    monkeypatch.setattr(measurement, "repeated_bounds", lambda *args: {"Trace_ELBO": {"bound": float("nan")}})
    monkeypatch.setattr(plots, "manifold", fails)
    metrics, printed = twice(tmp_path, capsys, "digits", "--evidence", "3")
    reasons = dict.fromkeys(("test", "evidence", "knn_accuracy", "manifold.png"), "division by zero")
    assert {**reasons, "estimators": metrics["left_out"]["estimators"]} == metrics["left_out"]
    assert "not JSON compliant" in metrics["left_out"]["estimators"] and not set(metrics) & set(metrics["left_out"])
    for name, why in metrics["left_out"].items():
        assert f"left out {name}: {why}" in " ".join(printed.split())
    assert drawn(tmp_path) == set(drawing.PICTURES) - {"manifold"}
    assert not Checkpoints(tmp_path / "out").exist()


def test_the_default_on_small_images_uses_both_dimensions_and_says_so(tmp_path, capsys):
    words = ["--dataset", "digits", "--epochs", "15", "--evidence", "0", "--quiet", "--out", str(tmp_path / "out")]
    assert run.main(words) == 0
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert metrics["active_units"] == 2 and min(metrics["rate_per_dimension"]) > 0.5
    assert "collapsed" not in capsys.readouterr().out


def test_repeated_bounds_are_those_of_pyro_by_the_same_draws():
    vae, digits = small_vae(), load("digits")
    x = fixed_arguments(vae, digits.test[:50])
    found = measurement.repeated_bounds(vae, x, closed=True, draws=10)
    for elbo in (Trace_ELBO, TraceMeanField_ELBO):
        with seeded(0), mode(vae, training=False), torch.no_grad():
            together = elbo(num_particles=10, vectorize_particles=True, max_plate_nesting=1)
            bound = -together.loss(vae.model, vae.guide, *x) / 50
        assert found[elbo.__name__]["bound"] == pytest.approx(bound, rel=1e-5)
        assert (found[elbo.__name__]["draws"], found[elbo.__name__]["images"]) == (10, 50)
    assert list(measurement.repeated_bounds(vae, x, closed=False, draws=2)) == ["Trace_ELBO"]


def test_repeated_bounds_of_an_exact_guide():
    """log p(x, z) − log q(z | x) is log p(x) for every z, and the KL that replaces a part of it brings noise back."""
    program = LinearGaussian(torch.randn(6, 2, generator=torch.Generator().manual_seed(0)).double())
    x = program.simulate(300)
    found = measurement.repeated_bounds(program, (x,), closed=True, draws=1000)
    log_px = program.log_px(x).mean().item()
    assert found["Trace_ELBO"]["bound"] == pytest.approx(log_px, abs=1e-9)
    assert found["Trace_ELBO"]["sd_over_draws"] < 1e-9
    noisy = found["TraceMeanField_ELBO"]
    assert 0.01 < noisy["sd_over_draws"] < 0.2
    assert noisy["bound"] == pytest.approx(log_px, abs=5 * noisy["sd_over_draws"] / 1000**0.5)
