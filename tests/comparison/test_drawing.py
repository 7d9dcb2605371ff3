"""Single draws: gradients of every kind of ELBO, and what they leave as it was."""

import itertools

import pyro
import pytest
import torch
from comparing import compare, oracle, pictures
from programs import small_vae
from pyro.infer import RenyiELBO, Trace_ELBO

from pyro_vae.comparison.drawing import Drawer
from pyro_vae.comparison.replicates import whole
from pyro_vae.estimators import ImportanceWeighted
from pyro_vae.tracing.leaves import find_parameters


@pytest.mark.slow
def test_gradients_that_pyro_writes_into_modules_are_read_and_put_back():
    vae, x = small_vae(), pictures()
    parameter = vae.posterior.head.bias
    parameter.grad = torch.full_like(parameter, 5.0)
    x.requires_grad_()
    kept = parameter.grad
    estimators = {"Renyi": RenyiELBO(num_particles=3), "L_3": ImportanceWeighted(3)}
    result = compare(lambda x: vae.model(x.detach()), vae.guide, x, estimators=estimators)
    assert result.estimators["Renyi"].guide.variance.value > 0
    assert not result.disagreements()
    assert parameter.grad is kept
    assert torch.equal(kept, torch.full_like(parameter, 5.0))
    assert all(p.grad is None for p in vae.parameters() if p is not parameter)
    assert x.grad is None


def test_a_program_without_trainable_parameters():
    program, x = oracle()
    program.requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameter"):
        compare(program.model, program.guide, x, estimators={"L^A": Trace_ELBO()})


def drawer_of(program, x, *others, engine="eager"):
    parameters, *_ = find_parameters(program.model, program.guide, (x,))
    return Drawer((program.model, program.guide), [(x,), *others], {}, parameters, engine), parameters


@pytest.mark.parametrize("estimator", [Trace_ELBO(), RenyiELBO(num_particles=3)])
def test_a_draw_is_the_loss_and_the_gradient_of_one_call(estimator):
    """In float64 where the program is, the guide's parameters first."""
    program, x = oracle(offset=0.3)
    drawer, parameters = drawer_of(program, x)
    torch.manual_seed(1)
    loss, seconds = drawer.draw("one", estimator, (x,), number=1, draws=1)
    leaves = [*parameters.guide.values(), *parameters.model.values()]
    torch.manual_seed(1)
    announced = lambda x: [pyro.module("program", program), program.model(x)]  # noqa: E731
    expected = estimator.loss_and_grads(announced, program.guide, x)
    gradient = torch.cat([leaf.grad.flatten() for leaf in leaves])
    assert drawer.flat.dtype == torch.float64 and loss == pytest.approx(float(expected), rel=1e-12) and seconds > 0
    torch.testing.assert_close(drawer.flat, gradient, rtol=1e-11, atol=1e-11)
    sizes = {group: sum(leaf.numel() for leaf in getattr(parameters, group).values()) for group in ("guide", "model")}
    assert {group: part.numel() for group, part in drawer.parts.items()} == sizes
    drawer.flat.fill_(torch.nan)
    drawer.draw("again", estimator, (x,), number=2, draws=2)
    assert drawer.flat.isfinite().all()  # all of it is written anew


def test_the_gradient_of_a_float32_program_is_in_float32():
    drawer, _ = drawer_of(small_vae(), pictures())
    assert drawer.flat.dtype == torch.float32


def test_an_error_names_the_estimator_and_the_draw():
    program, x = oracle()
    drawer, _ = drawer_of(program, x)

    class Fails(Trace_ELBO):
        def differentiable_loss(self, *args):
            raise ValueError("no luck")

    with pytest.raises(ValueError, match="unlucky, draw 3 of 9: no luck"):
        drawer.draw("unlucky", Fails(), (x,), number=3, draws=9)


