"""Single runs of a sweep: trained as fit trains, done once, and summed up."""

import argparse
import json

import pytest
import scipy.stats
import torch
from programs import FEW, copy_of, same, small_vae
from pyro.infer import Trace_ELBO

from pyro_vae import Checkpoints, fit
from pyro_vae.handlers import KLWeighted, LinearWarmUp
from pyro_vae.runs import sweeps

OPTIONS = {"lr": 1e-2, "batch": 50, "epochs": 1, "estimator": "trace", "particles": 1, "schedule": "constant"}


def options(**other):
    return argparse.Namespace(**{**OPTIONS, "engine": "eager", "quiet": True, **other})


@pytest.mark.slow
def test_a_program_is_trained_as_by_fit():
    ours, theirs, other = (small_vae() for _ in range(3))
    history = sweeps.trained(ours, FEW, 3, options())
    settings = {"epochs": 1, "batch_size": 50, "engine": "eager", "progress": False}
    fit(theirs, FEW, Trace_ELBO(), lr=1e-2, seed=3, **settings)
    assert same(ours, copy_of(theirs)) and history.engine == "eager" and len(history.rows) == 1
    sweeps.trained(other, FEW, 4, options())
    assert not same(other, copy_of(theirs))


@pytest.mark.slow
def test_the_weight_of_the_kl_grows_over_the_epochs_of_the_warm_up():
    ours, theirs = small_vae(), KLWeighted(small_vae())
    sweeps.trained(ours, FEW, 0, options(epochs=2, warm_up=0.5))

    def anneal(parameters):
        return theirs.anneal(torch.optim.Adam(parameters, lr=1e-2, fused=True), LinearWarmUp(2))  # of four steps

    settings = {"epochs": 2, "batch_size": 50, "engine": "eager", "progress": False}
    fit(theirs, FEW, Trace_ELBO(), optimizer=anneal, **settings)
    assert list(map(torch.equal, ours.parameters(), theirs.parameters())) == 8 * [True]


def test_an_interrupted_training_leaves_no_result(monkeypatch):
    def interrupted(*args, **settings):
        return argparse.Namespace(interrupted=True)

    monkeypatch.setattr(sweeps, "fit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sweeps.trained(small_vae(), FEW, 0, options())


def test_a_run_is_done_once_and_not_mixed_with_one_of_other_settings(tmp_path, capsys):
    path, done = tmp_path / "a-seed0.json", []

    def run(**settings):
        def work():
            done.append(settings)
            return {"bound": -1.5}

        sweeps.run_once(path, "a, seed 0", {"settings": settings}, work, lambda result: f"{result['bound']} nats")

    run(lr=0.1)
    run(lr=0.1)
    assert done == [{"lr": 0.1}] and capsys.readouterr().out == "a, seed 0\na, seed 0: -1.5 nats\n"
    with pytest.raises(ValueError, match=r"a-seed0\.json has lr = 0\.1, this command has 0\.2, and one table cannot"):
        run(lr=0.2)
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "dataset": {"name": "digits", "train": 9, "test_digest": "0af"}}))
    assert sweeps.is_done(path, {"lr": 0.1}, {"train": 9, "test_digest": "0af", "train_digest": "new since then"})
    with pytest.raises(ValueError, match=r"other rows .* test_digest is '0af' there and 'b1c' here; give another"):
        sweeps.is_done(path, {"lr": 0.1}, {"train": 9, "test_digest": "b1c"})
    path.write_text(json.dumps(content))
    (found,) = sweeps.single_runs(tmp_path).values()
    assert found == json.loads(path.read_text()) and found["bound"] == -1.5 and "torch" in found["versions"]
    (tmp_path / "a-seed1.json").write_text(json.dumps({"settings": {"lr": 0.2}}))
    with pytest.raises(ValueError, match=r"a-seed1\.json has 0\.2"):
        sweeps.single_runs(tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no run to report; run without --report first"):
        sweeps.single_runs(tmp_path / "elsewhere")


def test_means_have_the_standard_errors_of_scipy():
    values = [1.0, 4.0, 2.5, -3.0]
    found = sweeps.mean(values)
    assert found["mean"] == pytest.approx(1.125) and found["values"] == values
    assert found["standard_error"] == pytest.approx(scipy.stats.sem(values))
    assert sweeps.mean([2.0]) == {"mean": 2.0, "standard_error": None, "values": [2.0]} and sweeps.mean([]) is None


def test_the_mean_over_images_has_the_standard_error_of_scipy():
    values = torch.tensor([1.0, 4.0, 2.5, -3.0])
    found = sweeps.over_images(values)
    assert found["mean"] == pytest.approx(1.125) and found["n"] == 4
    assert found["standard_error"] == pytest.approx(scipy.stats.sem(values.numpy()), rel=1e-6)
    assert sweeps.over_images(values[:1])["standard_error"] is None


def test_a_training_that_has_ended_is_read_from_its_checkpoint(tmp_path):
    whole, again = small_vae(), small_vae()
    first = sweeps.trained(whole, FEW, 0, options(), Checkpoints(tmp_path, resume=True))
    second = sweeps.trained(again, FEW, 0, options(), Checkpoints(tmp_path, resume=True))
    assert same(again, copy_of(whole)) and second.rows == first.rows


def test_a_report_runs_nothing_and_a_failed_run_is_the_status(tmp_path, capsys):
    done = []

    def run(args):
        done.append(args.out)
        return args.failing

    def status(**options):
        args = argparse.Namespace(out=tmp_path, jobs=None, **options)
        return sweeps.sweep_status(lambda: args, run, lambda args: f"table of {len(done)}")

    assert status(report=True, failing=1) == 0 and not done
    assert status(report=False, failing=0) == 0 and done == [tmp_path]
    assert status(report=False, failing=2) == 1
    assert capsys.readouterr().out == "table of 0\ntable of 1\ntable of 2\n"


def test_only_missing_runs_are_done_and_other_settings_are_refused_before_any(tmp_path, capsys):
    done = []

    def runs(lr, *seeds):
        def work(seed):
            done.append(seed)
            return {"bound": -seed}

        return [
            sweeps.SingleRun(
                tmp_path / f"a-seed{seed}.json",
                f"seed {seed}",
                {"seed": seed, "settings": {"lr": lr}},
                lambda seed=seed: work(seed),
                lambda result: f"{result['bound']} nats",
            )
            for seed in seeds
        ]

    assert sweeps.run_missing(runs(0.1, 1)) == 0 and sweeps.run_missing(runs(0.1, 1, 2)) == 0
    assert done == [1, 2] and "[1 of 1] seed 2: -2 nats (0 s)\n" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"a-seed2\.json has lr = 0\.1, this command has 0\.2"):
        sweeps.run_missing(runs(0.2, 3, 2))
    assert done == [1, 2]
    assert [run["bound"] for run in sweeps.single_runs(tmp_path).values()] == [-1, -2]


def test_a_run_that_another_command_has_done_meanwhile_is_kept(tmp_path):
    path = tmp_path / "a-seed0.json"
    run = sweeps.SingleRun(path, "a", {"settings": {}}, lambda: pytest.fail("it was done twice"), str)
    path.write_text('{"settings": {}}')
    assert run() == "another command has done it" and path.read_text() == '{"settings": {}}'
