"""Values of tensors are read only where they are the same in each call."""

import pytest
import torch
from torch.nn.functional import one_hot

from pyro_vae.compiling.constants import WatchedConstants
from pyro_vae.compiling.joint import record
from pyro_vae.compiling.private import as_if_compiling
from pyro_vae.compiling.values import DataDependent, ValuesUnread

ORDER = torch.tensor([2, 0, 1])
X = torch.arange(3.0)


@pytest.mark.parametrize(
    "read", [float, bool, torch.Tensor.tolist, torch.Tensor.numpy, torch.nonzero, lambda x: x[x > 0]]
)
def test_arguments_are_not_read(read):
    x = torch.ones(1)
    with pytest.raises(DataDependent), ValuesUnread([x]):
        read(x)
    with pytest.raises(DataDependent), ValuesUnread([x]):
        read(2 * x)
    with pytest.raises(DataDependent), ValuesUnread([]):
        read(torch.rand(1))
    with ValuesUnread([]) as values:
        read(x)
    assert values.read == [x] or read is torch.nonzero


@pytest.mark.slow
def test_a_permutation_is_read_and_its_change_is_seen():
    order = ORDER.clone()
    graph = record(lambda x: [torch.stack([x[i] for i in order])], [X], WatchedConstants({}))
    assert graph([2 * X])[0].tolist() == [4.0, 0.0, 2.0] and not graph.is_stale()
    order.copy_(torch.arange(3))
    assert graph.is_stale()


@pytest.mark.slow
def test_an_index_that_moves_is_no_number():
    graph = record(lambda x, i: [x[i], x[..., i] + 1], [X, torch.tensor(0)], WatchedConstants({}))
    assert [float(value) for value in graph([X, torch.tensor(-1)])] == [2.0, 3.0]


def test_labels_that_move_become_one_hot_by_a_known_number_of_classes():
    with ValuesUnread([labels := torch.tensor([2, 0])]) as values, as_if_compiling():
        found = [one_hot(labels, 3), one_hot(labels, num_classes=3)]
        drawn = one_hot(torch.distributions.Categorical(torch.ones(4)).sample((5,)), 4)
        with pytest.raises(DataDependent, match="a number is read"):
            one_hot(labels)
    assert [each.tolist() for each in found] == 2 * [[[0, 0, 1], [1, 0, 0]]] and not values.read
    assert drawn.sum(1).tolist() == 5 * [1]


@pytest.mark.slow
def test_a_label_outside_the_classes_is_no_row_of_zeros_in_a_graph():
    graph = record(lambda labels: [one_hot(labels, 3).float()], [torch.tensor([2, 0])], WatchedConstants({}), None)
    (found,) = graph([torch.tensor([1, 3])])
    assert found[0].tolist() == [0, 1, 0] and found[1].isnan().all()
