"""The comparison of priors and guides from end to end on the bundled digits: every row, resumed, gathered, refused."""

import json

import pytest
import torch

from experiments import compare_priors_and_guides as compare
from pyro_vae import load
from pyro_vae.config import GUIDES, PRIORS

WORDS = [
    "--dataset",
    "digits",
    "--net",
    "mlp",
    "--hidden",
    "16",
    "--latent",
    "4",
    "--epochs",
    "1",
    "--components",
    "5",
    "--flow-width",
    "8",
    "--particles",
    "2",
    "--quiet",
]


def command(tmp_path, *words):
    return compare.main([*WORDS, "--out", str(tmp_path / "out"), *words])


def test_every_prior_and_guide_has_a_row():
    parts = [set(column) for column in zip(*compare.ROWS.values())]
    assert parts == [set(PRIORS), set(GUIDES)]


@pytest.mark.slow
def test_every_row_runs_and_is_in_the_report(tmp_path, capsys, monkeypatch):
    assert command(tmp_path, "--rows", *compare.ROWS, "--seeds", "0") == 0
    printed = capsys.readouterr().out
    result = json.loads((tmp_path / "out.json").read_text())
    assert len(result["rows"]) == len(result["runs"]) == len(compare.ROWS)
    for name, row in result["rows"].items():
        assert name in printed
        assert row["valid"]["standard_error"] is None and row["seeds"] == [0]
        if name != compare.STANDARD:
            gain = row["valid"]["mean"] - result["rows"][compare.STANDARD]["valid"]["mean"]
            assert row["valid_gain"]["mean"] == pytest.approx(gain)
    assert [run["row"] for run in result["runs"] if run["kl_in_closed_form"]] == [
        "diagonal",
        "full-rank",
        "low-rank",
        "standard",
    ]
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")

    monkeypatch.setattr(compare, "train", lambda *_: pytest.fail("it was run again"))
    assert command(tmp_path, "--rows", "standard", "flow-both", "--seeds", "0") == 0


@pytest.mark.slow
def test_seeds_give_standard_errors(tmp_path):
    assert command(tmp_path, "--rows", "standard", "diagonal", "--seeds", "0", "1") == 0
    row = json.loads((tmp_path / "out.json").read_text())["rows"]["diagonal"]
    assert row["valid_gain"]["standard_error"] == pytest.approx(
        abs(row["valid_gain"]["values"][0] - row["valid_gain"]["values"][1]) / 2
    )


def test_at_one_seed_all_rows_start_from_the_same_networks():
    args, images = compare.parse_arguments(WORDS), load("digits").train.images
    programs = []
    for row in compare.ROWS:
        torch.manual_seed(0)
        programs.append(compare.build(row, args, images))
    for program in programs[1:]:
        for network in ("likelihood.network", "posterior.network"):
            pairs = zip(program.get_submodule(network).parameters(), programs[0].get_submodule(network).parameters())
            assert all(torch.equal(mine, first) for mine, first in pairs)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rows", "vamp", "--components", "0"], "--components: wanted 1 to 1297 training images, got 0"),
        (["--rows", "mixture", "--components", "0"], "components: wanted a whole number of at least 1, got 0"),
        (["--rows", "low-rank", "--rank", "5"], "rank: wanted at most latent = 4, got 5"),
        (["--rows", "low-rank", "--rank", "0"], "rank: wanted a whole number of at least 1, got 0"),
        (["--rows", "flow-guide", "--flow-depth", "0"], "depth: wanted a whole number of at least 1, got 0"),
        (["--rows", "standard", "flow-guide", "--flow-width", "2"], "width: wanted at least latent = 4"),
        (["--report"], "holds no run to report"),
    ],
)
def test_what_cannot_be_is_an_error(tmp_path, capsys, words, message):
    assert command(tmp_path, *words) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()  # nothing was trained


@pytest.mark.slow
def test_other_settings_need_another_folder(tmp_path, capsys):
    assert command(tmp_path, "--rows", "standard", "--seeds", "0") == 0
    assert command(tmp_path, "--rows", "standard", "--seeds", "0", "--epochs", "2") == 1
    assert "epochs = 1, this command has 2" in capsys.readouterr().err
