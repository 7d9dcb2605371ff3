"""Descriptions of programs: what they hold, and what is refused."""

import json

import pytest
import torch
from many_programs import programs, vae, vamp
from torch import nn

from pyro_vae import likelihoods, priors
from pyro_vae.saved.descriptions import Undescribable, built, described
from pyro_vae.structure import difference, structure

LINEAR = {"class": "nn.Linear", "arguments": {"in_features": 2, "out_features": 1}}


def test_a_description_survives_json_and_makes_the_same_program():
    for name, (program, _) in programs().items():
        parts = json.loads(json.dumps(described(program)))
        assert difference(structure(program), structure(built(parts).to(next(program.parameters()).dtype))) is None, (
            name
        )


def test_a_part_that_is_used_twice_is_described_once():
    parts = described(vamp())
    assert list(parts) == [
        "program.prior.posterior.network",
        "program.prior.posterior",
        "program.prior",
        "program.likelihood.network",
        "program.likelihood",
        "program",
    ]
    assert parts["program"]["arguments"]["posterior"] == {"part": "program.prior.posterior"}
    assert parts["program.prior"]["arguments"]["pseudo_inputs"] == {"tensor": [5, 1, 8, 8], "dtype": "float32"}


def test_layers_keep_their_names_and_one_that_is_there_twice():
    layer = nn.ReLU()
    layers = nn.Sequential(nn.Linear(2, 2), layer, layer)
    layers.add_module("last", nn.Tanh())
    again = built(described(layers))
    assert list(dict(again.named_modules(remove_duplicate=False))) == ["", "0", "1", "2", "last"]
    assert again[1] is again[2]


def test_words_for_functions_classes_and_tensors():
    shared = vae(likelihood=likelihoods.Normal(nn.Identity(), nn.Parameter(torch.zeros(3))))
    parts = described(shared)
    assert parts["program.likelihood"]["arguments"]["log_scale"] == {"parameter": [3], "dtype": "float32"}
    assert parts["program.posterior.network"]["arguments"]["activation"] == {"name": "nn.ReLU"}


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (nn.Bilinear(1, 1, 1), "program: Bilinear is no part of this library"),
        (nn.Sequential(nn.GRU(1, 1)), r"program\.args\.0\.0: GRU is no part"),
        (priors.Flow(2, lambda *arguments: priors.spline(*arguments)), r"program\.steps: the function"),
        (likelihoods.Bernoulli(nn.Identity(), print), r"program\.binarize: the function print is none of"),
        (likelihoods.Normal(nn.Identity(), nn.Parameter(torch.zeros(()).half())), "wanted a tensor of float32"),
    ],
)
def test_what_has_no_words_is_refused(part, message):
    with pytest.raises(Undescribable, match=message):
        described(part)


@pytest.mark.parametrize(
    ("parts", "error"),
    [
        (None, ValueError),
        ({}, ValueError),
        ({"program": {"class": "os.system", "arguments": {}}}, KeyError),
        ({"program": {"class": "likelihoods.dynamic", "arguments": {}}}, ValueError),
        ({"program": {"class": "tables.Schema", "arguments": {"columns": [], "rows": 1}}}, ValueError),
        ({"program": {"class": "likelihoods.Likelihood", "arguments": {"network": None}}}, TypeError),
        ({"program": {**LINEAR, "arguments": {**LINEAR["arguments"], "power": 2}}}, ValueError),
        ({"program": {**LINEAR, "arguments": {"in_features": 2}}}, TypeError),
        ({"program": {"class": "nn.Sequential", "arguments": {"args": [{"part": "program"}]}}}, KeyError),
        ({"program": {"class": "nn.Sequential", "arguments": {"args": [{"name": "builtins.eval"}]}}}, KeyError),
        ({"program": {"class": "nn.Sequential", "arguments": {"args": [{"odd": 1}]}}}, KeyError),
        ({"program": {"class": "priors.StandardNormal", "arguments": {"latent": "2"}}}, ValueError),
    ],
)
def test_what_is_no_description_is_an_error(parts, error):
    with pytest.raises(error):
        built(parts)
