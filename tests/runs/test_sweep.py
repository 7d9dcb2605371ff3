"""pyro-vae sweep: which runs a command line stands for, and what becomes of them."""

import json

import pytest
from small_runs import SMALL, state_of

from experiments import run as experiment
from pyro_vae import cli
from pyro_vae.config import NETWORK
from pyro_vae.records import options_of
from pyro_vae.runs import arguments, job, sweep

WORDS = ["--dataset", "digits", "--evidence", "0", *(word for word in SMALL if word != "--quiet")]


def planned(tmp_path, line):
    return list(sweep.planned(sweep.parse_arguments([*line.split(), "--out", str(tmp_path)])))


def options(words):
    return arguments.parse_arguments(words)


def test_the_product_of_all_values_seed_by_seed(tmp_path):
    runs = planned(tmp_path, "--lik beta normal --latent 2 5 --lr=1e-3 --conditional --seeds 0:2 7")
    assert [run.name for run in runs[:4]] == [
        "lik-beta_latent-2_seed-0",
        "lik-beta_latent-5_seed-0",
        "lik-normal_latent-2_seed-0",
        "lik-normal_latent-5_seed-0",
    ]
    assert [run.seed for run in runs] == [0] * 4 + [1] * 4 + [7] * 4
    args = [options(run.words) for run in runs]
    assert {(a.lik, a.latent, a.seed) for a in args} == {
        (lik, latent, seed) for lik in ("beta", "normal") for latent in (2, 5) for seed in (0, 1, 7)
    }
    assert all(a.lr == 1e-3 and a.conditional and a.out == tmp_path / run.name for a, run in zip(args, runs))


def test_options_that_take_several_numbers_vary_by_name_only(tmp_path):
    (run,) = planned(tmp_path, "--hidden 64 32 --seed 3")
    assert run.name == "seed-3" and options(run.words).hidden == [64, 32]
    runs = planned(tmp_path, "--vary hidden 64,32 16 --vary conditional no yes")
    assert [run.name for run in runs] == [
        "hidden-64x32_conditional-no_seed-0",
        "hidden-64x32_conditional-yes_seed-0",
        "hidden-16_conditional-no_seed-0",
        "hidden-16_conditional-yes_seed-0",
    ]
    found = [(options(run.words).hidden, options(run.words).conditional) for run in runs]
    assert found == [([64, 32], False), ([64, 32], True), ([16], False), ([16], True)]


def test_all_options_of_train_that_take_several_values_are_known():
    several = {name for name, option in options_of(NETWORK).items() if option.nargs}
    assert several | {"size"} == sweep.LISTS
    for name in sweep.LISTS:
        found = options([f"--{name}", "8", "4", *(["--net", "conv"] if name == "channels" else [])])
        assert getattr(found, name) == [8, 4]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--lik beta bernoulli --scale 0.1", "lik-beta_seed-0: --scale: ignored beside --lik beta; write --lik normal"),
        ("--lr -1", "seed-0: lr: wanted a "),
        ("--resume", "--resume: a sweep goes on by itself; leave it out"),
        ("--overwrite", "--overwrite: give another --out, or remove"),
        ("--lr 1e-3 --vary lr 1e-3 1e-2", "--lr: wanted it once, got it with --vary too"),
        ("--lr 1e-3 1e-3", "two runs would have the folder lr-1e-3_seed-0; give each value once"),
        ("--lr 1e-3 0.001", "lr-0.001_seed-0: it is the same run as lr-1e-3_seed-0; give each value once"),
        ("--vary lik beta --vary lik normal", "--lik: wanted its values once, got them twice"),
        ("--vary lik", "--vary lik: wanted values after it, got none"),
        ("--vary seed 0 1", "--vary seed: it is an option of the sweep itself; give --seeds 0 1"),
        ("--vary out a b", "--vary out: it is an option of the sweep itself"),
        ("beta", "beta: no option takes it"),
    ],
)
def test_what_cannot_be_is_refused_before_any_training(tmp_path, monkeypatch, capsys, line, message):
    monkeypatch.setattr(job, "run", lambda args: pytest.fail("it was trained"))
    words = [*line.split(), "--dataset", "digits", "--out", str(tmp_path / "out")]
    assert sweep.main(words) == 1
    assert capsys.readouterr().err.startswith(f"error: {message}") and not (tmp_path / "out").exists()


