"""The steps of CONTRIBUTING.md work as they stand: its parts, pasted into a copy of the package, train for an epoch."""

import os
import re
import shlex
import shutil
from pathlib import Path

import pytest
from forked import Forked, file_of

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text()
PLACES = {  # heading: file of the class, file and first line of the table
    "Add a likelihood, step by step": ("likelihoods/pictures.py", "config/parts.py", "LIKELIHOODS = table(\n"),
    "Add an estimator": ("estimators.py", "config/estimators.py", "ESTIMATORS = table(\n"),
    "Add a data set": ("data/sets.py", "data/sets.py", "_SETS = (\n"),
}


def blocks(heading, language):
    section = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", section, flags=re.DOTALL)


def run(folder, logs, program, words):
    done = Forked(program, folder, {**os.environ, "PYTHONPATH": str(folder)}, words, logs).wait(600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A copy of the package with all parts of the page, and of what its commands read."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("pyro_vae", "experiments", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "setup.cfg", folder)
    for heading, (module, tables, table) in PLACES.items():
        part, *export, record = blocks(heading, "python")
        path = folder / "pyro_vae" / module
        for line in export:
            with path.with_name("__init__.py").open("a") as file:
                file.write(f'{line}__all__ += ["{line.split()[-1]}"]\n')
        before, at, after = path.read_text().partition(table)  # at the end where the table is in another file
        path.write_text(f"{before}\n\n{part}\n\n{at}{after}")
        path = folder / "pyro_vae" / tables
        assert path.read_text().count(table) == 1
        opened, more, record = record.partition("    ...,\n")  # the records that are there
        assert opened == table and more and record.endswith("\n)\n")
        path.write_text(path.read_text().replace(table, table + record.removesuffix(")\n")))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("heading", PLACES)
def test_commands_of_the_page_work(clone, heading, tmp_path):
    for line in "".join(blocks(heading, "bash")).splitlines():
        program, *words = shlex.split(line)
        if program == "pytest":
            assert re.search(r"\d passed", run(clone, tmp_path, "import pytest, sys; sys.exit(pytest.main())", words))
        else:
            assert program == "python" and "nats per image" in run(clone, tmp_path, file_of(words[0]), words[1:])
