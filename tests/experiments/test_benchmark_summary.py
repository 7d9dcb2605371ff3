"""The summary of the benchmark has a row for everything that is wanted, and compares results of one machine."""

import argparse
import os
import re
from dataclasses import asdict, replace
from pathlib import Path

import pyro
import pytest
import torch

from experiments import benchmark
from experiments.benchmarks import (
    busy,
    imports,
    load,
    machine,
    measuring,
    profile,
    quality,
    record,
    report,
    rows,
    speed,
    start,
    summary,
    threads,
    ways,
)
from pyro_vae.data import Data, Split

PIXELS = torch.randint(256, (40, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
RANDOM = Data("random", *(Split(PIXELS, None) for _ in range(3)))
PAGE = Path(benchmark.__file__).parents[1] / "docs/speed.md"
HERE = {
    "cpu": "A CPU",
    "cores": {"machine": 2, "allowed": 2, "quota": None},
    "threads": 2,
    "instructions": ["avx2"],
    "load": 0.0,
    "peak": {"float32": 2e11, "bfloat16": 4e11},
}


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """Return small settings of a dry run in this process."""
    monkeypatch.setattr(machine, "peak", lambda: HERE["peak"])
    monkeypatch.setattr("pyro_vae.runs.origins.git_commit", lambda: None)
    monkeypatch.setattr(speed, "peak", lambda: HERE["peak"])
    monkeypatch.setattr(measuring, "IMAGES", dict.fromkeys(measuring.IMAGES, 4))
    monkeypatch.setattr(measuring, "PARTICLES", {"few": 3, "many": 3})
    monkeypatch.setattr(measuring, "TEMPERATURES", 10)
    monkeypatch.setattr(measuring, "DRAWS", 3)
    return argparse.Namespace(
        question="summary",
        groups=["step", "quality", "measuring"],
        resume=False,
        against=None,
        nets=["mlp"],
        batches=[20],
        only=["fit", "torch eager"],
        images=40,
        rounds=2,
        seeds=[0],
        evidence=0,  # which that group refuses
        data_dir=None,
        out=tmp_path / "summary",
    )


@pytest.mark.slow
def test_a_group_that_fails_stops_no_other_and_results_are_kept(settings, monkeypatch):
    with pyro.validation_enabled(False):
        found = summary.measure(RANDOM, settings)
    text = summary.table(found)
    assert "quality: failed: ValueError: --evidence: wanted at least 1 particle, got 0" in text
    assert re.search(r"MLP, batch 20: fit, eager / torch eager +\d+\.\d\d ×", text)
    assert re.search(r"MLP: compare_estimators +\d+ draws/s", text) and text.count(rows.NOT_MEASURED) == len(
        rows.TARGETS
    )
    assert record.read(settings.out.with_suffix(".json"), "summary") == found

    measured = []
    monkeypatch.setattr(quality, "rows", lambda images, args: measured.append("quality") or [rows.row("a", [1.0])])
    monkeypatch.setattr(speed, "rows", lambda images, args: measured.append("step") or [])
    monkeypatch.setattr(measuring, "rows", lambda images, args: measured.append("measuring") or [])
    settings.resume, settings.rounds, settings.against = True, 3, settings.out.with_suffix(".json")
    again = summary.measure(RANDOM, settings)
    assert measured == ["step", "quality", "measuring"]  # by other settings
    summary.measure(RANDOM, settings)
    assert len(measured) == 3 and list(again["groups"]) == settings.groups


def test_every_row_that_is_wanted_is_measured_by_some_group(monkeypatch):
    rates = {name: [2.0, 3.0] for name in (*ways.WAYS, "numpyro")}
    found = []
    for net, batch in [("mlp", 128), ("mlp", 512), ("conv", 128), ("conv", 512)]:
        case = {"net": net, "batch": batch, "flops_per_image": 1e6, "images_per_second": rates}
        found += speed.rows_of(case | {"medians": dict.fromkeys(rates, 2.5)}, HERE["peak"])
    found += load.rows_of("MLP, batch 128: ", *[{name: [1.0] for name in load.COMPARED}] * 2)
    seconds = {"cold": 2.0, "warm": 1.0, "cold, whole process": 3.0, "warm, whole process": 4.0}
    found += start.rows_of({"net": "mlp", "batch": 128, "rounds": [seconds]})
    run = {"seconds": 1.0, "seconds_from_shell": 2.0, "evidence": {"log_px": -86.0}}
    found += quality.rows_of([run])
    monkeypatch.setattr(imports, "process", lambda words: lambda: 1.0)
    found += imports.rows(RANDOM, argparse.Namespace(rounds=1))
    monkeypatch.setattr(threads, "usable_cores", lambda: 2)
    monkeypatch.setattr(threads, "stacked", lambda images, batch, number: PIXELS)
    monkeypatch.setattr(threads, "on_threads", lambda way, net, number: lambda pixels: 1 / number)
    args = argparse.Namespace(nets=["mlp"], batches=[128], images=20, rounds=1)
    found += threads.rows(RANDOM, args)
    named = {row.name: row for row in found}
    assert set(rows.TARGETS) - set(named) == {"test suite"}
    assert all(named[name].unit == row.unit for name, row in rows.TARGETS.items() if name in named)
    assert named["MLP, batch 128: all cores / one thread, compiled"].value == 2.0
    assert named["MLP, batch 128: share of the peak, compiled bfloat16"].rounds == pytest.approx([5e-4, 7.5e-4])


def test_the_better_precision_is_that_of_the_higher_median():
    rates = {"compiled": [10.0, 12.0], "compiled bfloat16": [20.0, 6.0], "numpyro": [5.0, 3.0]}
    case = {"net": "mlp", "batch": 128, "flops_per_image": 1e6, "images_per_second": rates}
    medians = {"compiled": 11.0, "compiled bfloat16": 13.0, "numpyro": 4.0}
    found = {row.name: row for row in speed.rows_of(case | {"medians": medians}, HERE["peak"])}
    better = found["MLP, batch 128: compiled, better precision / numpyro"]
    assert better.rounds == [4.0, 2.0] and better.wanted == 1.5 and better.verdict == "reached"
    assert found["MLP, batch 128: compiled float32 / numpyro"].rounds == [2.0, 4.0]


def test_results_of_other_machines_are_not_compared(tmp_path):
    def results(cpu):
        path = tmp_path / "old.json"
        settings = argparse.Namespace(question="summary", out=path)
        row = asdict(rows.row("a", [1.0, 1.1]))
        group = {"origin": {}, "rows": [row], "failed": None}
        record.write("random", settings, {"machine": HERE | {"cpu": cpu}, "groups": {"step": group}, "against": []})
        return path

    (old,) = summary.read(results("A CPU"), HERE)
    assert "2.00 × before, better" in rows.table([replace(old, rounds=[2.0, 2.2])], [old])
    with pytest.raises(ValueError, match=r"old\.json: cpu another CPU, here A CPU; compare results of one machine"):
        summary.read(results("another CPU"), HERE)


def test_the_figure_has_a_bar_for_each_measured_row():
    measured = [replace(row, rounds=[row.wanted]) for row in list(rows.TARGETS.values())[:5]]
    found = {"machine": HERE, "groups": {"a": {"rows": [asdict(row) for row in measured]}}}
    (axes,) = summary.figure(found).axes
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([1.0] * 5)


@pytest.mark.slow
def test_markdown_goes_between_the_markers_of_a_page(tmp_path, capsys):
    group = {"origin": {}, "rows": [asdict(rows.row("run.py --help", [2.0, 3.0, 4.0]))], "failed": None}
    found = {"machine": HERE, "groups": {"import": group}, "against": []}
    results, page = tmp_path / "found.json", tmp_path / "page.md"
    record.write("random", argparse.Namespace(question="summary", out=results), found)
    page.write_text("before\n<!-- found -->\n<!-- end -->\nafter\n")
    assert report.main([str(results), "--into", str(page)]) == report.main([str(results), "--into", str(page)]) == 0
    lines = page.read_text().splitlines()
    assert "| run.py --help | 3.00 s (2.00 to 4.00) | ≤ 1.00 s | missed |" in lines
    assert lines.count("<!-- found -->") == 1 and lines[-1] == "after" and "A CPU, 2 cores" in page.read_text()
    assert report.main([str(results)]) == 0 and "run.py --help" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"wanted results of benchmark\.py --quality or --parts, found none"):
        record.question(results, ["quality", "parts"])
    page.write_text("no markers")
    assert report.main([str(results), "--into", str(page)]) == 1
    assert "wanted a line <!-- found -->" in capsys.readouterr().err


@pytest.mark.parametrize("question", report.QUESTIONS)
def test_the_page_about_speed_holds_the_numbers_of_the_committed_results(question):
    text, results = PAGE.read_text(encoding="utf-8"), PAGE.parents[1] / f"figures/benchmark_{question}.json"
    table = report.QUESTIONS[question].markdown(record.read(results, question)) if results.exists() else "Not measured."
    assert report.filled(text, results.stem, table) == text


def test_a_process_computes_while_the_context_lasts():
    with busy.busy_core() as process:
        assert Path(f"/proc/{process}").exists() or not Path("/proc").exists()
        if hasattr(os, "sched_getaffinity"):
            assert os.sched_getaffinity(process) == {min(os.sched_getaffinity(0))}
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_rates_are_over_at_least_some_time(monkeypatch):
    monkeypatch.setattr(load, "LEAST", 0.5)
    seconds = iter([0.2, 0.2, 0.2])
    assert load.rate(lambda pixels: next(seconds), torch.zeros(3, 4)) == pytest.approx(3 * 12 / 0.6)


def test_a_way_runs_on_its_own_number_of_threads():
    before, seen = torch.get_num_threads(), []

    def make(net):
        seen.append(torch.get_num_threads())
        return lambda pixels: seen.append(torch.get_num_threads()) or 1.0

    assert threads.on_threads(make, "mlp", before + 1)(PIXELS) == 1.0
    assert seen == [before + 1] * 2 and torch.get_num_threads() == before


def test_one_core_is_too_few_for_the_rows_of_threads(monkeypatch):
    monkeypatch.setattr(threads, "usable_cores", lambda: 1)
    with pytest.raises(ValueError, match="wanted at least two cores"):
        threads.rows(RANDOM, argparse.Namespace())


def test_the_machine_is_named():
    assert "quota" not in machine.in_words(HERE) and machine.in_words(HERE).startswith("A CPU, 2 cores")


def test_the_best_run_within_some_minutes_is_found():
    def run(recipe, seconds, log_px):
        history = [{"seconds": seconds / 2, "valid_bound": log_px - 6}, {"seconds": seconds, "valid_bound": log_px - 4}]
        return {"recipe": recipe, "seed": 0, "seconds": seconds, "evidence": {"log_px": log_px}, "history": history}

    runs = [run("fast", 100.0, -86.0), run("fast:100", 1000.0, -83.0)]
    assert quality.reached(runs, 0.5) is None
    assert quality.reached(runs, 1) == {"minutes": 1, "valid_bound": -92.0}
    assert quality.reached(runs, 10) == {
        "minutes": 10,
        "valid_bound": -89.0,
        "recipe": "fast",
        "seed": 0,
        "log_px": -86.0,
    }
    assert quality.reached(runs, 30)["recipe"] == "fast:100"
    assert [found["minutes"] for found in quality.milestones(runs)] == [1, 2, 5, 10, 30]
    with pytest.raises(ValueError, match="--recipes: wanted one of fast, small, or such as fast:100 epochs, got slow"):
        quality.measure(RANDOM, argparse.Namespace(recipes=["fast", "slow"]))


def test_the_parts_of_a_step_are_those_of_its_operations():
    own = {
        "aten::mm": 0.3,
        "aten::uniform_": 0.1,
        "graph_0_cpp_fused_rand_mm_1": 0.2,
        "Torch-Compiled Region: 0/0": 0.1,
    }
    found = profile.shares(own, whole=1.0)
    wanted = {"matrix products": 0.3, "noise": 0.1, profile.KERNELS: 0.2, profile.OUTSIDE: 0.4}
    assert {name: share for name, share in found.items() if share > 1e-9} == pytest.approx(wanted)
    case = {"net": "mlp", "batch": 128, "precision": "float32", "threads": 2, "milliseconds": 4.0, "shares": found}
    measured = {"peak": HERE["peak"], "steps": [case | {"milliseconds_profiled": 5.0, "flops": 2e8}]}
    assert "at the machine's peak: 1.00 ms, 25%" in profile.table(measured)
    assert len(profile.figure(measured).axes[0].patches) == len(profile.PARTS) + 1


def test_a_profile_of_eager_steps_sums_to_the_whole(monkeypatch):
    monkeypatch.setattr(profile, "Compiled", ways.Eager)
    args = argparse.Namespace(images=40, rounds=1)
    case = profile.parts_of(RANDOM, "mlp", 20, "float32", args)
    assert sum(case["shares"].values()) == pytest.approx(1.0) and case["shares"]["matrix products"] > 0
    assert case["flops"] == pytest.approx(20 * speed.flops_per_image("mlp"))
