"""The command line of the comparison of estimators."""

import pytest

from pyro_vae.runs import compare

WORDS = ["--quick", "--draws", "30", "--images", "8", "--quiet"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--epochs", "1"], "--epochs: wanted at least 2"),
        (["--images", "0"], "--images: 1 to"),
        (["--batch", "0"], "batch_size: wanted 1 to"),
        (["--lr", "nan"], "lr: wanted a positive number"),
        (["--draws", "1"], "draws: wanted a whole number"),
        (["--particles", "0"], "K: wanted a whole number of at least 1, got 0"),
        (["--prior", "mixture"], "L\\^B: site 'z': no closed form"),
    ],
)
def test_what_cannot_be_is_an_error_without_results(tmp_path, capsys, words, message):
    out = tmp_path / "out"
    assert compare.main([*WORDS, "--out", str(out), *words]) == 1
    printed = capsys.readouterr()
    assert message.replace("\\", "") in printed.err and "at initialisation" not in printed.out
    assert not out.exists()
