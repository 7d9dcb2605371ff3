"""The command line of the bounds of a trained model."""

import pytest

from pyro_vae.runs import evidence as command

pytestmark = pytest.mark.filterwarnings("ignore::pyro_vae.evidence.UntrustedEvidence")


FEW = ["--images", "4", "--particles", "30", "--temperatures", "4", "--chains", "2", "--leapfrog", "2"]


def test_the_experiment_wants_a_trained_model(tmp_path, capsys):
    assert command.main(["--run", str(tmp_path)]) == 1
    assert "holds no trained model; train one by pyro-vae train" in capsys.readouterr().err


def test_a_quick_look_has_other_defaults_and_the_command_line_holds():
    args = command.parse_arguments(["--run", "a", "--quick", "--chains", "3"])
    assert (args.images, args.particles, args.chains) == (20, [1, 10, 100], 3)