@pytest.mark.parametrize("word", ["0-3", "a", "1:b"])
def test_what_is_no_range_of_seeds_is_told_how_to_write_one(tmp_path, capsys, word):
    with pytest.raises(SystemExit, match="2"):
        sweep.main(["--seeds", word, "--out", str(tmp_path / "out")])
    assert f"wanted a seed, or a range such as 0:8, got {word!r}" in capsys.readouterr().err


@pytest.mark.parametrize("line", ["--latnet 3", "--lik bernuolli beta"])
def test_words_that_train_does_not_know(tmp_path, capsys, line):
    with pytest.raises(SystemExit, match="2"):
        sweep.main([*line.split(), "--out", str(tmp_path / "out")])
    assert line.split()[0] in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_dry_run_prints_commands_that_work(tmp_path, capsys):
    assert sweep.main([*WORDS, "--lik", "beta", "normal", "--dry-run", "--out", str(tmp_path / "out")]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("pyro-vae train --dataset digits") and second.endswith(f"{tmp_path}/out/lik-normal_seed-0")
    assert not (tmp_path / "out").exists() and options(second.split()[2:]).lik == "normal"


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """Two seeds, of which the second was interrupted at first."""
    folder = tmp_path_factory.mktemp("swept")
    assert sweep.main([*WORDS, "--seeds", "0:2", "--quiet", "--out", str(folder / "out")]) == 0
    return folder


@pytest.mark.slow
def test_a_run_is_the_one_of_train(swept, tmp_path):
    """As ``run.py --out`` writes it: the same parameters, numbers and files."""
    assert experiment.main([*WORDS, "--quiet", "--seed", "1", "--out", str(tmp_path / "out")]) == 0
    ours, theirs = swept / "out/seed-1", tmp_path / "out"
    assert {path.name for path in ours.iterdir()} == {path.name for path in theirs.iterdir()}
    for name, value in state_of(theirs).items():
        assert (state_of(ours)[name] == value).all(), name
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in (ours, theirs)]
    assert metrics[0]["test"] == metrics[1]["test"]


@pytest.mark.slow
def test_nothing_is_done_twice_and_other_settings_are_refused(swept, capsys, monkeypatch):
    monkeypatch.setattr(job, "run", lambda args: pytest.fail("it was trained"))
    words = [*WORDS, "--seeds", "0", "1", "--out", str(swept / "out")]
    assert sweep.main(words) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("2 of 2 runs have ended before\n") and "± standard error over the runs" in printed
    assert sweep.main([*words, "--lr", "0.1"]) == 1
    assert "error: seed-0: the checkpoint is of another run: lr is" in capsys.readouterr().err
    assert sweep.main([*words, "--epochs", "1"]) == 1
    assert "holds a run of 2 epochs, got 1; give another --out" in capsys.readouterr().err
    assert sweep.main([*words, "--evidence", "7"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split(" holds ")[0] for line in said[:2]] == [f"NOTE: {swept}/out/seed-{n}" for n in (0, 1)]
    assert "--evidence 0, as it stays" in said[0] and said[2] == "2 of 2 runs have ended before"


@pytest.mark.slow
def test_a_stopped_sweep_goes_on_and_a_failed_run_is_named(tmp_path, capsys, monkeypatch):
    words = [*WORDS, "--seeds", "0:3", "--epochs", "1", "--out", str(tmp_path / "out")]
    original, asked = job.run, []

    def run(args, stop=()):
        asked.append(args.seed)
        if args.seed == 0 and len(asked) == 1:
            raise FloatingPointError("the loss is not finite")
        return 130 if args.seed in stop else original(args)

    monkeypatch.setattr(job, "run", lambda args: run(args, stop=(2,)))
    assert sweep.main(words) == 130
    printed = capsys.readouterr()
    assert printed.err == f"interrupted: the runs that had ended are in {tmp_path}/out; the same command goes on\n"
    assert "[1 of 3] seed-0: failed: the loss is not finite" in printed.out and asked == [0, 1, 2]
    asked[:] = []
    monkeypatch.setattr(job, "run", run)
    assert sweep.main(words) == 1 and asked == [0, 2]
    printed = capsys.readouterr()
    assert printed.err == "failed: seed-0: the loss is not finite\n"
    assert "1 of 3 runs have ended before" in printed.out and "[2 of 2] seed-2: test bound -" in printed.out
    assert cli.main(["sweep", *words]) == 0