def test_later_draws_run_without_the_validation_of_pyro():
    program, x = oracle()
    drawer, _ = drawer_of(program, x)
    seen = []

    class Asks(Trace_ELBO):
        def differentiable_loss(self, *args):
            seen.append(pyro.settings.get("validate_poutine"))
            return super().differentiable_loss(*args)

    for validated in (True, False):
        with pyro.validation_enabled(validated):
            for number in (1, 2):
                drawer.draw("asks", Asks(), (x,), number=number, draws=2)
    assert seen == [True, False, False, False]


def test_a_program_of_one_parameter_has_its_gradient():
    program, x = oracle(offset=0.3)
    program.requires_grad_(False)
    program.bias.requires_grad_(True)
    drawer, _ = drawer_of(program, x)
    torch.manual_seed(1)
    drawer.draw("one", Trace_ELBO(), (x,), number=1, draws=1)
    torch.manual_seed(1)
    z = program.guide(x)
    slope = torch.autograd.grad(-program.likelihood(z).log_prob(x).sum(), program.bias)[0]
    torch.testing.assert_close(drawer.flat, slope)
    assert list(drawer.parts) == ["model"]


@pytest.mark.parametrize("estimator", [Trace_ELBO(), RenyiELBO(num_particles=3)])
def test_arguments_that_are_computed_need_no_gradient_of_their_own(estimator):
    program, x = oracle()
    doubled = 2 * x.clone().requires_grad_()
    drawer, _ = drawer_of(program, doubled)
    drawer.draw("one", estimator, (doubled,), number=1, draws=1)
    assert drawer.flat.isfinite().all()


def test_parameters_on_which_a_loss_does_not_depend_have_a_gradient_of_zero():
    program, x = oracle()
    drawer, _ = drawer_of(program, x)

    class OfTheBias(Trace_ELBO):
        def differentiable_loss(self, *args):
            return 3 * program.bias.sum()

    drawer.flat.fill_(torch.nan)
    assert drawer.draw("bias", OfTheBias(), (x,), number=1, draws=1)[0] == pytest.approx(3 * program.bias.sum().item())
    assert not drawer.parts["guide"].any() and drawer.flat.sum() == 3 * program.bias.numel()


@pytest.mark.parametrize(
    ("engine", "batches", "draws", "sizes"),
    [
        ("eager", 20, 10, [1] * 10),
        ("vectorized", 1, 67, [1, 64, 2]),
        ("auto", 20, 10, [1, 9]),  # 200 in all
        ("auto", 20, 9, [1] * 9),
    ],
)
def test_blocks_are_so_many_draws_and_those_of_the_program(engine, batches, draws, sizes):
    """The first draw by itself, and all by the same random numbers as if the estimator were called again and again."""
    program, x = oracle(offset=0.3)
    drawer, _ = drawer_of(program, x, *[(x,)] * (batches - 1), engine=engine)
    torch.manual_seed(1)
    losses, gradients = [], []
    for block in drawer.blocks("it", Trace_ELBO(), (x,), draws):
        pieces = [whole(piece).flatten(1) for part in block.gradients.values() for piece in part]
        losses.append(block.losses)
        gradients.append(torch.cat(pieces, 1))
    assert [len(of_block) for of_block in losses] == [len(rows) for rows in gradients] == sizes
    torch.manual_seed(1)
    both = zip(itertools.chain(*losses), torch.cat(gradients), strict=True)
    for number, (loss, gradient) in enumerate(both, 1):
        expected, _ = drawer.draw("again", Trace_ELBO(), (x,), number, draws)
        assert loss == pytest.approx(expected, rel=1e-9)
        torch.testing.assert_close(gradient, drawer.flat, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("last", [1, 3])
def test_eager_blocks_count_their_draws_from_one(last):
    program, x = oracle()
    calls = iter(range(1, last))

    class Fails(Trace_ELBO):
        def differentiable_loss(self, *args):
            if next(calls, None) is None:
                raise ValueError("no luck")
            return super().differentiable_loss(*args)

    with pytest.raises(ValueError, match=f"unlucky, draw {last} of 5: no luck"):
        [*drawer_of(program, x)[0].blocks("unlucky", Fails(), (x,), 5)]
