"""The program with two layers where everything is known, and the experiment from end to end on the bundled digits."""

import json

import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn

from experiments import two_layer
from pyro_vae import evaluate, log_evidence, priors
from pyro_vae.linear_gaussian import LinearGaussian

WORDS = [
    "--dataset",
    "digits",
    "--hidden",
    "16",
    "--latent",
    "6",
    "--top",
    "3",
    "--between",
    "8",
    "--epochs",
    "2",
    "--images",
    "20",
    "--particles",
    "50",
    "--quiet",
]


class Call(nn.Module):
    """A function as a part of a program."""

    def __init__(self, function):
        super().__init__()
        self.forward = function


@pytest.fixture
def linear():
    """z2 ~ N(0, I), z1 ~ N(A z2, s² I), x ~ N(W z1, I) with the exact posterior as its guide, x, and log p(x).

    With A Aᵀ + s² I = C Cᵀ and z1 = C u, u ~ N(0, I): x is that of probabilistic PCA by W C, and z1 that by A.
    """
    torch.manual_seed(0)
    upper = LinearGaussian(torch.randn(3, 2).double(), scale=0.5)
    covariance = upper.weight @ upper.weight.T + 0.25 * torch.eye(3)
    C = torch.linalg.cholesky(covariance).detach()
    lower = LinearGaussian(torch.randn(4, 3).double() @ C, shape=(1, 2, 2))
    back = torch.linalg.inv(C)

    def first(x):
        u = lower.exact_posterior(x)
        return dist.MultivariateNormal(u.mean @ C.T, C @ u.covariance_matrix @ C.T)

    def second(z1):
        q = upper.exact_posterior(z1.reshape(-1, 3))
        return dist.MultivariateNormal(q.mean.reshape(*z1.shape[:-1], 2), q.covariance_matrix[0])

    parts = (upper.likelihood, lambda z1: lower.likelihood(z1 @ back.T), first, second)
    program = two_layer.TwoLayers(priors.StandardNormal(2).double(), *map(Call, parts))
    x = lower.simulate(5)
    return program, x, lower.log_px(x).detach()


def test_with_the_exact_guide_every_weight_is_the_evidence(linear):
    program, x, log_px = linear
    evidence = log_evidence(program.model, program.guide, x, particles=30, seed=0)
    torch.testing.assert_close(evidence.log_px, log_px)
    assert evidence.standard_error.max() < 1e-6
    torch.testing.assert_close(evaluate(program, x).bound, log_px)


def test_the_rates_of_the_layers_add_up_to_the_rate(linear):
    """Both by Monte Carlo, of different draws: their means over repeats."""
    program, x, _ = linear
    many = x.repeat_interleave(2000, 0)
    parts = two_layer.layers(program, ("z1", "z2"), many, seed=1, draws=2)
    rates = evaluate(program, many).rate
    assert sum(layer["rate"] for layer in parts.values()) == pytest.approx(rates.mean().item(), abs=0.15)
    assert parts["z2"]["units"] == 2 and parts["z1"]["units"] == 3


@pytest.mark.slow
def test_it_is_measured_and_written(tmp_path, capsys):
    out = tmp_path / "out"
    assert two_layer.main([*WORDS, "--warm-up", "0.5", "--out", str(out)]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    for name, sites in two_layer.LAYERS.items():
        result = metrics["programs"][name]
        assert list(result["layers"]) == list(sites)
        assert result["evidence"]["log_px"] > result["test"]["bound"] - 5
        first, second = (row["valid_bound"] for row in result["history"])
        assert second > first
    assert "z2: rate" in capsys.readouterr().out


def test_a_step_moves_every_parameter_of_both_programs():
    args = two_layer.parse_arguments(WORDS)
    torch.manual_seed(0)
    pixels = torch.randint(256, (8, 1, 8, 8), dtype=torch.uint8)
    for name in two_layer.LAYERS:
        program = two_layer.build(name, (1, 8, 8), args)
        loss = Trace_ELBO()(program.model, program.guide)(program.observe(pixels))
        loss.backward()
        for parameter, value in program.named_parameters():
            assert value.grad is not None and value.grad.isfinite().all() and value.grad.any(), (name, parameter)
        assert program.model(n=3).shape == (3, 1, 8, 8)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--images", "0"], "--images: wanted 1 to"),
        (["--top", "0"], "--top: wanted a whole number of at least 1"),
        (["--epochs", "0"], "epochs: wanted a whole number of at least 1"),
    ],
)
def test_what_cannot_be_is_an_error_without_results(tmp_path, capsys, words, message):
    assert two_layer.main([*WORDS, *words, "--out", str(tmp_path / "out")]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
