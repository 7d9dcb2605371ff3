"""The package on a GPU: the simulated one of ``simulated_gpu`` everywhere, and a real one where torch sees it.

What is compiled needs a real one: a graph does not see the simulation.
"""

import copy
import os
from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
import torch
from engine_trainings import BATCHES, Training, adam, assert_same_training
from programs import DIGITS, FEW, conv_vae, linear_gaussian, needs_compiler, quick, small_vae
from pyro.infer import Trace_ELBO
from simulated_gpu import simulated_gpu
from test_contract import ALONE, PIXELS, build

import pyro_vae as pv
from pyro_vae.compiling.private import tensors_only
from pyro_vae.estimators import DoublyReparameterized, ImportanceWeighted, ScoreFunction, StickingTheLanding, WakeSleep
from pyro_vae.evidence import refit_guide
from pyro_vae.observation import fixed_arguments, fixed_x
from pyro_vae.training.engines import SEVERAL, CapturedEngine, CompiledEngine, EagerEngine, SVIEngine

TINY = pv.Data("tiny", DIGITS.train[:8], DIGITS.valid[:6], DIGITS.test[:6])


@contextmanager
def deterministic():
    """Context manager in which torch's kernels on a GPU give the same bits each time."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.fixture(params=["simulated", pytest.param("real", marks=pytest.mark.gpu)])
def gpu(request):
    """A GPU; of the simulated one ``reads`` are the values that the host has read."""
    with simulated_gpu() if request.param == "simulated" else nullcontext() as found:
        yield found


def parameters(module):
    return torch.cat([parameter.detach().flatten().cpu() for parameter in module.parameters()])


def observed_without_noise(program):
    program.observe = lambda pixels: pixels / 16
    return program


def noise_of_the_cpu(shape, dtype, device):
    return torch.randn(shape, dtype=dtype).to(device)


@pytest.mark.slow
@pytest.mark.usefixtures("no_validation")
@pytest.mark.parametrize("kind", [EagerEngine, SVIEngine])
def test_steps_are_those_of_the_cpu(gpu, kind, monkeypatch):
    monkeypatch.setattr("torch.distributions.normal._standard_normal", noise_of_the_cpu)
    there = [batch.to("cuda") for batch in BATCHES[:10]]
    on_gpu = Training(kind, observed_without_noise(small_vae().to("cuda")), batches=there)
    on_cpu = Training(kind, observed_without_noise(small_vae()), batches=BATCHES[:10])
    assert next(on_gpu.program.parameters()).device.type == "cuda"
    torch.testing.assert_close(on_gpu.losses.cpu(), on_cpu.losses, rtol=1e-4, atol=0.0)
    torch.testing.assert_close(parameters(on_gpu.program), parameters(on_cpu.program), rtol=1e-3, atol=1e-4)


@pytest.mark.usefixtures("no_validation")
def test_the_host_reads_nothing_in_an_eager_step_but_what_the_elbo_does():
    with simulated_gpu() as gpu:
        training = Training(EagerEngine, small_vae().to("cuda"), batches=[BATCHES[0].to("cuda")])
        batches = [batch.to("cuda") for batch in BATCHES[1:3]]
        gpu.reads.clear()
        gpu.uploads.clear()
        with tensors_only():
            losses = torch.stack([training.step(batch) for batch in batches])
        assert gpu.reads == gpu.uploads == [] and losses.isfinite().all()
        training.step(batches[0])
        assert all("util.py" in read for read in gpu.reads[1:])  # Pyro's ELBO


@pytest.mark.slow
@pytest.mark.parametrize(
    "engine", ["eager", "captured", pytest.param("compiled", marks=[pytest.mark.gpu, needs_compiler])]
)
def test_a_training_that_was_killed_goes_on_to_the_same_bits(gpu, engine, tmp_path):
    if gpu is not None and engine != "eager":
        pytest.skip("a graph does not see the simulation")

    def trained(folder, resume=False, steps=None):
        program = small_vae().to("cuda")
        checkpoints = pv.Checkpoints(tmp_path / folder, resume=resume, steps=1)
        training = pv.Training(
            program, FEW, epochs=2, batch_size=50, engine=engine, progress=False, checkpoints=checkpoints
        )
        for number, _ in enumerate(training.steps(), 1):
            if number == steps:
                return None
        training.finish()
        return parameters(program)

    with deterministic():
        whole = trained("whole")
        trained("killed", steps=6)
        torch.rand(5, device="cuda")
        resumed = trained("killed", resume=True)
    assert torch.equal(whole, resumed)


@pytest.mark.slow
def test_evidence_and_annealing_are_exact_where_the_posterior_is(gpu):
    program = linear_gaussian()
    x = program.simulate(3)
    exact = program.log_px(x)
    there, x = copy.deepcopy(program).to("cuda"), x.to("cuda")
    torch.testing.assert_close(pv.log_evidence(there, x, 20, engine="eager", progress=False).log_px, exact)
    annealed = pv.annealed_evidence(there, x, num_temperatures=10, chains=5, progress=False)
    assert ((annealed.log_px - exact).abs() < 6 * annealed.standard_error + 0.5).all()


@pytest.mark.slow
def test_estimators_are_compared(gpu):
    program = linear_gaussian().to("cuda")
    names = {"L^A": Trace_ELBO(), "STL": StickingTheLanding(), "L_3": ImportanceWeighted(K=3)}
    found = pv.compare_estimators(program, program.simulate(8), estimators=names, draws=8, progress=False)
    assert found.estimators["STL"].guide.variance.value < 1e-6 < found.estimators["L^A"].guide.variance.value
    assert found.disagreements() == ()


@pytest.mark.slow
@pytest.mark.parametrize(
    "estimator",
    [Trace_ELBO(num_particles=2), DoublyReparameterized(K=3), ScoreFunction(K=2), WakeSleep()],
    ids=lambda estimator: type(estimator).__name__,
)
def test_estimators_train(gpu, estimator):
    program = small_vae().to("cuda")
    before = parameters(program)
    quick(program, TINY, estimator, epochs=1, batch_size=4, engine="eager")
    assert not torch.equal(before, parameters(program))


@pytest.mark.slow
@pytest.mark.usefixtures("no_validation")
@pytest.mark.parametrize("parts", ALONE, ids="-".join)
def test_each_part_is_trained_and_measured(gpu, parts):
    program = build(parts)[0].to("cuda")
    before = parameters(program)
    Training(EagerEngine, program, batches=[PIXELS.to("cuda")] * 2)
    assert not torch.equal(before, parameters(program))
    evidence = pv.log_evidence(program, TINY.test, 3, engine="eager", progress=False)
    assert evidence.log_px.isfinite().all() and evidence.log_px.device.type == "cpu"


@pytest.mark.slow
def test_mapped_rows_are_trained_on_and_measured(gpu, tmp_path):
    for name in ("train", "valid", "test"):
        np.save(tmp_path / f"{name}.npy", getattr(FEW, name).images)
    program = small_vae().to("cuda")
    assert quick(program, pv.load(tmp_path)).rows[-1]["valid_bound"] > -70
    mapped, held = (pv.evaluate(program, data.test).bound for data in (pv.load(tmp_path), FEW))
    assert mapped.shape == held.shape == (100,)


@pytest.mark.slow
def test_networks_compute_in_bfloat16(gpu):
    bounds = [
        quick(conv_vae().to("cuda"), precision=precision, engine="eager").rows[-1]["train_bound"]
        for precision in (None, torch.bfloat16)
    ]
    assert bounds[0] != bounds[1] and bounds[0] == pytest.approx(bounds[1], rel=0.02)


@pytest.mark.slow
def test_rows_of_the_host_go_to_the_program(gpu):
    program = small_vae().to("cuda")
    assert fixed_x(program, FEW.test).device.type == "cuda"
    assert fixed_x(program, FEW.test.images[:3]).device.type == "cuda"
    assert pv.evaluate(program, FEW.test).bound.isfinite().all()
    mask = torch.rand(FEW.test.images.shape) > 0.5
    filled = program.impute(pv.Split(FEW.test.images, mask=mask)[:4], 20)
    assert filled.x.isfinite().all()
    assert program.encode(FEW.test).device == program.decode(torch.zeros(3, 2)).device == torch.device("cpu")
    refitted = refit_guide(program, TINY.test, epochs=1, progress=False)
    assert pv.log_evidence(refitted, TINY.test, 3, progress=False).log_px.isfinite().all()


@pytest.mark.gpu
@needs_compiler
@pytest.mark.usefixtures("no_validation")
@pytest.mark.parametrize("make", [small_vae, conv_vae])
@pytest.mark.parametrize("precision", [None, torch.bfloat16])
@pytest.mark.parametrize("kind", [CapturedEngine, CompiledEngine])
def test_steps_in_a_graph_are_the_eager_ones(kind, make, precision, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # by torch's default convolutions have 10 bits
    batches = [batch.cuda() for batch in BATCHES[:8]]
    trainings = []
    for each in (kind, EagerEngine):
        program = make().cuda()
        with pv.networks.lowered_precision(program, precision):
            trainings.append(Training(each, program, adam, batches))
    assert trainings[0].step.name == kind.name
    if precision is None:
        assert_same_training(*trainings)
    else:
        torch.testing.assert_close(trainings[0].losses, trainings[1].losses, rtol=1e-2, atol=0.0)


@pytest.mark.gpu
@needs_compiler
@pytest.mark.usefixtures("no_validation")
@pytest.mark.parametrize("kind", [CapturedEngine, CompiledEngine])
def test_the_host_waits_for_no_step_in_a_graph(kind):
    training = Training(kind, small_vae().cuda(), batches=[batch.cuda() for batch in BATCHES[:4]])
    batches, rows = [batch.cuda() for batch in BATCHES[5:8]], DIGITS.train.images[:500].cuda()
    index = torch.randperm(500, device="cuda").view(SEVERAL, 50)
    losses = [training.step.several([rows], index)]  # is captured
    torch.cuda.set_sync_debug_mode("error")  # torch then raises an error where the host would wait
    try:
        losses += [*map(training.step, batches), training.step.several([rows], index)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(loss.isfinite().all() for loss in losses)


@pytest.mark.gpu
@needs_compiler
@pytest.mark.parametrize("engine", ["captured", "compiled"])
def test_several_steps_at_once_have_the_bits_of_single_ones(engine):
    def trained(one_by_one):
        program = small_vae().cuda()
        data = pv.Data("digits", DIGITS.train[:1190], FEW.valid, FEW.test)
        training = pv.Training(
            program, data, epochs=2, batch_size=50, engine=engine, progress=False, schedule=pv.warm_cosine
        )
        for _ in training.steps() if one_by_one else training:
            pass
        return parameters(program), torch.tensor([row["valid_bound"] for row in training.history.rows])

    with deterministic():
        assert all(map(torch.equal, trained(True), trained(False)))


@pytest.mark.gpu
def test_auto_captures_a_training_on_a_gpu():
    program = small_vae().cuda()
    history = quick(program, FEW, epochs=60, batch_size=50)
    assert history.engine == "captured"


@pytest.mark.gpu
@needs_compiler
def test_compiled_evidence_is_the_eager_one():
    program = small_vae().cuda()
    x = fixed_arguments(program, FEW.test)
    found = [
        pv.log_evidence(program, x, 500, engine=engine, chunk=500, progress=False) for engine in ("eager", "compiled")
    ]
    torch.testing.assert_close(found[0].log_px, found[1].log_px, rtol=1e-4, atol=1e-3)


def test_the_simulation_has_the_rules_of_cuda():
    with simulated_gpu() as gpu:
        x, y = torch.ones(3, device="cuda"), torch.ones(3)
        assert (x + 1).device.type == x.new_zeros(
            2
        ).device.type == "cuda" and y.device.type == x.cpu().device.type == "cpu"
        for wrong in (lambda: x + y, lambda: torch.stack([x, y]), lambda: y[x.long()]):
            with pytest.raises(RuntimeError, match="device"):
                wrong()
        with pytest.raises(TypeError, match="numpy"):
            x.numpy()
        with pytest.raises(RuntimeError, match="generator"):
            torch.randn(2, device="cuda", generator=torch.Generator())
        before = torch.get_rng_state()
        torch.rand(2, device="cuda")
        assert torch.equal(before, torch.get_rng_state())
        gpu.reads.clear()
        assert float(x.sum()) == 3.0 and len(gpu.reads) == 1
