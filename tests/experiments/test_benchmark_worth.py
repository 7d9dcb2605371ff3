"""The measurement behind the rule of when compiling is earned back."""

import argparse
import json

import pytest

from experiments.benchmarks import worth
from pyro_vae.training.engines import EagerEngine
from pyro_vae.training.worth import work_of


def test_the_constants_behind_the_seconds_are_found(monkeypatch):
    caches = []

    def in_this_process(command, check, stdout, cwd, env):
        assert command[1:3] == ["-m", "experiments.benchmarks.worth"] and command[4] == "2"
        caches.append(env["TORCHINDUCTOR_CACHE_DIR"])
        number, warm = 1 + list(worth.PROGRAMS).index(command[3]), caches.count(caches[-1]) > 1
        operations, products, written = 100 * number, 9 + number % 4, 1_000_000 * (1 + number % 5)
        seconds = 3.0 if warm else 10 + 0.01 * operations**2 / (products + 1)
        saved = 2e-3 + 1e-4 * products + 3e-10 * written
        step = {"compiling": seconds, "eager": 0.05, "compiled": 0.05 - saved}
        work = {"operations": operations, "products": products, "written": written}
        return argparse.Namespace(stdout=json.dumps(step | work).encode())

    monkeypatch.setattr("subprocess.run", in_this_process)
    found = worth.measure(None, argparse.Namespace(rounds=2))
    assert found["fitted"]["compiling"] == pytest.approx([10, 0.01])
    assert found["fitted"]["saved"] == pytest.approx([2e-3, 1e-4, 3e-10])
    assert len(set(caches)) == len(worth.PROGRAMS) == len(caches) / 2
    assert "digits, batch 50     100 operations,  10 products,  2.0 MB: compiled in  19.1 s cold,  3.0 s warm" in (
        worth.table(found)
    )
    assert "compiling: 10, 0.01 fit these seconds" in worth.table(found)
    assert len(worth.figure(found).axes) == 2


@pytest.mark.parametrize("name", ["digits, batch 50", "two layers", "transformer of 1", "table", "sequences of 4"])
def test_a_program_of_the_measurement_takes_a_step_and_is_counted(name):
    engine, raw, program = worth.made(name, EagerEngine)
    assert worth.computing(name, engine, raw, program)() > 0
    with worth.as_in_fit(name, program):
        assert work_of(engine.loss, raw).products > 10
