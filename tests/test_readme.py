"""The Python of the README runs as it stands, in one fresh interpreter, where MNIST cannot be had."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
CHECKS = """
rows = history.rows
assert rows[-1]["valid_bound"] > rows[0]["valid_bound"] + 1
assert "digits" in data.name and len(pyro.get_param_store()) == 0
assert torch.load("vae.pt").keys() == vae.state_dict().keys()
ring = Ring()
own = pv.VAE(ring, vae.likelihood, vae.posterior)
Trace_ELBO().differentiable_loss(own.model, own.guide, x).backward()
assert ring.log_radius.grad.abs() > 0
"""


def test_python_blocks_run_in_order(tmp_path):
    """Nothing is imported, named or changed for them; no address can be reached, and no data set is there."""
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) >= 7
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    nowhere |= {"no_proxy": "", "NO_PROXY": ""}
    folders = {name: str(tmp_path / name) for name in ("HOME", "XDG_CACHE_HOME", "PYRO_VAE_DATA")}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, **nowhere, **folders, "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-"],
        input="\n".join([*blocks, CHECKS]),
        cwd=tmp_path,
        env=environment,
        text=True,
        capture_output=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "gradient of the guide" in done.stdout and "log p(x)" in done.stdout


def test_files_and_pictures_it_names_exist():
    for name in re.findall(r"`(?:pyro_vae/)?(\w+\.py)`", README):
        assert (ROOT / "pyro_vae" / name).is_file() or (ROOT / "experiments" / name).is_file(), name
    for path in (ROOT / "pyro_vae").glob("[!_]*"):
        name = f"{path.name}/" if path.is_dir() else path.name
        assert f"`{name}`" in README or path.suffix == ".typed", path.name
    for path in re.findall(r"!\[.*?\]\((.*?)\)", README):
        assert (ROOT / path).is_file(), path
