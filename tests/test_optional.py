"""Optional packages: imported when they are used, and named with their extra where they are not installed."""

import configparser
import subprocess
import sys
from pathlib import Path

import pytest

from pyro_vae.optional import EXTRAS, optional

SETUP = Path(__file__).parents[1] / "setup.cfg"
NAMED = {"PIL": "pillow", "sklearn": "scikit-learn"}  # by pip
USE = """
import numpy, torch
import pyro_vae as pv
from pyro_vae import analysis
images = numpy.random.RandomState(0).randint(256, size=(90, 1, 8, 8), dtype=numpy.uint8)
data = pv.Data.from_arrays(images)
likelihood = pv.likelihoods.Bernoulli(pv.networks.MLPDecoder(2, (1, 8, 8), maps=1, hidden=(8,)))
guide = pv.guides.MeanField(pv.networks.MLPEncoder((1, 8, 8), hidden=(8,)), 2)
vae = pv.VAE(pv.priors.StandardNormal(2), likelihood, guide)
pv.fit(vae, data, epochs=1, batch_size=32, progress=False)
print(len(pv.log_evidence(vae, data.test, particles=20).log_px), len(analysis.codes(vae, vae.observe(data.test))))
for use in (
    lambda: pv.load("digits"),
    lambda: analysis.knn_accuracy(torch.zeros(3, 2), torch.zeros(3), torch.zeros(3, 2), torch.zeros(3), 1),
):
    try:
        use()
    except ImportError as error:
        print(error)
"""


def test_each_package_is_in_the_extra_that_the_message_names():
    extras = configparser.ConfigParser()
    extras.read(SETUP)
    for package, extra in EXTRAS.items():
        listed = extras["options.extras_require"][extra].split()
        assert any(line.partition(">=")[0] == NAMED.get(package, package) for line in listed), (package, extra)
        assert NAMED.get(package, package) not in extras["options"]["install_requires"]


def test_a_package_that_is_missing_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.neighbors", None)
    with pytest.raises(ImportError, match=r"probes need sklearn, .* pip install 'pyro_vae\[data\]'"):
        optional("sklearn.neighbors", "probes")


def test_a_fault_inside_a_package_is_not_taken_for_its_absence(monkeypatch, tmp_path):
    (tmp_path / "onnx.py").write_text("import nowhere_to_be_found")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "onnx", raising=False)
    with pytest.raises(ModuleNotFoundError, match="nowhere_to_be_found"):
        optional("onnx", "exports")


@pytest.mark.slow
def test_the_base_installation_trains_and_measures_a_vae(tmp_path):
    """Without the packages for data and figures: own arrays and log p(x) work, the rest names its extra."""
    absent = [name for name, extra in EXTRAS.items() if extra in ("data", "plots")]
    done = subprocess.run(
        [sys.executable, "-"],
        input=f"import sys; sys.modules.update(dict.fromkeys({absent}))\n{USE}",
        env={"PYTHONPATH": str(SETUP.parent), "OMP_NUM_THREADS": "1", "PATH": "", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    sizes, digits, probe = done.stdout.splitlines()
    assert sizes == "9 9"
    assert digits.startswith("the bundled digits need sklearn") and "pyro_vae[data]" in digits
    assert probe.startswith("probes of codes need sklearn")
