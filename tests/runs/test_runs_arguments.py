"""The command line of a run: recipes, and defaults that suit the images."""

import pytest
import torch

from pyro_vae.data import Data, Split
from pyro_vae.runs import arguments


def test_options_that_the_recipe_sets_are_not_given(tmp_path):
    assert arguments.parse_arguments(["--recipe", "fast", "--prior", "standard"]).flow_width == 128
    assert arguments.parse_arguments(["--recipe", "fast", "--net", "mlp"]).channels == [16, 32]
    assert arguments.parse_arguments(["--recipe", "fast", "--free-bits", "0.1"]).estimator == "free-bits"


def images_of(count, *shape):
    split = Split(torch.zeros(count, *shape, dtype=torch.uint8))
    return Data("some", split, split, split)


@pytest.mark.parametrize(
    ("words", "images", "expected"),
    [
        ([], (50_000, 1, 28, 28), ("conv", "relu", [256, 256], 10, 256, 5e-3)),
        ([], (1297, 1, 8, 8), ("mlp", "silu", [256, 256, 256], 100, 100, 5e-3)),
        ([], (6000, 3, 8, 8), ("mlp", "silu", [256, 256, 256], 10, 100, 5e-3)),
        ([], (1565, 1, 28, 20), ("conv", "relu", [256, 256], 100, 256, 5e-3)),
        ([], (60, 1, 8, 8), ("mlp", "silu", [256, 256, 256], 100, 60, 5e-3)),
        (["--net", "mlp"], (1297, 1, 8, 8), ("mlp", "relu", [400], 100, 256, 5e-3)),
        (["--net", "conv", "--latent", "9"], (1297, 1, 8, 8), ("conv", "relu", [400], 100, 256, 5e-3)),
        (["--channels", "8"], (1297, 1, 8, 8), ("conv", "relu", [256, 256], 100, 256, 5e-3)),
        (["--hidden", "7", "--activation", "tanh"], (1297, 1, 8, 8), ("mlp", "tanh", [7], 100, 100, 5e-3)),
        (["--batch", "32", "--lr", "0.1", "--epochs", "3"], (1297, 1, 8, 8), ("mlp", "silu", [256] * 3, 3, 32, 0.1)),
        (["--recipe", "fast"], (1297, 1, 8, 8), ("conv", "silu", [256], 9, 128, 1e-2)),
        (["--recipe", "small"], (50_000, 1, 28, 28), ("mlp", "silu", [256, 256, 256], 10, 100, 5e-3)),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
def test_defaults_suit_the_images_and_the_command_line_holds(words, images, expected):
    args = arguments.parse_arguments(words)
    arguments.fill_in(args, images_of(*images))
    assert tuple(getattr(args, name) for name in ("net", "activation", "hidden", "epochs", "batch", "lr")) == expected


def test_a_recipe_gives_other_defaults_and_the_command_line_holds():
    recipe = arguments.RECIPES["fast"]
    plain, fast = arguments.parse_arguments([]), arguments.parse_arguments(["--recipe", "fast", "--epochs", "3"])
    assert fast.epochs == 3 and plain.recipe is None
    assert {name: getattr(fast, name) for name in recipe} == {**recipe, "epochs": 3}
    assert set(vars(plain)) >= set(recipe) and plain.prior == "standard"
    spelled = vars(arguments.parse_arguments(arguments.words_of("fast").split()))
    assert {name: spelled[name] for name in recipe} == recipe
