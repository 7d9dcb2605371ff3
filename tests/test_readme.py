"""The README is short, and its Python runs as it stands, in one fresh interpreter, where MNIST cannot be had."""

import configparser
import os
import re
from pathlib import Path

import pytest
from forked import Forked

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
CHECKS = """
rows = history.rows
assert rows[-1]["valid_bound"] > rows[0]["valid_bound"] + 1
assert "digits" in data.name and len(pyro.get_param_store()) == 0
"""


def test_a_newcomer_reads_at_most_120_lines_and_one_picture():
    assert len(README.splitlines()) <= 120
    assert len(re.findall(r"!\[", README)) == 1


@pytest.mark.slow
def test_python_blocks_run_in_order(tmp_path):
    """Nothing is imported, named or changed for them; no address can be reached, and no data set is there."""
    first, *rest = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(first.splitlines()) <= 14 and rest
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    nowhere |= {"no_proxy": "", "NO_PROXY": ""}
    folders = {name: str(tmp_path / name) for name in ("HOME", "XDG_CACHE_HOME", "PYRO_VAE_DATA")}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, **nowhere, **folders, "PYTHONPATH": path}
    done = Forked("\n".join([first, *rest, CHECKS]), tmp_path, environment).wait(600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "gradient of the guide" in done.stdout and "log p(x)" in done.stdout
    assert (tmp_path / "plane.png").stat().st_size > 10_000


def test_the_extras_that_it_installs_exist():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    named = re.findall(r"-e '\.\[([\w,]+)\]'", README)
    assert named and {extra for names in named for extra in names.split(",")} <= set(setup["options.extras_require"])
