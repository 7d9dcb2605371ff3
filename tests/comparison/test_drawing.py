"""Single draws: gradients of every kind of ELBO, and what they leave as it was."""

import pytest
import torch
from comparing import compare, oracle, pictures
from programs import small_vae
from pyro.infer import RenyiELBO, Trace_ELBO

from pyro_vae.estimators import (
    ImportanceWeighted,
)


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
