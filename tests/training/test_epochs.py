"""Steps and bounds that are not finite: left out, counted, or an error that names the place."""

import pytest
import torch
from monte_carlo import assert_estimate_is
from programs import FEW, Breaks, quick, small_vae, with_rate
from small_trainings import started, train

from pyro_vae import fit
from pyro_vae.training import NonFiniteLoss, evaluation

pytestmark = pytest.mark.slow


@pytest.mark.filterwarnings("ignore:Encountered NaN:UserWarning")
def test_non_finite_steps_are_left_out_counted_and_named():
    def spoil(count, x):
        return x * torch.nan if count in (4, 9) else x

    program = Breaks(small_vae(), spoil)
    assert train(program, skip_non_finite=2).skipped == 2
    assert all(parameter.isfinite().all() for parameter in program.parameters())
    with pytest.raises(NonFiniteLoss, match=r"epoch 2, step 3, under Trace_ELBO \(2 such steps, 1 may be left out\)"):
        train(Breaks(small_vae(), spoil), skip_non_finite=1)


@pytest.mark.filterwarnings("ignore:Encountered NaN:UserWarning")
def test_a_non_finite_loss_names_the_step_and_restores_the_last_good_parameters():
    good = small_vae()
    quick(good, epochs=1)
    # batch 1 checks the program; four steps an epoch: batch 8 is step 3 of epoch 2
    program = Breaks(small_vae(), lambda count, x: x * torch.nan if count == 8 else x)
    with pytest.raises(NonFiniteLoss, match=r"became nan in epoch 2, step 3, under Trace_ELBO.*smaller lr"):
        quick(program)
    for mine, theirs in zip(program.vae.parameters(), good.parameters()):
        assert torch.equal(mine, theirs)


def test_a_bound_that_is_not_finite_names_the_epoch_and_the_cures(monkeypatch):
    def broken(*args, **kwargs):
        raise FloatingPointError("the bound of 3 of 50 images is not finite")

    monkeypatch.setattr(evaluation, "_evaluated", broken)
    with pytest.raises(NonFiniteLoss, match=r"after epoch 1 under Trace_ELBO: the bound of 3 .* Try a smaller lr"):
        fit(small_vae(), FEW, epochs=2, batch_size=50, progress=False)


def test_the_loss_of_a_step_is_that_of_its_batch_in_nats_per_image():
    batches = []
    program = Breaks(with_rate(small_vae()), lambda count, x: batches.append(x) or x)
    (step, *_) = started(program, epochs=1).steps()
    vae, x = with_rate(small_vae()), batches[1]  # the first is that of the check
    with torch.no_grad():
        q = vae.posterior(x)
        z = q.sample((200,))
        losses = (q.log_prob(z) - vae.prior().log_prob(z) - vae.likelihood(z).log_prob(x)).mean(-1)
        rate = torch.distributions.kl_divergence(q, vae.prior().expand([len(x)])).mean()
    assert_estimate_is(step.loss, losses.mean(), losses.std(), sees=rate)
