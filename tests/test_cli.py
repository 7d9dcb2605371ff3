"""The console command: its page, its commands, and how quickly it answers."""

import inspect
import subprocess
import sys
from importlib import import_module

import pytest

import pyro_vae
from pyro_vae.cli import COMMANDS, main


def test_no_word_is_a_question_for_help(capsys):
    assert main([]) == 0
    page = capsys.readouterr().out
    assert main(["--help"]) == main(["-h"]) == main(["help"]) == 0
    assert capsys.readouterr().out == 3 * page
    assert all(f"\n  {name} " in page and line in page for name, (_, line) in COMMANDS.items())
    assert max(map(len, page.splitlines())) <= 80


def test_the_version_is_that_of_the_package(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"pyro-vae {pyro_vae.__version__}\n"


def test_an_unknown_command_suggests_the_nearest(capsys):
    assert main(["trian", "--epochs", "3"]) == 2
    assert capsys.readouterr().err.endswith("error: trian: no such command; did you mean train?\n")
    assert main(["--epochs"]) == 2
    assert f"wanted one of {', '.join(COMMANDS)}" in capsys.readouterr().err


def test_a_command_gets_the_other_words_and_gives_the_exit_status(monkeypatch):
    monkeypatch.setattr("pyro_vae.runs.train.main", lambda argv: 7 if argv == ["--latent", "3"] else 0)
    assert main(["train", "--latent", "3"]) == 7


def test_ctrl_c_during_the_import_is_no_traceback(monkeypatch):
    def interrupted(name):
        raise KeyboardInterrupt

    monkeypatch.setattr("pyro_vae.cli.import_module", interrupted)
    assert main(["train"]) == 130


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_is_a_module_with_a_page_of_help(monkeypatch, capsys, name):
    monkeypatch.setenv("COLUMNS", "80")
    run = import_module(COMMANDS[name][0]).main
    argv, *others = inspect.signature(run).parameters.values()
    assert argv.name == "argv" and all(other.default is not other.empty for other in others)
    with pytest.raises(SystemExit) as ending:
        main([name, "--help"])
    page = capsys.readouterr().out
    assert ending.value.code == 0 and page.startswith(f"usage: pyro-vae {name} ")
    assert max(map(len, page.splitlines())) <= 80 and "(default: None)" not in page


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_suggests_the_nearest_option(tmp_path, capsys, name):
    needed = ["--out", str(tmp_path / "out")] if name == "sweep" else []  # which hands on what it does not know
    with pytest.raises(SystemExit) as ending:
        main([name, "--hlep", *needed])
    assert ending.value.code == 2
    assert capsys.readouterr().err.endswith("error: --hlep: no such option; did you mean --help?\n")


def test_the_page_comes_without_torch():
    code = (
        "import sys; from pyro_vae.cli import main; main([]); print(*{'torch', 'numpy', 'pyro'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("--dataset digits\n\n")
