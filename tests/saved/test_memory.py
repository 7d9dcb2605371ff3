"""New tensors are counted before they are made."""

import pytest
import torch
from torch import nn

from pyro_vae import priors
from pyro_vae.saved import memory
from pyro_vae.saved.memory import MORE, LimitedMemory

FLOATS = MORE // 4


def test_small_tensors_are_made_and_their_values_are_those_without_a_limit():
    torch.manual_seed(0)
    flow = priors.Flow(3)
    torch.manual_seed(0)
    with LimitedMemory(10_000):
        again = priors.Flow(3)
    assert all(map(torch.equal, flow.state_dict().values(), again.state_dict().values()))


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.zeros(10**12),
        lambda: torch.empty(10**6, 10**6),
        lambda: torch.arange(10**12),
        lambda: torch.rand(10**12),
        lambda: torch.full((10**12,), 1.0),
        lambda: torch.zeros(10**5).unsqueeze(-1) >= torch.zeros(10**5),
        lambda: torch.zeros(10**5).repeat(10**7),
        lambda: torch.zeros(1).expand(10**12).clone(),
        lambda: torch.cat([torch.zeros(1).expand(10**12)] * 2),
        lambda: nn.Linear(10**6, 10**6),
        lambda: priors.Mixture(10**6, 10**6),
        lambda: priors.Flow(1, depth=10**9),
        lambda: [torch.zeros(0) for _ in range(10**9)],
    ],
)
def test_too_much_is_refused_before_it_is_taken(monkeypatch, make):
    monkeypatch.setattr(memory, "MORE", 1 << 22)
    with pytest.raises(ValueError, match="the description asks for more memory"), LimitedMemory(0):
        make()


def test_the_limit_grows_with_the_parameters_and_changes_in_place_are_free():
    with LimitedMemory(0):
        value = torch.zeros(FLOATS - 200_000)
        for _ in range(10):
            value.add_(1).mul_(2).view(-1)
    with LimitedMemory(8 * FLOATS):
        torch.zeros(2 * FLOATS)


@pytest.mark.parametrize("size", [0, 1 << 20])
def test_the_limit_is_eight_times_the_size_and_256_mib(size):
    """Memory that nothing is written to takes no room."""
    most = 8 * size + (256 << 20)
    for parts in ([most], [most - (8 << 20), 8 << 20]):
        with LimitedMemory(size):
            made = [torch.empty(part, dtype=torch.uint8) for part in parts]
        with pytest.raises(ValueError, match="asks for more memory"), LimitedMemory(size):
            made = [torch.empty(part + 1, dtype=torch.uint8) for part in parts]
        del made


def test_an_operation_counts_16_kib_however_little_it_makes(monkeypatch):
    monkeypatch.setattr(memory, "MORE", 10 << 14)
    value = torch.zeros(3)
    for make in (lambda: torch.zeros(0), lambda: torch.zeros(4096), lambda: value.view(-1)):
        with LimitedMemory(0):
            assert len([make() for _ in range(10)]) == 10
        with pytest.raises(ValueError, match="asks for more memory"), LimitedMemory(0):
            [make() for _ in range(11)]
