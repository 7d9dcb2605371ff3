"""Changes of a program within the loop: what cannot be trained is refused, and nothing is lost."""

import pytest
import torch
from programs import needs_compiler, small_vae
from small_trainings import started

pytestmark = pytest.mark.usefixtures("quick_compiler")

ENGINES = ["eager", pytest.param("compiled", marks=needs_compiler)]


@pytest.mark.slow
@pytest.mark.parametrize("engine", [*ENGINES, "svi"])
@pytest.mark.parametrize("by", ["epochs", "steps"])
def test_a_part_that_the_optimiser_does_not_hold_is_refused_until_it_does(by, engine):
    """Without the error, such a part would stay as it is, and nothing would show it."""
    program = small_vae()
    program.likelihood.requires_grad_(False)
    training = started(program, engine=engine, keep="last")
    before = [parameter.clone() for parameter in program.likelihood.parameters()]

    def loop():
        for _ in training if by == "epochs" else training.steps():
            program.likelihood.requires_grad_(True)

    with pytest.raises(ValueError, match=r"does not hold likelihood\..* \(4 of 8 parameters\), which would stay"):
        loop()
    assert all(map(torch.equal, before, program.likelihood.parameters()))
    training.optimizer.add_param_group({"params": list(program.likelihood.parameters())})  # the cure
    loop()
    assert len(training.history.rows) == 4
    assert not any(map(torch.equal, before, program.likelihood.parameters()))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda vae: setattr(vae, "posterior", small_vae(seed=1).posterior), r"does not hold posterior\..* \(4 of 8"),
        (lambda vae: vae.load_state_dict(small_vae(seed=1).state_dict(), assign=True), r"\(8 of 8 parameters\)"),
        (
            lambda vae: vae.double(),
            r"when the training was made, got .* in torch.float64 on cpu, then in torch.float32",
        ),
        (lambda vae: vae.requires_grad_(False), "all its parameters are frozen"),
    ],
    ids=["replaced", "assigned", "double", "frozen"],
)
def test_changes_of_the_program_that_cannot_be_trained_are_refused(change, message):
    program, changed = small_vae(), []
    training = started(program)
    with pytest.raises(ValueError, match=f"^program: .*{message}"):
        for _ in training:
            change(program)
            changed.append({name: value.clone() for name, value in program.state_dict().items()})
    assert len(training.history.rows) == 1
    assert all(torch.equal(value, changed[0][name]) for name, value in program.state_dict().items())


def test_after_the_last_step_the_program_is_the_users():
    program = small_vae()
    training = started(program, epochs=1)
    for _ in training:
        program.requires_grad_(False)
    assert len(training.history.rows) == 1
