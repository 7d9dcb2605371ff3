"""pyro-vae table: runs that compare, in one order, as text, CSV and LaTeX."""

import csv
import io
import json
import re

import pytest
import scipy.stats

from pyro_vae.runs import table
from pyro_vae.runs.columns import Run

pytestmark = pytest.mark.slow

SETTINGS = {"lik": "bernoulli", "binarize": "dynamic", "latent": 2, "lr": 0.01, "seed": 0, "epochs": 3, "bins": 16}


def write(folder, name, bound, bits=None, settings=(), **other):
    """Leave the metrics of a run."""
    test = {"bound": bound, "standard_error": 0.25, "rate": 5.0, "distortion": -bound - 5.0, "images": 250}
    if bits is not None:
        test |= {"bits_per_dim": bits, "bits_per_dim_standard_error": 0.01}
    metrics = {
        "settings": {**SETTINGS, **dict(settings)},
        "dataset": {"name": "digits", "shape": [1, 8, 8], "test": 250},
        "interrupted": False,
        "kept_epoch": 2,
        "active_units": 2,
        "test": test,
        **other,
    }
    (folder / name).mkdir()
    (folder / name / "metrics.json").write_text(json.dumps(metrics))
    return folder / name


def printed(capsys, folder, *words):
    assert table.main([*map(str, sorted(folder.iterdir())), *words]) == 0
    return capsys.readouterr()


@pytest.fixture
def three(tmp_path):
    for seed, bound in enumerate((-20.0, -22.0, -21.0)):
        write(tmp_path, f"a{seed}", bound, settings={"seed": seed})
    return tmp_path


def test_the_best_run_is_first(three, capsys):
    lines = printed(capsys, three).out.splitlines()
    assert lines[0] == "digits, 250 test images of 1 × 8 × 8: black and white pixels (dynamic)"
    assert lines[1].split() == ["run", "seed", "test", "bound", "rate", "active", "units"]
    assert [re.split("  +", line)[1:3] for line in lines[2:5]] == [
        ["0", "-20.00 ± 0.25"],
        ["2", "-21.00 ± 0.25"],
        ["1", "-22.00 ± 0.25"],
    ]
    assert lines[5] == "± standard error over the test images; bounds in nats per image" and len(lines) == 6


def test_numbers_of_other_observations_do_not_stand_in_one_order(tmp_path, capsys):
    """Nats of binary pixels, of densities, of masses, of a cross-entropy, and given the class."""
    write(tmp_path, "dynamic", -20.0)
    write(tmp_path, "threshold", -10.0, settings={"binarize": "threshold"})
    write(tmp_path, "intensity", -5.0, settings={"binarize": "intensity"})
    write(tmp_path, "given", -19.0, settings={"conditional": True})
    write(tmp_path, "beta", 90.0, bits=5.9, settings={"lik": "beta"})
    write(tmp_path, "normal", 95.0, bits=5.8, settings={"lik": "normal"})
    write(tmp_path, "logistic", -240.0, bits=5.5, settings={"lik": "logistic"})
    other = write(tmp_path, "other", -1.0)
    metrics = json.loads((other / "metrics.json").read_text())
    (other / "metrics.json").write_text(json.dumps({**metrics, "dataset": {**metrics["dataset"], "test": 100}}))
    blocks, _ = table.blocks_of([Run.read(folder) for folder in sorted(tmp_path.iterdir())])
    found = {block.title: [row["run"].value.name for row in block.rows] for block in blocks}
    some = "digits, 250 test images of 1 × 8 × 8: "
    assert found == {
        f"{some}grey levels": ["logistic", "normal", "beta"],
        f"{some}black and white pixels (dynamic)": ["dynamic"],
        f"{some}given the class: black and white pixels (dynamic)": ["given"],
        f"{some}grey levels read as probabilities, whose bound is that of no likelihood": ["intensity"],
        "digits, 100 test images of 1 × 8 × 8: black and white pixels (dynamic)": ["other"],
        f"{some}black and white pixels (threshold)": ["threshold"],
    }
    notes = printed(capsys, tmp_path).out
    assert "NOTE: blocks do not compare" in notes and "the nats of different likelihoods of grey levels do not" in notes


def test_means_over_seeds_have_the_standard_errors_of_scipy(three, capsys):
    write(three, "b0", -30.0, settings={"latent": 5})
    found = printed(capsys, three, "--by", "latent", "--csv", str(three.parent / "t.csv"))
    first, second = csv.DictReader(io.StringIO((three.parent / "t.csv").read_text()))
    assert float(first["bound"]) == pytest.approx(-21.0) and first["runs"] == "3" and first["latent"] == "2"
    assert float(first["bound_standard_error"]) == pytest.approx(scipy.stats.sem([-20.0, -22.0, -21.0]))
    assert second["bound"] == "-30.0" and second["bound_standard_error"] == "" and second["runs"] == "1"
    assert "NOTE: not run: latent 5, seed 1, 2\n" in found.out


def test_a_mean_over_more_than_seeds_says_so(three, capsys):
    write(three, "b0", -30.0, settings={"lr": 0.1, "lik": "bernoulli"})
    note = "NOTE: a row is a mean over different lr too; give --by latent lr"
    assert note in printed(capsys, three, "--by", "latent").out
    assert note not in printed(capsys, three, "--by", "latent", "lr").out


