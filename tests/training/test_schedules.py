"""Schedules of the learning rate."""

import itertools

import pytest
import torch
from programs import quick, small_vae

from pyro_vae.training import warm_cosine


@pytest.mark.slow
def test_the_schedule_moves_the_step_of_every_step():
    seen = []

    class Watched(torch.optim.SGD):
        def step(self, *args, **kwargs):
            seen.append(self.param_groups[0]["lr"])
            return super().step(*args, **kwargs)

    quick(small_vae(), epochs=5, optimizer=lambda parameters: Watched(parameters, lr=1e-3), schedule=warm_cosine)
    assert len(seen) == 20 and seen[:3] == pytest.approx([5e-4, 1e-3, 1e-3])
    assert all(later < earlier for earlier, later in itertools.pairwise(seen[2:])) and seen[-1] < 2e-5


@pytest.mark.parametrize(("steps", "warm_up"), [(50, 0.1), (40, 0.25), (1, 0.1)])
def test_the_schedule_is_a_linear_warm_up_and_then_torchs_cosine(steps, warm_up):
    def rates(make, count):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
        schedule, found = make(optimizer), []
        for _ in range(count):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        return found

    warm = max(1, round(steps * warm_up))
    rising = [0.3 * (step + 1) / warm for step in range(warm)]
    falling = rates(lambda given: torch.optim.lr_scheduler.CosineAnnealingLR(given, max(1, steps - warm)), steps - warm)
    found = rates(lambda given: warm_cosine(given, steps, warm_up), steps)
    assert found == pytest.approx(rising + falling)
    if warm_up == 0.1:
        assert rates(lambda given: warm_cosine(given, steps), steps) == found
