"""The parameters of a program that an optimiser holds."""

import torch
from programs import small_vae

from pyro_vae.training.held import held_ids, held_parameters, trained_and_missing


def test_parameters_of_every_group_are_held_frozen_or_not_and_others_are_missing():
    program = small_vae()
    optimizer = torch.optim.SGD(program.likelihood.parameters(), lr=0.1)
    optimizer.add_param_group({"params": [program.posterior.head.weight]})
    program.likelihood.requires_grad_(False)
    held = held_parameters(program, optimizer)
    expected = {f"likelihood.{name}" for name, _ in program.likelihood.named_parameters()} | {"posterior.head.weight"}
    assert held.keys() == expected and {id(parameter) for parameter in held.values()} == held_ids(optimizer)
    trained, missing = trained_and_missing(program, optimizer)
    assert set(trained) == {f"posterior.{name}" for name, _ in program.posterior.named_parameters()}
    assert set(missing) == set(trained) - {"posterior.head.weight"}
