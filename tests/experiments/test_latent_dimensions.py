"""The sweep over latent dimensions from end to end on the bundled digits: measured, resumed, gathered, refused."""

import json

import pytest

from experiments import latent_dimensions

pytestmark = pytest.mark.slow

WORDS = ["--dataset", "digits", "--hidden", "16", "--epochs", "2", "--lr", "1e-2", "--quiet"]


def command(tmp_path, *words):
    return latent_dimensions.main([*WORDS, "--out", str(tmp_path / "out"), *words])


def test_table_figure_and_what_is_there_is_not_run_again(tmp_path, capsys, monkeypatch):
    assert command(tmp_path, "--dimensions", "5", "2") == 0
    assert "D = 5, seed 0: test bound" in capsys.readouterr().out
    result = json.loads((tmp_path / "out.json").read_text())
    assert list(result["dimensions"]) == ["2", "5"] and result["settings"]["hidden"] == [16]
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    for run in result["runs"]:
        assert len(run["rate_per_dimension"]) == run["latent"] >= run["active_units"]
        test = run["test"]
        assert test["images"] == 250 and test["bound"] == pytest.approx(-test["rate"] - test["distortion"])
        assert sum(run["rate_per_dimension"]) == pytest.approx(test["rate"], abs=0.1)

    monkeypatch.setattr(latent_dimensions, "train", lambda *_: pytest.fail("it was run again"))
    assert command(tmp_path, "--dimensions", "2", "5") == 0
    assert command(tmp_path, "--report") == 0
    assert json.loads((tmp_path / "out.json").read_text()) == result


def test_more_seeds_give_errors_and_one_without_closed_form_no_rates(tmp_path, capsys):
    words = ("--prior", "mixture", "--components", "3", "--dimensions", "2")
    assert command(tmp_path, *words, "--seeds", "0", "1") == 0
    row = json.loads((tmp_path / "out.json").read_text())["dimensions"]["2"]
    assert row["seeds"] == [0, 1] and row["test"]["standard_error"] == pytest.approx(
        abs(row["test"]["values"][0] - row["test"]["values"][1]) / 2
    )
    assert json.loads((tmp_path / "out/z2-seed0.json").read_text())["rate_per_dimension"] is None
    assert " ± " in capsys.readouterr().out.splitlines()[-2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dimensions", "0"], "latent: wanted a whole number"),
        (["--report"], "holds no run to report"),
        (["--prior", "vamp", "--components", "0"], "components: wanted a whole number"),
    ],
)
def test_what_cannot_be_is_an_error(tmp_path, capsys, words, message):
    assert command(tmp_path, *words) == 1
    assert message in capsys.readouterr().err


def test_other_settings_need_another_folder(tmp_path, capsys):
    assert command(tmp_path, "--dimensions", "2") == 0
    assert command(tmp_path, "--dimensions", "2", "--epochs", "3") == 1
    assert "epochs = 2, this command has 3" in capsys.readouterr().err
    assert command(tmp_path, "--dimensions", "2", "--prior", "diagonal") == 1
    assert "prior = standard, this command has diagonal" in capsys.readouterr().err
