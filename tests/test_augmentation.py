"""Images changed at random in training alone: drawn anew at each step, compiled or not, resumed to the same bits."""

import random
from copy import deepcopy

import pytest
import torch
from torchvision.transforms import v2

from pyro_vae import Checkpoints, Training, evaluate, fit, fixed_x, likelihoods
from pyro_vae.augmentation import Augmented
from pyro_vae.compiling import Untraceable
from pyro_vae.data import Split
from tests.programs import FEW, needs_compiler, small_vae

SETTINGS = {"epochs": 2, "batch_size": 50, "progress": False}
TRANSFORMS = {
    "crop": v2.RandomCrop(8, padding=2),
    "flip": v2.RandomHorizontalFlip(),
    "affine": v2.RandomAffine(20, translate=(0.1, 0.1)),
    "several": v2.Compose([v2.RandomErasing(0.5), v2.ColorJitter(0.4, 0.4)]),
}
NUMBERED = Split(torch.arange(40, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 8, 8))


def rows(history):
    return [(row["train_bound"], row["valid_bound"], row["valid_objective"]) for row in history.rows]


def whole(**settings):
    program = Augmented(small_vae(), TRANSFORMS["crop"])
    return program, fit(program, FEW, **(SETTINGS | {"engine": "eager"} | settings))


@pytest.mark.slow
def test_images_change_in_training_and_nowhere_else():
    """A transform that makes all images black: trained so, the program expects black, and is measured on digits."""
    program = Augmented(small_vae(), torch.zeros_like)
    assert not program.observe(FEW.train[:5]).any()
    history = fit(program, FEW, engine="eager", lr=3e-2, keep="last", **SETTINGS)
    x = small_vae().observe(FEW.valid.images, torch.Generator().manual_seed(0))
    assert torch.equal(fixed_x(program, FEW.valid), x) and x.any()  # in training mode, too
    assert history.rows[-1]["valid_bound"] == evaluate(program.program, x).summary()["bound"]
    assert evaluate(program, torch.zeros_like(x)).summary()["bound"] > history.rows[-1]["valid_bound"] + 20


def test_fields_beside_the_images_are_left_as_they_are():
    class Labelled(torch.nn.Module):
        model = guide = lambda self, x, y: None

        def observe(self, batch, generator=None):
            return batch.images / 255.0, batch.labels

    labelled = Labelled()
    labelled.weight = torch.nn.Parameter(torch.ones(1))
    x, labels = Augmented(labelled, lambda images: images.flip(-1)).observe(FEW.train)
    assert torch.equal(x, FEW.train.images.flip(-1) / 255) and torch.equal(labels, FEW.train.labels)


@pytest.mark.parametrize("draws", [1, 7, 16, 100])
def test_each_part_of_a_batch_has_a_draw_of_its_own(draws):
    def shifted(images):
        return images + torch.randint(200, (1,)).to(torch.uint8)

    program = Augmented(small_vae(family=likelihoods.Normal, maps=2), shifted, draws)
    shifts = program.transformed(NUMBERED.images, seed=0)[:, 0, 0, 0].int() - torch.arange(40)
    expected = torch.arange(40).tensor_split(min(draws, 40))
    found = shifts.tensor_split(min(draws, 40))
    assert [len(part) for part in found] == [len(part) for part in expected]
    assert all(len(part.unique()) == 1 for part in found)
    assert len(shifts.unique()) > min(draws, 40) * 0.7


def test_the_same_generator_gives_the_same_images():
    program = Augmented(small_vae(), TRANSFORMS["affine"])
    first, again, other = (program.observe(FEW.train, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    state = torch.get_rng_state()
    program.observe(FEW.train, torch.Generator())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.slow
def test_resumed_it_is_the_same(tmp_path):
    expected, history = whole()
    settings = SETTINGS | {"engine": "eager"}
    program = Augmented(small_vae(), TRANSFORMS["crop"])
    for step in Training(program, FEW, checkpoints=Checkpoints(tmp_path), **settings).steps():
        if step.number == 6:
            break
    resumed, again = whole(checkpoints=Checkpoints(tmp_path, resume=True))
    assert rows(again) == rows(history)
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), expected.parameters()))
    assert rows(whole(seed=1)[1]) != rows(history)


@pytest.mark.slow
@needs_compiler
@pytest.mark.usefixtures("quick_compiler")
def test_compiled_steps_draw_anew_as_eager_ones_do():
    """All transforms one after the other: the bounds would differ if one of them were frozen."""
    program = Augmented(small_vae(), v2.Compose([*TRANSFORMS.values()]))
    eager = fit(deepcopy(program), FEW, engine="eager", **SETTINGS)
    compiled = fit(program, FEW, engine="compiled", **SETTINGS)
    assert compiled.engine == "compiled"
    for one, other in zip(rows(compiled), rows(eager)):
        assert one == pytest.approx(other, abs=1e-4)
    assert rows(fit(small_vae(), FEW, engine="eager", **SETTINGS)) != rows(eager)


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_transform_in_an_observe_of_ones_own_is_never_frozen(name):
    class Own(torch.nn.Module):
        def __init__(self, vae):
            super().__init__()
            self.vae, self.model, self.guide = vae, vae.model, vae.guide

        def observe(self, batch, generator=None):
            images = TRANSFORMS[name](batch.images) if self.training else batch.images
            return self.vae.observe(images, generator)

    assert fit(Own(small_vae()), FEW, engine="eager", **SETTINGS).rows
    with pytest.raises(Untraceable, match=r"(?s)cannot be traced at .*TRANSFORMS\[name\].*engine=\"eager\""):
        fit(Own(small_vae()), FEW, engine="compiled", **SETTINGS)


@pytest.mark.slow
@needs_compiler
def test_a_transform_that_draws_from_python_is_refused_when_compiled():
    def flipped(images):
        return images.flip(-1) if random.random() < 0.5 else images

    program = Augmented(small_vae(), flipped)
    assert fit(program, FEW, engine="eager", **SETTINGS).rows
    with pytest.raises(Untraceable, match="the program draws from Python's module random"):
        fit(program, FEW, engine="compiled", **SETTINGS)


def test_what_cannot_be_augmented():
    with pytest.raises(ValueError, match=r"transform: wanted a function of images \(n, C, H, W\), got a list; write "):
        Augmented(small_vae(), [v2.RandomInvert()])
    with pytest.raises(ValueError, match="draws: wanted a whole number of at least 1, got 0"):
        Augmented(small_vae(), torch.flip, draws=0)
    for transform, got in (v2.Resize(7), r"torch\.uint8 and \(50, 1, 7, 7\)"), (lambda images: images / 2, "float32"):
        with pytest.raises(ValueError, match=f"transform: wanted images of torch.uint8 and shape .* got .*{got}"):
            fit(Augmented(small_vae(), transform), FEW, **SETTINGS)
    masked = Split(FEW.train.images, mask=FEW.train.images > 0)
    for batch in masked, Split(counts=torch.ones(3, 2)):
        with pytest.raises(ValueError, match="augmentation: wanted images without a mask, got"):
            Augmented(small_vae(), torch.flip).observe(batch)
