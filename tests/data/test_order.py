"""The order of an epoch: each row once, blocks of a file read together, and nothing else that a batch could tell."""

from collections import Counter

import numpy as np
import pytest
import torch
from monte_carlo import assert_mean_is
from scipy import stats

from pyro_vae import VAE, Checkpoints, Training, fit, guides, likelihoods, load, networks, priors
from pyro_vae.data import mapped, order

ROWS, PER_BLOCK, PER_BUFFER, EPOCHS = 1000, 10, 200, 400


@pytest.fixture
def rows(tmp_path, monkeypatch):
    """Make a mapped file of 1,000 rows of four bytes, in blocks of 10 rows and buffers of 20 blocks."""
    monkeypatch.setattr(mapped, "BLOCK", 4 * PER_BLOCK)
    monkeypatch.setattr(order, "BUFFER", 4 * PER_BUFFER)
    np.save(tmp_path / "rows.npy", np.zeros((ROWS, 4), np.uint8))
    return mapped.map_array(tmp_path / "rows.npy")


def orders(rows):
    generator = torch.Generator().manual_seed(0)
    return torch.stack([order.shuffled([rows], generator) for _ in range(EPOCHS)])


def test_each_row_comes_once(rows):
    assert (orders(rows).sort(-1).values == torch.arange(ROWS)).all()
    few = rows[: PER_BUFFER + 1]  # no whole block, no whole buffer at the end
    assert order.shuffled([few]).sort().values.tolist() == [*range(PER_BUFFER + 1)]


def test_rows_in_memory_and_small_files_have_the_order_of_torch(rows):
    for given in (rows.clone(), rows[:PER_BUFFER]):
        torch.manual_seed(1)
        found = order.shuffled([given])
        torch.manual_seed(1)
        assert torch.equal(found, torch.randperm(len(given)))


def test_the_largest_file_among_the_fields_is_read_in_blocks(rows):
    found = order.shuffled([torch.zeros(ROWS), rows[:, :1], rows], torch.Generator().manual_seed(0))
    assert torch.equal(found, orders(rows)[0])


