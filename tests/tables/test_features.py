"""What an encoder reads: standardised by NumPy's numbers, zeros where a cell is missing, no NaN in any gradient."""

import numpy as np
import torch
from mixed_tables import mixed_frame

from pyro_vae.tables import Features, Schema

FRAME = mixed_frame()
SCHEMA = Schema.from_frame(FRAME)


def test_numbers_have_mean_zero_and_deviation_one():
    out = Features(SCHEMA).double()(SCHEMA.encode(FRAME))
    assert out.shape == (60, Features(SCHEMA).out_features) == (60, 3 + 10 + 7)
    seen = torch.tensor(FRAME.height.notna().tolist())
    for numbers in (out[seen, 0], out[:, 1]):
        torch.testing.assert_close(numbers.mean(), torch.tensor(0.0).double(), atol=1e-5, rtol=0)
        torch.testing.assert_close(numbers.std(correction=0), torch.tensor(1.0).double(), atol=1e-5, rtol=0)
    visits = (np.log1p(FRAME.visits) - np.log1p(FRAME.visits.mean())) / np.log1p(FRAME.visits).std(ddof=0)
    torch.testing.assert_close(out[:, 2], torch.tensor(visits.tolist(), dtype=torch.float64), atol=1e-5, rtol=1e-5)


def test_levels_are_one_hot_and_missing_cells_zero():
    out = Features(SCHEMA)(SCHEMA.encode(FRAME).float())
    eyes = out[:, 7:10]
    expected = np.stack([FRAME.eyes == name for name in ("blue", "brown", "green")], 1)
    np.testing.assert_array_equal(eyes.numpy(), expected.astype(np.float32))
    np.testing.assert_array_equal(out[:, -7:].numpy(), FRAME.notna().to_numpy().astype(np.float32))
    assert out[3, 0] == 0
    assert out[4, 7:10].sum() == 0


def test_no_gradient_is_nan_and_leading_dimensions_stay():
    x = SCHEMA.encode(FRAME).float().expand(3, -1, -1).clone().requires_grad_()
    out = Features(SCHEMA)(x)
    assert out.shape == (3, 60, 20)
    out.sum().backward()
    assert x.grad.isfinite().all()


def test_only_numbers_or_only_levels():
    for names in (["height", "income"], ["eyes", "grade"]):
        schema = Schema.from_frame(FRAME[names])
        assert Features(schema)(schema.encode(FRAME[names]).float()).isfinite().all()
