"""Global state: random numbers, modes and interrupts, and measurements that the caller's modes do not reach."""

import random
import signal
import threading

import numpy as np
import pytest
import torch
from programs import PlainNetworks
from pyro.infer import Trace_ELBO
from torch import nn

from pyro_vae.comparison.compare import compare_estimators
from pyro_vae.evidence import log_evidence
from pyro_vae.random import (
    RandomStream,
    default_dtype,
    deferred_interrupt,
    interrupt,
    measurement,
    mode,
    random_state,
    seeded,
    set_random_state,
    torch_random_state,
    without_autocast,
)
from pyro_vae.training.loop import evaluate

MODES = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "enable_grad": torch.enable_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


@pytest.mark.parametrize("caller", MODES.values(), ids=MODES)
def test_a_measurement_is_the_same_in_every_mode_of_the_caller(caller):
    layer, x = nn.Linear(3, 2), torch.randn(4, 3)

    @measurement
    def product(x):
        kept = nn.Parameter(torch.ones(()))  # as Pyro's store keeps what a program makes at its first run
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad((kept * layer(x)).sum(), kept)
        return layer(x), gradient, kept

    with caller():
        out, gradient, kept = product(x)
    assert torch.equal(out, layer(x)) and not out.requires_grad
    assert torch.allclose(gradient, layer(x).sum()) and not kept.is_inference()
    (2 * kept).backward()
    assert kept.grad == 2


def test_modes_of_the_caller_come_back():
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        measurement(lambda: None)()
        with pytest.raises(ZeroDivisionError):
            measurement(lambda: 1 / 0)()
        assert torch.is_inference_mode_enabled() and torch.is_autocast_enabled("cpu")
        assert torch.is_autocast_cache_enabled() and not torch.is_grad_enabled()
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def test_weights_cast_within_a_measurement_do_not_serve_the_callers_training():
    layer, x = nn.Linear(3, 1), torch.ones(1, 3)
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad(), without_autocast(), torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
        layer(x).sum().backward()
    assert layer.weight.grad is not None


@pytest.mark.parametrize("seed", [1.5, "1", True, 2**64, -(2**63) - 1, None])
def test_seeds_that_are_none(seed):
    with pytest.raises(ValueError, match="seed: wanted a whole number"), seeded(seed):
        pass


def test_seeds_of_any_whole_number():
    draws = []
    for seed in (3, np.int64(3), np.uint8(3)):
        with seeded(seed):
            draws.append(torch.rand(2))
    assert all(torch.equal(draws[0], draw) for draw in draws)
    for seed in (-1, 2**64 - 1):
        with seeded(seed):
            torch.rand(1)


def test_mode_restores_each_submodule():
    module = nn.Sequential(nn.Dropout(), nn.Dropout())
    module[0].eval()
    with mode(module, training=False):
        assert not module[1].training
    assert (module[0].training, module[1].training) == (False, True)


def draws():
    return torch.rand(1).item(), np.random.rand(), random.random()


def test_streams_in_turns_are_streams_one_after_the_other():
    def drawn(in_turns):
        np.random.seed(0)
        random.seed(0)
        streams, found = [RandomStream(3), RandomStream(4)], [[], []]
        for number in (0, 1, 0, 1) if in_turns else (0, 0, 1, 1):
            with streams[number].current():
                found[number].append(draws())
            draws()
        return found

    one, other = drawn(True)
    assert [one, other] == drawn(False) and one[0] != one[1] and one[0][0] != other[0][0]


def test_a_stream_leaves_the_callers_numbers_alone_even_after_an_error():
    def seed():
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)

    seed()
    expected = draws()
    seed()
    with pytest.raises(ZeroDivisionError), RandomStream(3).current():
        draws()
        _ = 1 / 0
    assert draws() == expected


def test_the_default_dtype_comes_back():
    with pytest.raises(ZeroDivisionError), default_dtype(torch.float64):
        assert torch.ones(1).dtype is torch.float64
        _ = 1 / 0
    assert torch.get_default_dtype() is torch.float32


