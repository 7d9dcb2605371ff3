"""Scores of rows: what they are by hand; the AUC is that of scikit-learn, its errors those of new samples."""

import math

import pytest
import torch
from programs import DIGITS
from sklearn.metrics import roc_auc_score

import pyro_vae as pv
from pyro_vae.scoring import AUC, png_bits, score


def drawn(seed, n=80, m=50, shift=1.0):
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(n, generator=generator).round(decimals=1)
    return normal, torch.randn(m, generator=generator).round(decimals=1) + shift


def test_the_auc_is_that_of_scikit_learn_with_ties():
    normal, strange = drawn(0)
    truth = torch.cat([torch.zeros(len(normal)), torch.ones(len(strange))])
    assert AUC.of(normal, strange).value == pytest.approx(roc_auc_score(truth, torch.cat([normal, strange])))


def test_its_error_is_the_spread_over_new_samples_and_its_interval_holds():
    found = [AUC.of(*drawn(seed)) for seed in range(400)]
    spread = torch.tensor([auc.value for auc in found]).std().item()
    assert found[0].standard_error == pytest.approx(spread, rel=0.3)
    exact = 0.5 * (1 + math.erf(1 / 2))  # P(a − b > 0), a − b ~ N(1, 2)
    assert 0.92 < sum(auc.low < exact < auc.high for auc in found) / 400 < 0.99


def test_intervals_where_no_row_is_out_of_place():
    found = AUC.of(torch.zeros(50), torch.ones(1))
    assert (found.value, found.high, found.standard_error) == (1, 1, 0) and found.low < 0.6
    assert 0.99 < AUC.of(torch.zeros(500), torch.ones(500)).low < 0.999
    other = AUC.of(torch.ones(50), torch.zeros(1))
    assert (other.value, other.low) == (0, 0) and other.high == pytest.approx(1 - found.low)


def test_one_row_of_each_kind_has_no_error_and_rows_without_a_score_are_refused():
    assert math.isnan(AUC.of(torch.zeros(1), torch.ones(1)).standard_error)
    for normal, strange, got in (
        (torch.zeros(3), torch.tensor([1.0, torch.nan]), "strange: .* got 1 NaN"),
        (torch.zeros(0), torch.ones(2), r"normal: .* got 0 NaN in shape \(0,\)"),
        (torch.zeros(3, 1), torch.ones(2), r"normal: .* in shape \(3, 1\)"),
    ):
        with pytest.raises(ValueError, match=got):
            AUC.of(normal, strange)


def test_a_single_strange_row_has_the_error_of_a_share():
    found = AUC.of(torch.arange(10.0), torch.tensor([2.5]))
    assert found.value == pytest.approx(0.3)
    assert found.standard_error == pytest.approx((0.3 * 0.7 / 9) ** 0.5)


def test_simple_pictures_have_short_files():
    noise = torch.randint(256, (2, 1, 28, 28), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    black, random = png_bits(torch.zeros_like(noise)), png_bits(noise)
    assert (black < 1000).all() and (random > 28 * 28 * 8).all()
    assert (png_bits(noise.expand(-1, 3, -1, -1)) > random).all()


def grey(lik=pv.likelihoods.DiscretizedLogistic, maps=2):
    torch.manual_seed(0)
    decoder = pv.networks.MLPDecoder(2, (1, 8, 8), maps=maps, hidden=(8,))
    guide = pv.guides.MeanField(pv.networks.MLPEncoder((1, 8, 8), hidden=(8,)), 2)
    return pv.VAE(pv.priors.StandardNormal(2), lik(decoder), guide)


@pytest.mark.filterwarnings("ignore::pyro_vae.evidence.UntrustedEvidence")
def test_scores_are_those_by_hand():
    vae, rows, held_out = grey(), DIGITS.test[:20], DIGITS.valid[:30]
    log_px = pv.log_evidence(vae, rows, 50, progress=False).log_px
    normal = score(vae, held_out, progress=False)
    assert list(normal.values) == ["-log p(x)", "complexity"] and normal.typical is None
    found = score(vae, rows, normal=normal, progress=False)
    assert torch.equal(found["-log p(x)"], -log_px) and torch.equal(found.evidence.log_px, log_px)
    typical = pv.log_evidence(vae, held_out, 50, progress=False).mean
    torch.testing.assert_close(found["typicality"], (log_px - typical).abs())
    torch.testing.assert_close(found["complexity"], -log_px - png_bits(rows.images) * math.log(2))
    assert list(found.to_frame())[-3:] == ["-log p(x)", "typicality", "complexity"] and len(found.to_frame()) == 20
    assert "scores of 20 rows" in str(found) and "typicality" in found._repr_html_()
    same = score(vae, rows.images, normal=normal, progress=False)  # images alone
    assert torch.equal(same["complexity"], found["complexity"])
    noise = torch.randint(256, (25, 1, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    auc = found.auc(score(vae, noise, normal=normal, progress=False))
    assert list(auc) == list(found.values) and (auc["complexity"].normal, auc["complexity"].strange) == (20, 25)
    with pytest.raises(ValueError, match="other: wanted scores of the same kinds, typical"):
        found.auc(normal)
    with pytest.raises(ValueError, match="other: wanted scores of the same kinds"):
        normal.auc(score(vae, held_out, 30, progress=False))


@pytest.mark.filterwarnings("ignore::pyro_vae.evidence.UntrustedEvidence")
def test_complexity_is_that_of_the_mass_on_grey_levels_and_none_elsewhere():
    rows = DIGITS.test[:5]
    density = score(grey(pv.likelihoods.Normal), rows, progress=False)
    mass = -density["-log p(x)"] - 64 * math.log(256)  # uniform dequantisation
    torch.testing.assert_close(density["complexity"], -mass - png_bits(rows.images) * math.log(2))
    assert list(score(grey(pv.likelihoods.Bernoulli, 1), rows, progress=False).values) == ["-log p(x)"]
