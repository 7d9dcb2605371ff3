"""Codes, images and imputed values of trained programs, by their methods: those of ``analysis`` and ``imputation``."""

import warnings

import pytest
import torch
from many_programs import COUNTS, PIXELS, conditional, programs
from programs import DIGITS, small_vae

from pyro_vae import Masked, Split, UntrustedImputation, analysis, fixed_x, impute


def test_codes_images_and_reconstructions_are_those_of_analysis():
    vae, pixels = small_vae(), DIGITS.test.images[:7]
    vae.train()
    state = torch.get_rng_state()
    x = fixed_x(vae, pixels, seed=3)
    z = vae.encode(pixels, seed=3, batch_size=3)
    assert torch.equal(z, analysis.codes(vae, x, batch_size=3)) and not z.requires_grad
    assert torch.equal(vae.decode(z), analysis.decode(vae, z))
    assert torch.equal(vae.reconstruct(pixels, seed=3), analysis.reconstruct(vae, x))
    assert vae.training and torch.equal(state, torch.get_rng_state())


def test_splits_tensors_and_arrays_are_encoded_alike():
    vae, split = small_vae(), DIGITS.test[:5]
    z = vae.encode(split)
    assert torch.equal(z, vae.encode(split.images)) and torch.equal(z, vae.encode(split.images.numpy()))
    assert torch.equal(vae.decode(z), vae.decode(z.double().numpy()))
    with pytest.raises(ValueError, match="pixels"):
        vae.encode(split.images / 255)


@pytest.mark.parametrize("rows", [COUNTS / 2, -COUNTS, COUNTS.double().log1p().numpy()])
def test_raw_counts_are_checked_as_those_of_a_split_are(rows):
    program, _ = programs()["poisson"]
    assert torch.equal(program.encode(COUNTS.numpy()), program.encode(Split(counts=COUNTS)))
    for method in (program.encode, program.reconstruct, program.observe):
        with pytest.raises(ValueError, match="counts: wanted whole numbers from 0"):
            method(rows)


def test_no_rows_have_no_codes_and_nothing_to_impute():
    program, split = programs()["real"]
    assert program.encode(split[:0]).shape == (0, 3) and program.reconstruct(split[:0]).shape == (0, 4)
    with pytest.raises(ValueError, match="data: wanted at least one row, got"):
        program.impute(split[:0])


@pytest.mark.slow
def test_the_most_probable_level_is_decoded_and_missing_cells_are_imputed():
    program, split = programs()["mixed"]
    schema = program.likelihood.schema
    rows = program.reconstruct(split)
    assert rows.shape == split.table.shape and set(schema.frame(rows)["eyes"]) <= {"green", "blue", "brown"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UntrustedImputation)
        found = program.impute(split, particles=20)
        assert torch.equal(found.x, impute(program, split, 20).x) and found.x.isfinite().all()
        images = Split(DIGITS.test.images[:4], mask=DIGITS.test.images[:4] > 99)
        vae = small_vae()
        assert torch.equal(vae.impute(images, 20, seed=1).x, impute(Masked(vae), images, 20, seed=1).x)
    with pytest.raises(ValueError, match="nothing is missing"):
        vae.impute(Split(DIGITS.test.images[:4], mask=torch.ones(4, 1, 8, 8, dtype=torch.bool)))


def test_codes_and_reconstructions_given_the_class():
    program, split = conditional(), Split(PIXELS, [0, 1, 2, 0, 1, 2])
    x, y = fixed_x(program, split)
    with torch.no_grad():
        q = program.q(x, y)
        torch.testing.assert_close(program.encode(split, batch_size=4), q.mean)
        hot = torch.nn.functional.one_hot(y, 3).float()
        torch.testing.assert_close(program.reconstruct(split), program.likelihood(torch.cat([q.mean, hot], -1)).mean)
    z = program.encode(split)
    assert torch.equal(program.decode(z, y.numpy()), program.reconstruct(split))
    assert not torch.equal(program.decode(z, y), program.decode(z, (y + 1) % 3))
    with pytest.raises(ValueError, match=r"labels: wanted a class for each z, \(6,\), got shape \(1,\)"):
        program.decode(z, torch.tensor([1]))


def test_missing_pixels_are_imputed_given_the_class():
    program, batch = conditional(), Split(PIXELS, [0, 1, 2, 0, 1, 2], mask=PIXELS > 99)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UntrustedImputation)
        found = program.impute(batch, particles=20)
        assert torch.equal(found.x, impute(Masked(program), batch, 20).x)
    assert torch.equal(found.mask, PIXELS > 99)
