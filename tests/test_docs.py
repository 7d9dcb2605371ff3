"""The Python of each page of docs/ runs as it stands, in one fresh interpreter a page, on the bundled digits."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("**/*.md"))
# TensorBoard is not installed everywhere; where it is not, a writer takes its place that notes what it is given.
BEFORE = """
import importlib.util, sys, types
if importlib.util.find_spec("tensorboard") is None:
    class SummaryWriter:
        def __init__(self, *args, **kwargs):
            self.scalars = []
        def add_scalar(self, *scalar):
            self.scalars.append(scalar)
    sys.modules["torch.utils.tensorboard"] = types.SimpleNamespace(SummaryWriter=SummaryWriter)
"""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT / "docs")))
def test_python_blocks_run_in_order(page, tmp_path):
    """No address can be reached, and no data set is there; warnings are errors."""
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    folders = {name: str(tmp_path / name) for name in ("HOME", "XDG_CACHE_HOME", "PYRO_VAE_DATA")}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-"],
        input="\n".join([BEFORE, *blocks]),
        cwd=tmp_path,
        env={**os.environ, **nowhere, "no_proxy": "", "NO_PROXY": "", **folders, "PYTHONPATH": path},
        text=True,
        capture_output=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
