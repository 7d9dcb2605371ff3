"""The command for a GPU takes its steps on a CPU, each in its time, whatever the others do."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch

from experiments import evidence, gpu, run
from experiments.on_gpu import graphed, iwae, quality, running, speed, steps, ways

PARTS = speed, quality, iwae

TESTS = Path(__file__).parents[1]


@pytest.fixture
def in_this_process(monkeypatch):
    """Have the commands of the steps run here, and return them."""
    ran = []

    def here(command, seconds, environment, log):
        ran.append(command)
        monkeypatch.setenv("SECONDS_LEFT", environment["SECONDS_LEFT"])
        mains = {"experiments/run.py": (run, 2), "experiments/evidence.py": (evidence, 2)}
        mains |= {f"experiments.on_gpu.{module.__name__.split('.')[-1]}": (module, 3) for module in PARTS}
        main, start = next(((mains[word]) for word in command[:3] if word in mains), (None, 0))
        log.write_text("the end of the log")
        return "done" if main is None or main.main(list(command[start:])) == 0 else "failed (1)"

    monkeypatch.setattr(running, "run", here)
    monkeypatch.setattr("pyro_vae.runs.origins.git_commit", lambda: None)
    for module in (ways, speed):
        monkeypatch.setattr(module, "IN_A_GRAPH", 2)
    return ran


@pytest.mark.slow
def test_a_trial_on_a_cpu_takes_every_step(tmp_path, in_this_process, capsys):
    words = ["--device", "cpu", "--minutes", "1", "--out", str(tmp_path)]
    assert gpu.main(words) == 0
    content = json.loads((tmp_path / "results.json").read_text())
    found = {name: step["found"] for name, step in content["steps"].items()}
    assert list(found) == ["tests", "speed", "quality", "evidence", "iwae"]
    assert found["quality"]["1"]["metrics"]["evidence"]["images"] == 250 and set(found["iwae"]) == {"1", "2"}
    assert found["iwae"]["2"]["num_particles"] == 20 and found["evidence"] is not None
    rates = found["speed"]["steps"]
    assert len(rates) == len(ways.WAYS) - len(ways.COMPILING) and not [way for way in rates.values() if "error" in way]
    assert all(way["median"] > 0 < way["share_of_roofline"] for way in rates.values())
    assert "images/s" in capsys.readouterr().out
    commands = len(in_this_process)
    assert gpu.main(words) == 0 and len(in_this_process) == commands  # all is done


def test_a_step_that_fails_does_not_stop_the_next(tmp_path, monkeypatch):
    def failing(command, seconds, environment, log):
        log.write_text("wrong")
        return "failed (1)" if "pytest" in command else "done"

    monkeypatch.setattr(running, "run", failing)
    assert gpu.main(["--minutes", "1", "--out", str(tmp_path)]) == 1
    found = json.loads((tmp_path / "results.json").read_text())["steps"]
    assert [step["status"] for step in found.values()] == ["failed (1)", *4 * ["done"]]


def test_a_step_ends_with_its_time(tmp_path):
    log = tmp_path / "log"
    assert running.run((sys.executable, "-c", "print(3)"), 60, {}, log) == "done" and log.read_text() == "3\n"
    assert running.run(("no-such-command",), 1, {}, log).startswith("failed (")


def test_what_time_a_step_leaves_goes_to_the_next():
    assert steps.limits([3.0, 2.0, 1.0], 60) == 30 and steps.limits([2.0, 1.0], 60) == 40


def test_wheels_are_put_on_the_path(tmp_path, monkeypatch):
    called = []
    monkeypatch.setattr("subprocess.run", lambda command, **_: called.append(command) or (tmp_path / "site").mkdir())
    (tmp_path / "pyro_ppl.whl").touch()
    args = gpu.parse_arguments(["--out", str(tmp_path), "--wheels", str(tmp_path)])
    path = gpu.surroundings(args, tmp_path)["PYTHONPATH"].split(os.pathsep)
    assert path[1] == str(tmp_path / "site") and "--no-index" in called[0] and called[0][-1].endswith("pyro_ppl.whl")


def test_the_files_with_tests_for_a_gpu_are_named():
    marked = {path for path in TESTS.rglob("test_*.py") if "mark" + ".gpu" in path.read_text()}
    assert {str(path.relative_to(TESTS.parent)) for path in marked} == set(steps.MARKED)


def test_steps_in_a_graph_are_those_of_a_loop():
    images = torch.randint(256, (40, 1, 28, 28), dtype=torch.uint8)
    case, losses = ways.Case("mlp", images, 20), []
    for in_graph in (False, True):
        torch.manual_seed(1)
        take = ways.by_hand(in_graph=in_graph)(case)
        torch.manual_seed(2)
        losses.append(take(ways.IN_A_GRAPH))
    assert torch.equal(*losses) and len(graphed.GraphedSteps(lambda: torch.zeros(()), 3, "cpu")()) == 3