def test_folders_without_a_finished_run_are_named(three, capsys):
    write(three, "b-interrupted", -1.0, interrupted=True)
    (three / "c-empty").mkdir()
    (three / "d-begun").mkdir()
    (three / "d-begun/checkpoint.pt").write_bytes(b"")
    (three / "e-damaged").mkdir()
    (three / "e-damaged/metrics.json").write_text('{"settings": ')
    (three / "f-other").mkdir()
    (three / "f-other/metrics.json").write_text('{"programs": []}')
    lines = printed(capsys, three).err.splitlines()
    reasons = [
        "its run was interrupted",
        "no run is there",
        "its run has not ended",
        "is no JSON",
        "not one of pyro-vae",
    ]
    assert len(lines) == 5
    for line, reason in zip(lines, reasons):
        assert line.startswith(f"not in the table: {three}/") and reason in line
    assert table.main([str(three)]) == 1
    assert f"the runs are the folders in it, {three}/*" in capsys.readouterr().err
    assert table.main([str(three / "c-empty")]) == 1
    assert "error: no folder holds a run that has ended" in capsys.readouterr().err


def test_what_one_must_know_of_log_px_is_said(tmp_path, capsys):
    evidence = {"log_px": -19.0, "standard_error": 0.2, "num_particles": 50, "images": 250}
    write(tmp_path, "a", -20.0, evidence={**evidence, "share_pareto_k_above_0.7": 0.125})
    write(tmp_path, "b", -21.0, {"seed": 1}, evidence=evidence | {"num_particles": 500}, left_out={"knn": "no labels"})
    out = printed(capsys, tmp_path).out
    assert "log p(x) cannot be trusted for up to 12.5% of a run's images" in out and "-19.00 ± 0.20" in out
    assert "NOTE: log p(x) by different numbers of particles" in out
    assert f"NOTE: left out of {tmp_path}/b: knn: no labels" in out


def test_columns_are_chosen_and_validation_bounds_are_there(three, capsys):
    (three / "a0/history.csv").write_text("epoch,valid_bound\n1,-25.5\n2,-24.5\n3,-24.0\n")
    lines = printed(capsys, three, "--columns", "lr", "valid").out.splitlines()
    assert lines[1].split() == ["run", "lr", "validation", "bound"] and lines[2].split()[1:] == ["0.01", "-24.50"]
    assert table.main([str(three / "a0"), "--columns", "lrr"]) == 1
    assert "--columns: lrr is no setting of these runs; did you mean lr?" in capsys.readouterr().err


def test_latex_reads_every_character(tmp_path, capsys):
    write(tmp_path, "a_b", -20.0, settings={"lik": "be_ta"})
    out = tmp_path.parent / "t.tex"
    printed(capsys, tmp_path, "--latex", str(out), "--columns", "lik", "bound")
    lines = out.read_text().splitlines()
    assert lines[:2] == [r"\begin{tabular}{llr}", r"\toprule"] and lines[-2:] == [r"\bottomrule", r"\end{tabular}"]
    assert lines[2].startswith(
        r"\multicolumn{3}{l}{digits, 250 test images of 1 $\times$ 8 $\times$ 8: x of the be\_ta"
    )
    assert lines[-3].endswith(r"a\_b & be\_ta & $-20.00 \pm 0.25$ \\")
    assert not re.search(r"(?<!\\)[_%#]", out.read_text())


def test_copies_of_a_run_make_no_standard_error_smaller(three, capsys):
    """Measured again by more particles, by another engine, and the same folder once more."""
    write(three, "b1", -22.0, settings={"seed": 1, "evidence": 500, "engine": "svi", "out": "b1"})
    words = ["--by", "lik", "--csv", str(three.parent / "t.csv")]
    assert table.main([*map(str, sorted(three.iterdir())), str(three / "." / "a0"), *words]) == 0
    assert f"not in the table: {three}/b1: settings and seed are those of {three}/a1" in capsys.readouterr().err
    (row,) = csv.DictReader(io.StringIO((three.parent / "t.csv").read_text()))
    assert row["runs"] == "3"
    assert float(row["bound_standard_error"]) == pytest.approx(scipy.stats.sem([-20.0, -22.0, -21.0]))
    assert len(printed(capsys, three).out.splitlines()) == 8  # without --by a row each


def test_folders_of_one_name_that_hold_other_images_do_not_compare(tmp_path, capsys):
    for name, digest in (("a", "0a"), ("b", "0b"), ("c", "0b"), ("old", None)):
        folder = write(tmp_path, name, -20.0, settings={"dataset": f"{name}/pictures"})
        metrics = json.loads((folder / "metrics.json").read_text())
        metrics["dataset"] |= {"name": "pictures"} | ({"test_digest": digest} if digest else {})
        (folder / "metrics.json").write_text(json.dumps(metrics))
    blocks, _ = table.blocks_of([Run.read(folder) for folder in sorted(tmp_path.iterdir())])
    found = {block.title.partition(",")[0]: [row["run"].value.name for row in block.rows] for block in blocks}
    assert found == {
        "pictures (digest 0a)": ["a"],
        "pictures (digest 0b)": ["b", "c"],
        "pictures (read as old/pictures)": ["old"],
    }


@pytest.mark.parametrize(
    "damage",
    [{"evidence": 5}, {"test": [1]}, {"left_out": ["a"]}, {"seconds": 1.0}, {"active_units": "two"}, {"settings": {}}],
)
def test_damaged_metrics_are_named_and_the_others_shown(three, capsys, damage):
    write(three, "b", -1.0, **{name: value for name, value in damage.items() if name not in ("test", "settings")})
    metrics = json.loads((three / "b/metrics.json").read_text())
    (three / "b/metrics.json").write_text(json.dumps(metrics | damage))
    found = printed(capsys, three)
    assert found.err.startswith(f"not in the table: {three}/b: its metrics.json is") and "a2" in found.out


def test_settings_that_rows_of_means_cannot_show_are_refused(three, capsys):
    assert table.main([str(three / "a0"), "--by", "lik", "--columns", "lr", "bound"]) == 1
    assert "--columns: lr is a setting; give --by lik lr, or leave it out" in capsys.readouterr().err
