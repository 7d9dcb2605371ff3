"""The Python of the README runs as it stands, on the bundled digits and with fewer pseudo-inputs."""

import re
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO

README = (Path(__file__).parents[1] / "README.md").read_text()
RUN = Path(__file__).parent / "fixtures/format1"


@pytest.mark.filterwarnings("ignore:.*Pareto")
def test_python_blocks_run_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names = {"torch": torch, "pyro": pyro, "dist": dist, "SVI": SVI}
    names |= {"Trace_ELBO": Trace_ELBO, "TraceMeanField_ELBO": TraceMeanField_ELBO}
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    for block in blocks:
        code = block.replace('"mnist"', '"digits"').replace(":500]", ":10]").replace("draws=100", "draws=3")
        code = code.replace("figures/mnist-bernoulli-z2-seed0", str(RUN)).replace("=10, check", "=1, check")
        exec(code.replace("data, pv.estimators", "data, epochs=1, estimator=pv.estimators"), names)
    assert len(blocks) == 8
    rows = names["history"].rows
    assert rows[-1]["valid_bound"] > rows[0]["valid_bound"]
    vae, ring = names["vae"], names["Ring"]()
    own = names["pv"].VAE(ring, vae.likelihood, vae.posterior)
    Trace_ELBO().differentiable_loss(own.model, own.guide, own.observe(names["data"].test.images)).backward()
    assert ring.log_radius.grad.abs() > 0


def test_files_and_pictures_it_names_exist():
    root = Path(__file__).parents[1]
    for name in re.findall(r"`(?:pyro_vae/)?(\w+\.py)`", README):
        assert (root / "pyro_vae" / name).is_file() or (root / "experiments" / name).is_file(), name
    for path in (root / "pyro_vae").glob("[!_]*.py"):
        assert f"`{path.name}`" in README or f"`pyro_vae/{path.name}`" in README, path.name
    for path in re.findall(r"!\[.*?\]\((.*?)\)", README):
        assert (root / path).is_file(), path
