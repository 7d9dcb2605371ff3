"""Every experiment runs as ``python experiments/NAME.py`` and as ``python -m experiments.NAME``."""

import doctest
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from experiments import benchmark
from experiments.aevb import published

ROOT = Path(__file__).parents[2]
NAMES = sorted(path.stem for path in (ROOT / "experiments").glob("[!_]*.py"))


@pytest.fixture
def as_installed(monkeypatch):
    """Python's path as an editable install leaves it: the root of the clone, and no folder in it."""
    inside = [str(path) for path in (ROOT / "tests", ROOT / "experiments")]
    monkeypatch.setattr(sys, "path", [str(ROOT), *(path for path in sys.path if path not in inside)])


@pytest.mark.parametrize("form", ["script", "module"])
@pytest.mark.parametrize("name", NAMES)
def test_help_of_every_experiment_in_both_forms(as_installed, monkeypatch, capsys, name, form):
    script = ROOT / "experiments" / f"{name}.py"
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    if form == "script":
        sys.path.insert(0, str(script.parent))  # as Python does with the folder of a script; undone by as_installed
    else:
        monkeypatch.delitem(sys.modules, f"experiments.{name}", raising=False)
    with pytest.raises(SystemExit) as ending:
        if form == "script":
            runpy.run_path(str(script), run_name="__main__")
        else:
            runpy.run_module(f"experiments.{name}", run_name="__main__", alter_sys=True)
    assert ending.value.code == 0 and "--out" in capsys.readouterr().out


@pytest.mark.parametrize("module", [benchmark, published], ids=lambda module: module.__name__)
def test_examples(module):
    done = doctest.testmod(module)
    assert done.attempted > 0 and done.failed == 0


@pytest.mark.slow
@pytest.mark.parametrize("form", [["experiments/run.py"], ["-m", "experiments.run"]], ids=" ".join)
def test_help_in_a_process_of_its_own(form):
    done = subprocess.run([sys.executable, *form, "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    for words in ("Train one VAE and measure it", "--lik LIK", "dimensions of the code z", "--overwrite", "--resume"):
        assert words in done.stdout


@pytest.mark.slow
def test_an_editable_install_puts_the_clone_on_the_path(tmp_path):
    pytest.importorskip("setuptools")
    source = tmp_path / "source"
    for folder in ("pyro_vae", "experiments"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = "from setuptools.build_meta import build_editable; build_editable('..')"
    subprocess.run([sys.executable, "-W", "ignore", "-c", build], cwd=source, check=True, capture_output=True)
    with zipfile.ZipFile(*tmp_path.glob("*.whl")) as wheel:
        links = [wheel.read(name).decode().strip() for name in wheel.namelist() if name.endswith(".pth")]
    assert links == [str(source)]
