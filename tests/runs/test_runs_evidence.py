"""The command line of the bounds of a trained model."""

import pytest

from pyro_vae.runs import evidence as command

BUDGETS = [["--target", "0.1"], ["--seconds", "5"], ["--target", "0.1", "--seconds", "5"]]
UNUSED = [
    "--particles 5",
    "--temperatures 4 8",
    "--chains 8",
    "--leapfrog 1",
    "--simulated 9",
    "--bfloat16",
    "--local",
    "--refit 0",
]


def test_the_experiment_wants_a_trained_model(tmp_path, capsys):
    assert command.main(["--run", str(tmp_path)]) == 1
    assert "holds no trained model; train one by pyro-vae train" in capsys.readouterr().err


def test_a_quick_look_has_other_defaults_and_the_command_line_holds():
    args = command.parse_arguments(["--run", "a", "--quick", "--chains", "3"])
    assert (args.images, args.particles, args.chains) == (20, [1, 10, 100], 3)


@pytest.mark.parametrize("budget", BUDGETS, ids=["target", "seconds", "both"])
@pytest.mark.parametrize("words", UNUSED)
def test_an_option_that_a_budget_would_ignore_is_refused(tmp_path, capsys, budget, words):
    """Those at their default too; the cure that the message names is followed."""
    given = ["--run", str(tmp_path), *budget]
    assert command.main([*given, *words.split()]) == 1
    name, beside = words.split()[0], " ".join(word for word in budget if word.startswith("--"))
    assert f"error: {name}: ignored beside {beside}, which chooses" in capsys.readouterr().err
    for cured in (given, ["--run", str(tmp_path), *words.split()]):
        command.parse_arguments(cured)


def test_a_number_of_images_is_refused_where_all_are_measured(tmp_path, capsys):
    given = ["--run", str(tmp_path), "--images", "5", "--all"]
    command.parse_arguments(given)  # the first 5 are annealed
    assert command.main([*given, "--target", "0.1"]) == 1
    assert "--images: ignored beside --all --target; leave one of --images and --all out" in capsys.readouterr().err
    command.parse_arguments([*given[:2], "--all", "--target", "0.1", "--quick"])
