"""Parts of vectors against the vectors, and sums over segments against loops."""

from contextlib import nullcontext

import pytest
import torch
from simulated_gpu import simulated_gpu

from pyro_vae.comparison.replicates import Product
from pyro_vae.comparison.sections import SECTIONS, Cut, Projected, Sections, columns, draws_of, size_of, sums


def test_columns_of_a_product_are_those_of_the_matrix():
    torch.manual_seed(0)
    product = Product(torch.randn(3, 4, 2), torch.randn(2, 5))
    flat = product.whole().flatten(1)
    assert size_of(product) == size_of(flat) == 20 and draws_of(product) == draws_of(flat) == 3
    for start, stop in ((0, 20), (3, 4), (4, 11), (15, 20)):
        torch.testing.assert_close(columns(product, start, stop), columns(flat, start, stop))


@pytest.mark.parametrize("lengths", [[5], [1, 3, 1], [1] * 5])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_sums_over_segments(lengths, device):
    rows = torch.arange(10.0).view(2, 5)
    wanted = torch.stack([part.sum(1) for part in rows.split(lengths, 1)], 1)
    with simulated_gpu() if device == "cuda" else nullcontext():
        found = sums(rows.to(device), torch.tensor(lengths).to(device)).cpu()
    assert torch.equal(found, wanted)


@pytest.mark.parametrize(
    ("start", "stop", "segments", "lengths", "chosen"),
    [(2, 7, slice(1, 3), [3, 2], [0, 4]), (1, 5, slice(1, 2), [4], [1]), (0, 9, slice(0, 3), [1, 4, 4], [2, 6, 8])],
)
def test_a_cut_knows_its_segments_and_its_sample(start, stop, segments, lengths, chosen):
    """The vector has segments of 4, 4 and 4 numbers, and the piece begins at 3; parts may end where a segment does."""
    cut = Cut.of(1, start, stop, 3, torch.tensor([4, 8, 12]), torch.tensor([0, 5, 9, 11]))
    assert (cut.part, cut.segments, cut.lengths.tolist()) == (slice(3 + start, 3 + stop), segments, lengths)
    assert cut.chosen.tolist() == chosen


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


@pytest.mark.parametrize("more", [4, 5])
def test_deviations_are_sums_over_sections_about_the_means_of_a_batch(more):
    """Beyond ``SECTIONS`` draws two make a section; of an odd number the last draw is one by itself."""
    n, generator = SECTIONS + more, torch.Generator().manual_seed(0)
    sample, segments = (torch.randn(n, k, generator=generator, dtype=torch.float64) + 1 for k in (2, 3))
    t = torch.randn(n, generator=generator, dtype=torch.float64)
    t[0] = 0.0  # the first draw has none
    sections = Sections(2, 3, sample)
    sections.add(sample, segments, t)
    sections.end_batch()
    t[0] = t.sum() / (n - 1)
    centred = sample - sample.mean(0)
    values = centred, centred.square(), segments, t[:, None]
    for found, of_draws in zip(sections.deviations(n - 1), values):
        away = of_draws - of_draws.mean(0)
        wanted = torch.stack([part.sum(0) for part in away.split(2)]) / (n - 1)
        torch.testing.assert_close(found, wanted)


def test_projections_have_the_means_of_batches_and_the_squares_within():
    projection, generator = torch.tensor([0, 1, 0, 1, 1]), torch.Generator().manual_seed(0)
    batches = [torch.randn(n, 5, generator=generator) + 3 * i for i, n in enumerate((20, 30))]
    projected, means, squares = Projected(projection), torch.zeros(2).double(), torch.zeros(2, 2).double()
    for batch in batches:
        for part in batch.split(7):
            projected.add(part)
        projected.end_batch()
        both = torch.stack([batch[:, projection == k].double().sum(1) for k in (0, 1)], 1)
        means += both.mean(0)
        squares += (both - both.mean(0)).T @ (both - both.mean(0))
    torch.testing.assert_close(projected.means, means)
    torch.testing.assert_close(projected.squares, squares)
