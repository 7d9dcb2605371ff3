"""Measuring takes at most half the work of training, and follows from the settings alone."""

import json

import pytest
from small_runs import SMALL, command

from experiments import run
from pyro_vae import load
from pyro_vae.runs.arguments import fill_in, parse_arguments
from pyro_vae.runs.effort import LEAST, REPEATS, TRAINED, Effort


@pytest.mark.parametrize("epochs", [1, 2, 5, 10])
@pytest.mark.parametrize("particles", [0, 50])
def test_short_is_at_most_half_of_the_training(epochs, particles):
    effort = Effort(50_000, 10_000, epochs * 50_000, particles)
    work = sum(work for _, work in effort.works.values())
    assert work <= epochs * 50_000 * 3 / 2
    assert effort.images == 10_000 or work > 0.99 * epochs * 50_000 * 3 / 2
    assert Effort(50_000, 10_000, epochs * 50_000, particles, "full").images == 10_000


def test_the_work_is_that_of_all_z_that_are_decoded_and_of_all_images_that_are_encoded():
    works = Effort(train=1000, test=100, trained=10**9, particles=5).works
    encoded = 0.6 * (100 + 100 + 100 + 1100)
    assert sum(work for _, work in works.values()) == pytest.approx(100 * (1 + 5 + REPEATS) + encoded)


def test_some_images_are_measured_whatever_the_training():
    assert Effort(10, 10_000, 10, particles=10**6).images == LEAST and Effort(10, 7, 10, particles=50).images == 7


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], (50, "short")),
        (["--evidence", "400"], (400, "full")),
        (["--evidence", "0"], (0, "short")),
        (["--evidence", "400", "--measure", "short"], (400, "short")),
        (["--measure", "full"], (50, "full")),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
def test_what_is_measured_by_default(words, expected):
    args = parse_arguments(words)
    fill_in(args, load("digits"))
    assert (args.evidence, args.measure) == expected


@pytest.mark.slow
def test_a_short_measurement_takes_images_of_all_parts_of_the_test_set_and_says_how_many(tmp_path, capsys):
    loud = [word for word in SMALL if word != "--quiet"]
    words = ["--dataset", "digits", *loud, "--evidence", "400", "--measure", "short", "--out", str(tmp_path / "out")]
    assert run.main(words) == 0
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert metrics["evidence"]["images"] == metrics["estimators"]["Trace_ELBO"]["images"] == LEAST
    assert metrics["test"]["images"] == 250 and metrics["seconds"]["measuring"] > 0
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if line.startswith(("measuring", "  "))]
    assert lines[0].startswith("measuring   about ") and "--measure none leaves it out; --measure full" in lines[0]
    assert [line.partition(": about ")[0] for line in lines[1:5]] == [
        "  the bound of 250 test images",
        "  log p(x) of 100 of 250 test images, 400 draws of z for each",
        "  the bound of 100 of 250 test images, 10 times",
        "  the codes of 1,297 training images",
    ]
    assert "100 images of 250, evenly spread" in " ".join(printed.split())


@pytest.mark.slow
def test_nothing_is_measured_if_asked_and_the_pictures_are_drawn(tmp_path, capsys):
    assert command(tmp_path, "--measure", "none") == 0
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert not {"test", "evidence", "estimators", "knn_accuracy", "active_units"} & set(metrics)
    assert metrics["left_out"] == {} and (tmp_path / "out/latent_plane.png").is_file()
    assert "test bound" not in capsys.readouterr().out


def test_the_work_of_each_entry_and_what_is_said_of_it():
    """In z that are decoded: one image is encoded at 0.6, and ten repeated bounds are encoded once more."""
    effort = Effort(train=1000, test=100, trained=10**9, particles=5)
    assert {name: work for name, (_, work) in effort.works.items()} == pytest.approx(
        {"test": 160, "evidence": 560, "estimators": 1060, "knn_accuracy": 660}
    )
    said, done = [], []
    entries = {name: lambda name=name: done.append(name) for name in ("test", "evidence", "own")}
    for measured in effort.announced(entries, 10**9 * TRAINED, said.append).values():
        measured()
    assert done == ["test", "evidence", "own"]
    assert said == [
        "measuring   about 12 min; --measure none leaves it out",
        "  the bound of 100 test images: about 3 min",
        "  log p(x) of 100 images, 5 draws of z for each: about 9 min",
    ]
    said.clear()
    for measured in effort.announced({"test": lambda: None}, 0.0, said.append).values():
        measured()
    assert said == ["measuring   about 1 s; --measure none leaves it out", "  the bound of 100 test images"]
