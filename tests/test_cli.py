"""The console command: its page, its commands, and how quickly it answers."""

import inspect
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import pyro_vae
from pyro_vae.cli import COMMANDS, main

ROOT = Path(pyro_vae.__file__).parents[1]
SCRIPTS = {
    "train": "run",
    "evidence": "evidence",
    "compare": "compare_estimators",
}  # of experiments/
MISTYPED = {name: ["--hlep", "--out", "out"] for name in COMMANDS}  # and what every line of a sweep must have
IGNORED = {name: ["--lik", "beta", "--scale", "0.1"] for name in ("train", "compare")}  # by the parts that are chosen


@pytest.mark.slow
def test_no_word_is_a_question_for_help(capsys):
    assert main([]) == 0
    page = capsys.readouterr().out
    assert main(["--help"]) == main(["-h"]) == main(["help"]) == 0
    assert capsys.readouterr().out == 3 * page
    assert all(f"\n  {name} " in page and line in page for name, (_, line) in COMMANDS.items())
    assert max(map(len, page.splitlines())) <= 80


@pytest.mark.slow
def test_the_version_is_that_of_the_package(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"pyro-vae {pyro_vae.__version__}\n"


def test_an_unknown_command_suggests_the_nearest(capsys):
    assert main(["trian", "--epochs", "3"]) == 2
    assert capsys.readouterr().err.endswith("error: trian: no such command; did you mean train?\n")
    assert main(["--epochs"]) == 2
    assert f"wanted one of {', '.join(COMMANDS)}" in capsys.readouterr().err


@pytest.mark.slow
def test_a_command_gets_the_other_words_and_gives_the_exit_status(monkeypatch):
    monkeypatch.setattr("pyro_vae.runs.train.main", lambda argv: 7 if argv == ["--latent", "3"] else 0)
    assert main(["train", "--latent", "3"]) == 7


@pytest.mark.slow
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


@pytest.mark.slow
def test_help_and_errors_of_a_command_line_come_without_torch():
    """Each in a process of its own, as what one command imports would hide what another one needs."""
    mains = {name: f"from {module} import main" for name, (module, _) in COMMANDS.items()}
    starts = [(name, start, words) for name, start in mains.items() for words in (["--help"], MISTYPED[name])]
    starts += [(name, mains[name], words) for name, words in IGNORED.items()]
    starts += [(name, f"from experiments.{script} import main", ["--help"]) for name, script in SCRIPTS.items()]
    started = [(name, words, without_torch(start, words)) for name, start, words in starts]
    for name, words, process in started:
        out, error = process.communicate()
        wanted = {"--help": "0", "--hlep": "2", "--lik": "1"}[words[0]]
        assert out.splitlines()[-1] == f"status {wanted}, without torch", (name, words, out, error)


def without_torch(start, words):
    """Start a process that calls a command and prints its status, and whether torch was imported."""
    code = f"""if True:
        import sys
        {start}
        try:
            status = main({words})
        except SystemExit as ending:
            status = ending.code
        imported = {{"torch", "numpy", "pyro", "matplotlib"}} & sys.modules.keys()
        print(f"status {{status}},", *(imported or ["without torch"]))
    """
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=pipe, stderr=pipe, text=True)


@pytest.mark.slow
def test_the_page_comes_without_torch():
    process = without_torch("from pyro_vae.cli import main", [])
    assert process.communicate()[0].endswith("--dataset digits\nstatus 0, without torch\n")


def test_without_words_of_its_own_it_takes_those_of_the_command_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["pyro-vae", "--version"])
    assert main() == main(["-V"]) == 0
    assert capsys.readouterr().out == 2 * f"pyro-vae {pyro_vae.__version__}\n"