def test_an_interrupt_is_deferred_across_the_blocks_within_a_block(usual_interrupt):
    with deferred_interrupt() as outer:
        signal.raise_signal(signal.SIGINT)
        with deferred_interrupt() as inner, pytest.raises(KeyboardInterrupt) as caught:
            inner()
        assert caught.value.args == (signal.SIGINT,)
        with pytest.raises(KeyboardInterrupt):
            outer()
    with deferred_interrupt() as later:
        later()


def test_a_second_interrupt_is_raised_at_once_and_the_first_is_known_after_the_block(usual_interrupt):
    with deferred_interrupt() as asked:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        asked()


X = torch.rand(4, 50, generator=torch.Generator().manual_seed(0))


@pytest.mark.slow
def test_comparisons_and_evidence_keep_autocast_out():
    program = PlainNetworks()
    calls = (
        lambda: evaluate(program, X).bound,
        lambda: log_evidence(program.model, program.guide, X, 5, seed=0).log_px,
        lambda: torch.tensor(compare_estimators(
            program.model, program.guide, X, estimators={"L^A": Trace_ELBO()}, draws=5, progress=False
        ).estimators["L^A"].bound.mean),
    )  # fmt: skip
    for call in calls:
        wanted = call()
        for caller in (lambda: torch.autocast("cpu", torch.bfloat16), torch.inference_mode):
            with caller():
                assert torch.equal(call(), wanted)


# Random numbers and interrupts ----------------------------------------------------------------------------------------


def test_the_state_of_every_generator_comes_back_after_it_was_saved(tmp_path):
    np.random.randn(), random.gauss(0, 1)  # of two numbers that they make at once, they keep the second
    state = random_state()
    torch.save(state, tmp_path / "state.pt")
    draw = lambda: (torch.rand(2).tolist(), np.random.randn(3).tolist(), random.gauss(0, 1))  # noqa: E731
    first = draw()
    assert draw() != first
    set_random_state(torch.load(tmp_path / "state.pt"))
    assert draw() == first


def test_torchs_part_of_the_state_leaves_the_other_generators_alone():
    state = torch_random_state()
    first, other = torch.rand(2), np.random.rand()
    set_random_state(state)
    assert torch.equal(torch.rand(2), first) and np.random.rand() != other


def test_an_interrupt_is_raised_where_it_is_asked_for_with_the_number_of_its_signal(usual_interrupt):
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            with pytest.raises(KeyboardInterrupt) as caught, deferred_interrupt() as raise_if_asked:
                raise_if_asked()
                signal.raise_signal(number)
                whole = number
                raise_if_asked(lambda asked: 0)  # processes that agree to go on
                raise_if_asked()
            assert caught.value.args == (number,) and whole == number
        assert signal.getsignal(signal.SIGTERM) is interrupt
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_second_interrupt_is_raised_at_once(usual_interrupt):
    with pytest.raises(KeyboardInterrupt), deferred_interrupt():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError


def test_another_process_may_ask_for_the_interrupt():
    with pytest.raises(KeyboardInterrupt, match="15"), deferred_interrupt() as raise_if_asked:
        raise_if_asked(lambda asked: asked or 15)


def test_a_handler_of_the_program_is_left_alone():
    seen = []
    own = lambda number, frame: seen.append(number)  # noqa: E731
    before = signal.signal(signal.SIGINT, own)
    try:
        with deferred_interrupt() as raise_if_asked:
            assert signal.getsignal(signal.SIGINT) is own
            signal.raise_signal(signal.SIGINT)
            raise_if_asked()
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == [signal.SIGINT]


def test_in_another_thread_nothing_is_changed(usual_interrupt):
    failed = []

    def work():
        try:
            with deferred_interrupt() as raise_if_asked:
                assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
                raise_if_asked()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failed
