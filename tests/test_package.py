"""The source distribution holds all that tests and readers need; the wheel holds the package and nothing else."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
FOLDERS = ("pyro_vae", "experiments", "tests", "docs")
BUILD = "from setuptools.build_meta import build_sdist, build_wheel; build_sdist('..'), build_wheel('..')"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The names of the files in the folder that is packed, in the source distribution, and in the wheel."""
    pytest.importorskip("setuptools")
    folder = tmp_path_factory.mktemp("package")
    source = folder / "source"
    for name in FOLDERS:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    (source / "figures").mkdir()
    for path in [*ROOT.glob("[!.]*"), *ROOT.glob("figures/*.*")]:
        if path.is_file():
            shutil.copy(path, source / path.relative_to(ROOT))
    here = {str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()}
    subprocess.run([sys.executable, "-W", "ignore", "-c", BUILD], cwd=source, check=True, capture_output=True)
    with tarfile.open(*folder.glob("*.tar.gz")) as file:
        packed = {name.partition("/")[2] for name in file.getnames()}
    with zipfile.ZipFile(*folder.glob("*.whl")) as file:
        return here, packed, set(file.namelist())


def test_the_source_distribution_has_every_file_that_tests_experiments_and_readers_read(built):
    here, packed, _ = built
    assert here <= packed
    papers = {"README.md", "CHANGELOG.md", "CITATION.cff", "LICENSE", "MANIFEST.in", "pyproject.toml", "setup.cfg"}
    assert papers | {"tests/fixtures/format1/parameters.pt", "tests/programs.py"} <= here
    assert all(str(path.relative_to(ROOT)) in packed for path in ROOT.glob("docs/*.md"))


def test_the_wheel_has_every_module_and_the_mark_of_its_types_and_nothing_else(built):
    here, _, wheel = built
    modules = {name for name in here if name.startswith("pyro_vae/") and name.endswith(".py")}
    rooms = {str(path.parent.relative_to(ROOT)) for path in (ROOT / "pyro_vae").rglob("*.py")}
    assert {f"{room}/__init__.py" for room in rooms} <= modules  # a folder without one is not found
    of_package = {name for name in wheel if ".dist-info/" not in name}
    assert of_package == modules | {"pyro_vae/py.typed"}
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in wheel)
