"""The source distribution holds what the tests need."""

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("pyro_vae", "experiments", "tests")


def test_the_source_distribution_has_every_file_that_tests_and_experiments_read(tmp_path):
    pytest.importorskip("setuptools")
    source = tmp_path / "source"
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (source / "figures").mkdir()
    for path in [*ROOT.glob("*.*"), *ROOT.glob("figures/*.*")]:
        if path.is_file():
            shutil.copy(path, source / path.relative_to(ROOT))
    expected = {str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()} - {".gitignore", ".git"}
    build = "from setuptools.build_meta import build_sdist; build_sdist('..')"
    subprocess.run([sys.executable, "-W", "ignore", "-c", build], cwd=source, check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        held = {name.partition("/")[2] for name in file.getnames()}
    assert expected <= held and {"tests/fixtures/format1/parameters.pt", "README.md", "MANIFEST.in"} <= expected
