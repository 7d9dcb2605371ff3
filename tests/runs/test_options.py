"""Options of command lines: ignored ones are refused, and the cure helps."""

import argparse

import pytest
from small_runs import command

from pyro_vae.runs import arguments
from pyro_vae.runs.options import check_taken, given


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--scale", "0.1"], "--scale: ignored beside --lik bernoulli; write --lik normal, or leave --scale out"),
        (["--scale", "pixel"], "--scale: ignored beside --lik bernoulli"),  # the default, and yet given
        (["--lik", "normal", "--bins", "4"], "--bins: ignored beside --lik normal; write --lik categorical"),
        (["--lik", "beta", "--binarize", "threshold"], "--binarize: ignored beside --lik beta; write --lik bernoulli"),
        (["--components", "5"], "--components: ignored beside --prior standard; write --prior mixture or vamp"),
        (["--guide", "full-rank", "--rank", "2"], "--rank: ignored beside --guide full-rank; write --guide low-rank"),
        (
            ["--flow-depth", "3", "--prior", "vamp"],
            "--flow-depth: ignored beside --prior vamp --guide meanfield; write "
            "--prior autoregressive or spline, or --guide inverse-autoregressive or planar, or leave --flow-depth out",
        ),
        (["--flow-width", "8"], "--flow-width: ignored beside"),
        (["--channels", "8"], "--channels: ignored beside --net mlp; write --net conv"),
        (
            ["--estimator", "wake-sleep", "--particles", "5"],
            "--particles: ignored beside --estimator wake-sleep; write --estimator trace or meanfield",
        ),
        (
            ["--recipe", "fast", "--prior", "standard", "--flow-width", "8"],
            "--flow-width: ignored beside --prior standard",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_option_that_is_ignored_is_refused(tmp_path, capsys, words, message):
    assert command(tmp_path, *words) == 1
    assert capsys.readouterr().err.startswith(f"error: {message}")
    assert list(tmp_path.iterdir()) == []


def test_what_takes_an_option_is_told_and_helps(capsys):
    """Each cure, followed, is no longer refused."""
    parser = argparse.ArgumentParser()
    for option, takers in arguments.OPTIONS_TAKEN_BY.items():
        for slot, names in takers.items():
            for name in names:
                check_taken(
                    [option],
                    {
                        "lik": ["bernoulli"],
                        "prior": ["standard"],
                        "guide": ["meanfield"],
                        "net": ["mlp"],
                        "estimator": ["wake-sleep"],
                        slot: [name],
                    },
                    arguments.OPTIONS_TAKEN_BY,
                )
    parser.add_argument("--hidden", nargs="*", default=[4])
    parser.add_argument("--quiet", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    assert given(parser, []) == set() and given(parser, ["--hidden", "--seed", "0"]) == {"hidden", "seed"}
