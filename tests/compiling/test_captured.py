"""Functions as CUDA graphs; on a CPU they are called."""

import pytest
import torch

from pyro_vae.compiling.captured import Captured, NotCaptured


def test_on_a_cpu_each_call_is_one_of_the_function():
    called = []
    function = Captured(lambda x: [x.sum(), called.append(x)], [torch.zeros(2)], [])
    assert called == [] and function(torch.ones(2))[0] == 2.0 and len(called) == 1


@pytest.mark.gpu
def test_a_capture_leaves_tensors_and_random_numbers_as_they_were():
    state, x = torch.zeros(3, device="cuda"), torch.ones(3, device="cuda")
    before = torch.cuda.get_rng_state()

    def step(x):
        state.add_(x)
        return [state + torch.rand(3, device="cuda")]

    captured = Captured(step, [x], [state])
    assert state.tolist() == [0.0] * 3 and torch.equal(before, torch.cuda.get_rng_state())
    first = captured(x)[0].clone()
    assert state.tolist() == [1.0] * 3 and not torch.equal(before, torch.cuda.get_rng_state())
    torch.cuda.set_rng_state(before)
    torch.testing.assert_close(first, 1 + torch.rand(3, device="cuda"))
    torch.testing.assert_close(captured(2 * x)[0].floor(), torch.full((3,), 3.0, device="cuda"))


@pytest.mark.gpu
def test_a_function_that_reads_a_value_is_refused():
    with pytest.raises(NotCaptured, match="torch cannot make a CUDA graph"):
        Captured(lambda x: [x * float(x.sum())], [torch.ones(3, device="cuda")], [])
