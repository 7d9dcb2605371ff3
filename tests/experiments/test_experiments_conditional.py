"""What the experiment says of classes, where it is known in closed form, and the experiment from end to end."""

import json

import pyro.distributions as dist
import pytest
import torch
from programs import DIGITS
from torch import nn

from experiments import conditional
from pyro_vae import likelihoods
from pyro_vae.runs import sweeps


class OfTheLabel(nn.Module):
    """Logits of the images as a table of the class, whatever z is."""

    def __init__(self, logits):
        super().__init__()
        self.register_buffer("logits", logits)

    def forward(self, value):
        return (value[..., -len(self.logits) :] @ self.logits.flatten(1)).unflatten(-1, self.logits.shape[1:])


class StandardPosterior(nn.Module):
    """q(z | x, y) = p(z), which is the posterior where z changes nothing."""

    def forward(self, value):
        return dist.Normal(value.new_zeros(*value.shape[:-1], 2), 1.0).to_event(1)


@pytest.fixture
def naive():
    """Naive Bayes as a conditional program, and its logits: independent pixels given the class."""
    logits = torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    program = conditional.Conditional((1, 8, 8), latent=2, width=4)
    program.likelihood = likelihoods.Bernoulli(OfTheLabel(logits), likelihoods.threshold)
    program.posterior = StandardPosterior()
    return program, logits


def test_where_z_changes_nothing_the_numbers_are_those_of_naive_bayes(naive):
    program, logits = naive
    split, log_py = DIGITS.test, torch.linspace(-3, -1, 10).log_softmax(0)
    found = conditional.by_class(program, split, log_py, particles=3, seed=0)
    x, y = likelihoods.threshold(split.images), split.labels
    log_pxy = dist.Bernoulli(logits=logits[:, None]).log_prob(x).sum((-1, -2, -3))  # (classes, images)
    log_pxy_given, log_px = log_pxy.gather(0, y[None])[0], (log_pxy + log_py[:, None]).logsumexp(0)
    wrong = 100 * ((log_pxy + log_py[:, None]).argmax(0) != y).float()
    expected = {"log_p_x_given_y": log_pxy_given, "log_p_x": log_px, "gain_by_the_label": log_pxy_given - log_px}
    for name, values in {**expected, "error": wrong}.items():
        assert found[name] == pytest.approx(sweeps.over_images(values), rel=1e-4), name
    assert found["error"]["mean"] > 50  # the logits are noise


def test_the_rows_of_the_picture_are_the_classes(naive):
    program, logits = naive
    figure = conditional.picture(program, seed=0)
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == list("0123456789")
    drawn = torch.as_tensor(axes.images[0].get_array())
    torch.testing.assert_close(drawn[30:38, 20:28], logits[3, 0].sigmoid())  # with two pixels between images


@pytest.mark.slow
def test_it_is_trained_measured_and_drawn_and_not_done_twice(tmp_path, capsys, monkeypatch):
    words = ["--quick", "--epochs", "8", "--lr", "1e-2", "--particles", "10", "--images", "30"]
    words += ["--out", str(tmp_path / "run")]
    assert conditional.main(words) == 0
    result = json.loads((tmp_path / "run.json").read_text())
    assert result["test"]["images"] == 250 and result["log_p_x"]["n"] == 30
    assert result["log_p_x_given_y"]["mean"] > result["test"]["bound"] - 2
    assert result["history"][-1]["valid_bound"] > result["history"][0]["valid_bound"] + 5
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")
    first = capsys.readouterr().out
    assert "log p(x | y), L_10" in first
    monkeypatch.setattr(conditional, "measured", lambda *_: pytest.fail("it was measured again"))
    assert conditional.main(words) == 0
    assert capsys.readouterr().out.splitlines() == first.splitlines()[2:]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--images", "251"], "--images: wanted a whole number from 1 to 250, got 251"),
        (["--particles", "0"], "--particles: wanted a whole number of at least 1"),
        (["--latent", "0"], "--latent: wanted a whole number of at least 1"),
    ],
)
def test_what_cannot_be_is_an_error_before_anything_is_trained(tmp_path, capsys, words, message):
    assert conditional.main(["--quick", *words, "--out", str(tmp_path / "out")]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
