"""What all commands share: help and results on any terminal, the home folder, options that are not ignored."""

import errno
import io
import re
import sys
import tempfile
from pathlib import Path

import pytest

from experiments import (
    all_images,
    anomalies,
    atlas,
    benchmark,
    best,
    calibration,
    compare_likelihoods,
    compare_priors_and_guides,
    conditional,
    conditional_quadrants,
    counts,
    discrete,
    gpu,
    joint,
    latent_dimensions,
    missing,
    reproduce_aevb,
    run,
    semi_supervised,
    sequences,
    tables,
    two_layer,
)
from pyro_vae.runs import compare, evidence
from pyro_vae.runs.arguments import parse_arguments

EXPERIMENTS = [
    all_images,
    anomalies,
    atlas,
    benchmark,
    best,
    calibration,
    compare_likelihoods,
    compare_priors_and_guides,
    conditional,
    conditional_quadrants,
    counts,
    discrete,
    gpu,
    joint,
    latent_dimensions,
    missing,
    reproduce_aevb,
    run,
    semi_supervised,
    sequences,
    tables,
    two_layer,
]
COMMANDS = [*EXPERIMENTS, compare, evidence]
WITHOUT_DATA_FOLDER = [calibration, counts, sequences, tables]  # they simulate, or read what packages bring


def name(command):
    return command.__name__.rpartition(".")[2]


def test_these_are_all_commands():
    scripts = {path.stem: path.read_text(encoding="utf-8") for path in Path(run.__file__).parent.glob("*.py")}
    assert {stem for stem, text in scripts.items() if "def main(" in text} == set(map(name, EXPERIMENTS))


@pytest.mark.parametrize("command", COMMANDS, ids=name)
@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_help_on_any_terminal(monkeypatch, command, encoding):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    with pytest.raises(SystemExit, match="0"):
        command.main(["--help"])
    sys.stdout.flush()
    assert "--out" in raw.getvalue().decode(encoding)


@pytest.mark.parametrize("command", COMMANDS, ids=name)
def test_the_home_folder_in_every_path(tmp_path, monkeypatch, command):
    monkeypatch.setenv("HOME", str(tmp_path))
    own = ["--run=~/run"] if command in (all_images, evidence) else []
    data = [] if command in WITHOUT_DATA_FOLDER else ["--data-dir", "~/b"]
    parse = parse_arguments if command is run else command.parse_arguments
    args = parse(["--out=~/a", *data, *own])
    assert args.out == tmp_path / "a"
    assert not data or args.data_dir == tmp_path / "b"
    assert not own or args.run == tmp_path / "run"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (latent_dimensions, ["--dataset", "digits"]),
        (compare_priors_and_guides, ["--dataset", "digits"]),
        (compare_likelihoods, ["--dataset", "digits", "--images", "9"]),
        (reproduce_aevb, ["--digits"]),
        (compare, ["--quick"]),
        (two_layer, ["--dataset", "digits", "--images", "9"]),
        (conditional, ["--quick"]),
        (conditional_quadrants, ["--quick"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_trained(
    tmp_path, monkeypatch, capsys, command, words
):
    def read_only(dir):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", read_only)
    for work in ("train", "trained", "fit"):
        if hasattr(command, work):
            monkeypatch.setattr(command, work, lambda *_, **__: pytest.fail("it was trained"))
    assert command.main([*words, "--out", str(tmp_path / "out")]) == 1
    assert re.search("error: .* cannot be written .Read-only file system.; give another --out", capsys.readouterr().err)


@pytest.mark.slow
@pytest.mark.parametrize("command", [latent_dimensions, compare_priors_and_guides], ids=name)
def test_results_beside_the_folder_one_is_in(tmp_path, monkeypatch, command):
    """The folder ``.`` has a name, that of the results beside it."""
    (tmp_path / "sweep").mkdir()
    monkeypatch.chdir(tmp_path / "sweep")
    words = ["--dataset", "digits", "--net", "mlp", "--hidden", "8", "--epochs", "1", "--quiet", "--seeds", "0"]
    own = ["--dimensions", "2"] if command is latent_dimensions else ["--rows", "standard", "--latent", "2"]
    assert command.main([*words, *own, "--out", "."]) == 0
    assert {"sweep.json", "sweep.png"} < {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        (compare, ["--scale", "0.1"], "--scale: ignored beside --lik bernoulli; write --lik normal"),
        (compare, ["--quick", "--channels", "8"], "--channels: ignored beside --net mlp; write --net conv"),
        (latent_dimensions, ["--channels", "8"], "--channels: ignored beside --net mlp; write --net conv"),
        (latent_dimensions, ["--bins", "8"], "--bins: ignored beside --lik bernoulli; write --lik categorical"),
        (two_layer, ["--channels", "8"], "--channels: ignored beside --net mlp; write --net conv"),
        (compare_priors_and_guides, ["--net", "mlp", "--channels", "8"], "--channels: ignored beside --net mlp; write"),
        (
            reproduce_aevb,
            ["--panels", "frey-2", "frey-5", "--binarize", "threshold"],
            "--binarize: ignored beside --panels frey-2 frey-5; write --panels mnist-3 or",
        ),
        (
            reproduce_aevb,
            ["--algorithms", "wake-sleep", "--estimator", "trace"],
            "--estimator: ignored beside --algorithms wake-sleep; write --algorithms aevb",
        ),
    ],
    ids=lambda value: getattr(value, "__name__", " ".join(value) if isinstance(value, list) else ""),
)
def test_an_option_that_is_ignored_is_refused(tmp_path, capsys, command, words, message):
    assert command.main([*words, "--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.startswith(f"error: {message}")
    assert not (tmp_path / "out").exists()


def test_options_that_something_in_the_command_takes():
    # Commands that share the rows of one table have the same options.
    compare_priors_and_guides.parse_arguments(["--rows", "standard", "--flow-depth", "3", "--components", "9"])
    latent_dimensions.parse_arguments(["--estimator", "wake-sleep", "--particles", "5"])  # those of the evaluation
    reproduce_aevb.parse_arguments(["--panels", "frey-2", "mnist-3", "--binarize", "threshold"])
