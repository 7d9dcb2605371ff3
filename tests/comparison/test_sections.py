"""Parts of vectors against the vectors, and sums over segments against loops."""

import pytest
import torch

from pyro_vae.comparison.replicates import Product
from pyro_vae.comparison.sections import Cut, Sections, columns, draws_of, size_of, sums


def test_columns_of_a_product_are_those_of_the_matrix():
    torch.manual_seed(0)
    product = Product(torch.randn(3, 4, 2), torch.randn(2, 5))
    flat = product.whole().flatten(1)
    assert size_of(product) == size_of(flat) == 20 and draws_of(product) == draws_of(flat) == 3
    for start, stop in ((0, 20), (3, 4), (4, 11), (15, 20)):
        torch.testing.assert_close(columns(product, start, stop), columns(flat, start, stop))


@pytest.mark.parametrize("lengths", [[5], [1, 3, 1], [1] * 5])
def test_sums_over_segments(lengths):
    rows = torch.arange(10.0).view(2, 5)
    wanted = torch.stack([part.sum(1) for part in rows.split(lengths, 1)], 1)
    assert torch.equal(sums(rows, torch.tensor(lengths)), wanted)


def test_a_cut_knows_its_segments_and_its_sample():
    """The vector has segments of 4, 4 and 4 numbers; the piece begins at 3, the part is 5 … 10 of the vector."""
    cut = Cut.of(1, 2, 7, 3, torch.tensor([4, 8, 12]), torch.tensor([0, 5, 9, 11]))
    assert (cut.part, cut.segments, cut.lengths.tolist()) == (slice(5, 10), slice(1, 3), [3, 2])
    assert cut.chosen.tolist() == [0, 4]


def test_sections_are_the_same_for_any_blocks_of_draws():
    draws = torch.randn(300, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = []
    for sizes in ([1] * 300, [7] * 42 + [6], [300]):
        sections = Sections(2, 2, draws)
        for rows in draws.split(sizes):
            sections.add(rows[:, :2], rows[:, 2:], rows[:, 0])
        sections.end_batch()
        found.append(torch.cat([*sections.deviations(299)], 1))
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0])