def test_a_buffer_holds_whole_blocks_in_no_order(rows):
    for epoch in orders(rows)[:20]:
        for buffer in epoch.split(PER_BUFFER):
            blocks = Counter((buffer // PER_BLOCK).tolist())
            assert set(blocks.values()) == {PER_BLOCK} and len(blocks) == PER_BUFFER // PER_BLOCK
            apart = (buffer.diff() == 1).sum()
            assert apart < 15  # of 199 pairs about one; in a block that is read in order there are nine


def test_every_row_is_equally_likely_at_every_place(rows):
    places = orders(rows).argsort(-1)  # of each row in each epoch
    means = places.double().mean(0)
    error = ROWS / 12**0.5 / EPOCHS**0.5
    assert (means - (ROWS - 1) / 2).abs().max() < 6 * error  # of all rows together, a false alarm in 1e-5
    halves = (places < ROWS // 2).sum(0)  # binomial: no row is fixed to a half
    assert stats.chisquare(halves.numpy()).pvalue > 1e-4
    assert stats.kstest(places[:, ::97].flatten().numpy() / ROWS, "uniform").pvalue > 1e-4


def test_rows_of_a_block_meet_in_a_batch_as_often_as_the_buffer_says(rows):
    """In a buffer of R rows a batch of b is a simple random sample: its blocks are multivariate hypergeometric."""
    batch = 50
    batches = orders(rows).reshape(-1, batch) // PER_BLOCK
    pairs = torch.tensor([sum(n * (n - 1) // 2 for n in Counter(each.tolist()).values()) for each in batches]).double()
    expected = batch * (batch - 1) / 2 * (PER_BLOCK - 1) / (PER_BUFFER - 1)
    assert_mean_is(pairs, expected, sees=0.1 * expected)
    in_memory = batch * (batch - 1) / 2 * (PER_BLOCK - 1) / (ROWS - 1)
    assert pairs.mean() > 4 * in_memory  # the price, which the docstring names
    numbers = Counter(min(n, 7) for each in batches for n in Counter(each.tolist()).values())
    hypergeometric = stats.hypergeom(PER_BUFFER, PER_BLOCK, batch)
    law = np.array([*hypergeometric.pmf(range(1, 7)), hypergeometric.sf(6)])
    found = np.array([numbers[n] for n in range(1, 8)])
    wanted = found.sum() * law / law.sum()
    chi_square = ((found - wanted) ** 2 / wanted).sum()
    assert chi_square < stats.chi2(6).isf(1e-4)


def test_blocks_meet_other_blocks_in_each_epoch(rows):
    """Each pair of blocks shares a buffer in 19 of 99 epochs, up to chance."""
    blocks = ROWS // PER_BLOCK
    together = torch.zeros(blocks, blocks)
    for epoch in orders(rows):
        for buffer in epoch.split(PER_BUFFER):
            those = (buffer // PER_BLOCK).unique()
            together[those[:, None], those] += 1
    share = PER_BUFFER // PER_BLOCK - 1
    counts = together[~torch.eye(blocks, dtype=torch.bool)].numpy() / EPOCHS
    assert abs(counts.mean() - share / (blocks - 1)) < 1e-6
    expected = (share / 99 * (1 - share / 99) / EPOCHS) ** 0.5
    assert counts.std() == pytest.approx(expected, rel=0.1)


def test_rows_are_taken_in_blocks_each_read_once_and_few_are_held(tmp_path, monkeypatch):
    monkeypatch.setattr(mapped, "BLOCK", 4 * PER_BLOCK)
    monkeypatch.setattr(mapped, "RESIDENT", 4 * PER_BUFFER)
    monkeypatch.setattr(order, "BUFFER", 4 * PER_BUFFER)
    np.save(tmp_path / "rows.npy", np.random.RandomState(0).randint(256, size=(ROWS, 4)).astype(np.uint8))
    images = mapped.map_array(tmp_path / "rows.npy")
    pages = mapped._MAPPED[images.untyped_storage().data_ptr()]
    read, most = 0, 0
    for index in order.shuffled([images], torch.Generator().manual_seed(0)).split(30):
        before = set(mapped._BLOCKS[pages].numbers.tolist()) if read else set()
        assert torch.equal(order.taken(images, index), images[index])
        held = set(mapped._BLOCKS[pages].numbers.tolist())
        read, most = read + len(held - before), max(most, len(held))
    blocks = ROWS // PER_BLOCK
    assert blocks <= read < 1.3 * blocks and most <= 2 * PER_BUFFER // PER_BLOCK + 40
    for part in images[3:], images[:, 1:], images[::2], images:  # other parts of one file
        assert torch.equal(order.taken(part, torch.tensor([5, 0])), part[torch.tensor([5, 0])])


@pytest.mark.slow
def test_a_training_from_a_file_in_blocks_resumes_to_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(mapped, "BLOCK", 512)
    monkeypatch.setattr(order, "BUFFER", 4096)
    digits = load("digits")
    for split in ("train", "valid", "test"):
        np.save(tmp_path / f"{split}.npy", getattr(digits, split).images[:200])
    data, settings = load(tmp_path), {"epochs": 2, "batch_size": 32, "engine": "eager", "progress": False}

    def program():
        torch.manual_seed(0)
        likelihood = likelihoods.Bernoulli(networks.MLPDecoder(2, data.shape, maps=1, hidden=(8,)))
        guide = guides.MeanField(networks.MLPEncoder(data.shape, hidden=(8,)), 2)
        return VAE(priors.StandardNormal(2), likelihood, guide)

    expected = fit(program(), data, **settings)
    for step in Training(program(), data, checkpoints=Checkpoints(tmp_path / "run"), **settings).steps():
        if step.number == 9:
            break
    history = fit(program(), data, checkpoints=Checkpoints(tmp_path / "run", resume=True), **settings)
    assert [row["valid_bound"] for row in history.rows] == [row["valid_bound"] for row in expected.rows]


@pytest.mark.parametrize("size", [64, 68])
def test_files_above_64_mib_are_read_in_blocks_of_two(tmp_path, size):
    """Which orders a seed gives is a promise. The file is a hole of rows of 1 MiB, of which none is read."""
    with (tmp_path / "rows.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (size, 1 << 20)})
        file.truncate(file.tell() + (size << 20))
    found = order.shuffled([mapped.map_array(tmp_path / "rows.npy")], torch.Generator().manual_seed(3))
    in_memory = torch.randperm(size, generator=torch.Generator().manual_seed(3))
    assert torch.equal(found, in_memory) == (size == 64)
    if size == 68:
        pairs = [(part // 2).sort().values for part in found.tensor_split(2)]
        assert all(torch.equal(part[:-1:2], part[1::2]) for part in pairs)
        assert not torch.equal(found.sort().values, found)
