"""One-hot labels: torch's, with an error that names the labels, and NaN where nothing can be raised."""

import pytest
import torch
import torch.nn.functional as F

import pyro_vae as pv


@pytest.mark.parametrize("shape", [(), (5,), (2, 3)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_it_is_that_of_torch(shape, dtype):
    labels = torch.randint(4, shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    hot = pv.one_hot(labels, 4)
    assert hot.dtype == torch.float32
    torch.testing.assert_close(hot, F.one_hot(labels.long(), 4).float(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, -1, 2], r"labels: wanted whole numbers from 0 to 2, .* got -1 \(1 of 3 labels\); -1 is an unknown label"),
        ([0, 25, 3], r"got 25 \(2 of 3 labels\); number the classes from 0, or build the program for 26 classes"),
        ([-5, -1, 2], r"got -5 \(2 of 3 labels\); number the classes from 0$"),
        ([3, -1, 2], r"got 3 \(2 of 3 labels\); number the classes from 0, or build the program for 4 classes"),
    ],
)
def test_a_label_outside_the_classes_is_named(labels, message):
    with pytest.raises(ValueError, match=message):
        pv.one_hot(torch.tensor(labels), 3)


def test_other_values_than_whole_numbers_are_refused():
    with pytest.raises(ValueError, match=r"labels: wanted a tensor of whole numbers, got torch.float32; write"):
        pv.one_hot(torch.rand(3), 3)
    with pytest.raises(ValueError, match="got list"):
        pv.one_hot([1, 2], 3)
    with pytest.raises(ValueError, match="classes: wanted a whole number of at least 1"):
        pv.one_hot(torch.tensor([0]), 0)


def test_in_a_graph_a_wrong_label_is_nan_and_changes_no_other_row():
    class Hot(torch.nn.Module):
        def forward(self, labels):
            return pv.one_hot(labels, 3)

    graph = torch.export.export(Hot(), (torch.tensor([0, 1, 2]),), strict=False).module()
    hot = graph(torch.tensor([2, 3, -1]))
    assert torch.equal(hot[0], torch.tensor([0.0, 0.0, 1.0])) and hot[1:].isnan().all()
