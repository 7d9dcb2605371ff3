"""Parsers show each default once, suggest the nearest word, and fit a page to the terminal."""

import pytest

from pyro_vae.runs.parser import Parser, suggestion

LIKELIHOODS = ("bernoulli", "continuous-bernoulli", "normal", "beta", "categorical")


@pytest.fixture
def parser(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = "Train a VAE.\n\n    pyro-vae  train --lik beta\n\n- one\n- two\n\n" + "word " * 40
    made = Parser(prog="pyro-vae train", description=text)
    made.add_argument("--lik", choices=LIKELIHOODS, default="bernoulli", help="p(x | z)")
    made.add_argument("--net", choices=("conv", "mlp"), default="conv", help="networks")
    made.add_argument("--hidden", type=int, nargs="+", default=[3, 4], help="widths")
    made.add_argument("--rate", default="5%", help="share")
    made.add_argument("--lr", type=float, default=0.1)
    made.add_argument("--out", help="folder")
    made.add_argument("--size", type=int, default=7, help="side (default: as it is)")
    made.add_argument("--quiet", action="store_true", help="no bar")
    made.add_argument("--run", required=True, metavar="FOLDER", help="a run")
    made.add_argument("what", nargs="?", help="a set")
    return made


def test_the_page_shows_each_default_once(parser):
    page = " ".join(parser.format_help().split())
    assert "--net {conv,mlp} networks (default: conv)" in page
    assert "widths (default: 3 4)" in page and "share (default: 5%)" in page and "side (default: as it is)" in page
    assert "--quiet no bar --run" in page and "--out OUT folder --size" in page
    assert f"--lik LIK p(x | z); one of {', '.join(LIKELIHOODS)} (default: bernoulli)" in page
    assert "--lr LR (default: 0.1) --out" in page and page.count("default: ") == 6 and "default: None" not in page


def test_the_page_is_short_and_narrow(parser):
    page = parser.format_help()
    usage = "usage: pyro-vae train [what] --run FOLDER [options]"
    assert page.startswith(f"{usage}\n\nTrain a VAE.\n\n    pyro-vae  train --lik beta\n\n- one\n- two\n\nword")
    assert max(map(len, page.splitlines())) < 80


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--hiden", "3"], "--hiden: no such option; did you mean --hidden?"),
        (["--sieze=3"], "--sieze: no such option; did you mean --size?"),
        (["-size", "3", "--run", "a"], "-size: no such option; did you mean --size?"),
        (["--hid", "3"], "--hid: no such option; did you mean --hidden?"),
        (["--zzzz"], "--zzzz: no such option; pyro-vae train --help lists all"),
        (["--run", "a", "mnist", "more"], "more: no option takes it; pyro-vae train --help lists all"),
        (
            ["--lik", "bernuli"],
            f"argument --lik: wanted one of {', '.join(LIKELIHOODS)}, got bernuli; did you mean bernoulli?",
        ),
        (["--net", "rnn"], "argument --net: wanted one of conv, mlp, got rnn"),
        ([], "the following arguments are required: --run"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_word_that_is_none_is_an_error_with_the_nearest(parser, capsys, words, message):
    with pytest.raises(SystemExit) as ending:
        parser.parse_args(words)
    assert ending.value.code == 2
    assert capsys.readouterr().err.splitlines() == [
        "usage: pyro-vae train [what] --run FOLDER [options]",
        f"error: {message}",
    ]


def test_options_are_parsed_as_argparse_does(parser):
    args = parser.parse_args(["--run=a", "--hidden", "-1", "5", "--lik", "beta", "--", "--odd"])
    assert (args.run, args.hidden, args.lik, args.what, args.size) == ("a", [-1, 5], "beta", "--odd", 7)


def test_the_nearest_word_is_near():
    assert suggestion("trian", ["train", "table"]) == "did you mean train?"
    assert suggestion("xyz", ["train", "table"]) == ""
