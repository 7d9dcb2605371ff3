"""Normal densities of real rows; those of pictures are tested with the other pictures."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn

from pyro_vae import likelihoods as L


def test_scipy_agrees_on_reals_of_any_size():
    x = np.linspace(-300, 300, 7)
    maps = torch.tensor([-250.0, 0.7], dtype=torch.float64)
    scale = math.exp(-6 + math.log1p(math.exp(0.7 + 6)))
    p = L.RealNormal(nn.Identity()).double().pixel_distribution(*maps)
    assert np.allclose(p.log_prob(torch.tensor(x)), scipy.stats.norm.logpdf(x, -250, scale))


def test_each_column_may_have_a_scale_of_its_own():
    likelihood = L.RealNormal(nn.Identity(), log_scale=nn.Parameter(torch.tensor([-1.0, 0.0, 2.0])))
    scale = likelihood(torch.zeros(5, 3)).base_dist.scale.detach()
    assert scale.shape == (5, 3) and (scale[:, 1:] > scale[:, :-1]).all()
    assert L.RealNormal(nn.Identity(), log_scale=-1.0)(torch.zeros(3)).base_dist.scale.unique().log().item() == -1


def test_rows_are_taken_as_they_are_in_the_dtype_of_the_parameters():
    likelihood = L.RealNormal(nn.Linear(2, 6))
    rows = np.array([[1.5, -2.0, 1e6]])
    assert likelihood.observe(rows).dtype == torch.float32
    assert torch.equal(likelihood.double().observe(rows), torch.tensor(rows))
    for wrong in (rows[0], [[1.0]], rows > 0):
        with pytest.raises(ValueError, match=r"table: wanted numbers .* rows\[None\]"):
            likelihood.observe(wrong)


def test_the_share_at_the_bound_is_that_of_the_scales_in_use():
    """Scales from the network, scales of the columns, and a fixed scale, which has no bound."""
    maps = torch.tensor([[9.0, 9.0, 9.0, 9.0, -3.0, -1.0, 0.0, 7.0], [-9.0, -9.0, -9.0, -9.0, -3.0, -4.0, -5.0, 0.0]])
    assert L.RealNormal(nn.Identity(), min_log_scale=-2.0).share_at_bound(maps) == 0.5
    columns = nn.Parameter(torch.tensor([-3.0, 0.0, 0.0, 0.0]))
    assert L.RealNormal(nn.Identity(), log_scale=columns, min_log_scale=-2.0).share_at_bound(maps[:, 4:]) == 0.25
    assert L.RealNormal(nn.Identity(), log_scale=-3.0, min_log_scale=-2.0).share_at_bound(maps) == 0.0
