"""The reproduction of Kingma & Welling (2013): its algorithms against other ways to the same, and small panels."""

import json
import math
from dataclasses import replace

import pytest
import torch
from programs import DIGITS, linear_gaussian
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch.distributions import Bernoulli, Normal

from experiments import reproduce_aevb
from experiments.aevb import algorithms, marginal, published, report
from experiments.aevb import runs as panels
from pyro_vae import fit, likelihoods
from pyro_vae.data import Split
from pyro_vae.training import epochs, fixed_x

BOUNDS = {Trace_ELBO: algorithms.bound_a, TraceMeanField_ELBO: algorithms.bound_b}


@pytest.fixture
def first_order(monkeypatch):
    """The state of torch's generator where ``fit`` first shuffles the images."""
    states, original = [], epochs.shuffled

    def shuffled(*args):
        states.append(torch.get_rng_state())
        return original(*args)

    monkeypatch.setattr(epochs, "shuffled", shuffled)
    return states


def small(gaussian=False, latent=2, hidden=7):
    return algorithms.program(DIGITS.shape, latent, hidden, gaussian, likelihoods.dynamic, seed=1)


def values(vae):
    return [parameter.detach().clone() for parameter in vae.parameters()]


def assert_trajectories_agree(state, vae, bound, update, by_fit):
    """Each update by the paper's algorithm moves all parameters as the library's does."""
    assert len(by_fit) == 6
    with torch.random.fork_rng():
        torch.set_rng_state(state)
        steps = algorithms.aevb(vae, DIGITS.train.images[:250], bound, update, epochs=2)
        for seen, expected, expected_seen in zip(steps, by_fit, (100, 200, 250, 350, 450, 500)):
            assert seen == expected_seen
            for parameter, other in zip(vae.parameters(), expected):
                torch.testing.assert_close(parameter, other, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("gaussian", [False, True], ids=["bernoulli", "gaussian"])
@pytest.mark.parametrize("elbo", BOUNDS)
def test_the_paper_s_algorithm_moves_parameters_as_the_library_does(float64, first_order, monkeypatch, elbo, gaussian):
    monkeypatch.setattr(algorithms, "EPOCH", 1)
    vae, seen, by_fit = small(gaussian), [], []

    def after(n):
        seen.append(n)
        by_fit.append(values(vae))

    images = replace(DIGITS, train=DIGITS.train[:250])
    algorithms.trained(vae, images, elbo(), step=0.02, samples=500, after=after, engine="eager")
    assert seen == [100, 200, 250, 350, 450, 500]
    update = algorithms.adagrad(0.02, epsilon=1e-10 * 250 / 100)  # the paper's gradient is N / M times that of a sum
    assert_trajectories_agree(first_order[0], small(gaussian), BOUNDS[elbo], update, by_fit)


@pytest.mark.slow
def test_the_paper_s_algorithm_by_sgd_moves_parameters_as_the_library_does(float64, first_order):
    vae, by_fit, step, N = small(), [], 1e-5, 250

    def sgd(parameters):
        made = torch.optim.SGD(parameters, lr=step * N / 100, weight_decay=100 / N)
        made.register_step_post_hook(lambda *_: by_fit.append(values(vae)))
        return made

    images = replace(DIGITS, train=DIGITS.train[:N])
    fit(vae, images, epochs=2, batch_size=100, optimizer=sgd, engine="eager", progress=False)
    assert_trajectories_agree(first_order[0], small(), algorithms.bound_a, algorithms.sgd(step), by_fit)


def test_a_small_training_set_is_repeated_until_the_samples_are_seen(monkeypatch):
    monkeypatch.setattr(algorithms, "EPOCH", 450)
    seen, pixels, vae = [], [], small()
    observe = vae.observe
    vae.observe = lambda batch, generator=None: pixels.append(batch.images) or observe(batch, generator)
    images = replace(DIGITS, train=DIGITS.train[:200])
    algorithms.trained(vae, images, Trace_ELBO(), step=0.01, samples=900, after=seen.append, engine="eager")
    assert seen == [100, 200, 300, 400, 450, 550, 650, 750, 850, 900]
    counts = torch.cat(pixels[-10:-5]).flatten(1).unique(dim=0, return_counts=True)[1]
    assert len(counts) == 200 and sorted(counts.unique().tolist()) == [2, 3]


def test_the_program_is_the_paper_s():
    vae = algorithms.program((1, 28, 20), 2, 200, True, likelihoods.dynamic, seed=0)
    every = torch.cat([parameter.flatten() for parameter in vae.parameters()])
    assert len(every) == 560 * 200 + 200 + 200 * 4 + 4 + 2 * 200 + 200 + 200 * 1120 + 1120
    assert every.std().item() == pytest.approx(0.01, rel=0.01) and abs(every.mean().item()) < 1e-4
    x, z = torch.rand(3, 1, 28, 20), torch.randn(3, 2)
    hidden = torch.tanh(x.flatten(1) @ vae.posterior.network.layers[1].weight.T + vae.posterior.network.layers[1].bias)
    torch.testing.assert_close(vae.posterior.network(x), hidden)
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.mul_(1000)
        mean = vae.likelihood(z).mean
    assert mean.min() >= 0 and mean.max() <= 1 and mean.std() > 0.1


# Monte Carlo EM


@pytest.fixture
def program():
    return linear_gaussian()


def standardised(program, x, z):
    """z (1, B, D) such that a draw of the exact posterior becomes one of N(0, I)."""
    posterior = program.exact_posterior(x)
    off = (z[0] - posterior.mean).unsqueeze(-1)
    return torch.linalg.solve_triangular(posterior.scale_tril, off, upper=False).squeeze(-1)


def assert_standard_normal(u):
    """Means and second moments within 4.5 standard errors."""
    error = 4.5 / math.sqrt(len(u))
    assert u.mean(0).abs().max() < error
    assert (u.T @ u / len(u) - torch.eye(2)).abs().max() < error * math.sqrt(2)


@torch.no_grad()
def test_hamiltonian_chains_leave_the_exact_posterior_alone(program):
    torch.manual_seed(1)
    x = program.simulate(4000)
    z = program.exact_posterior(x).sample()[None]
    start, accepted = z, []
    chains = algorithms.Chains(program)
    for _ in range(5):
        chains.step = 0.4  # so long that a good part is rejected: a chain without the test would go astray
        z = chains.move(x, z)
        accepted.append(chains.acceptance)
    assert min(accepted) > 0.3 and max(accepted) < 0.97
    assert (z != start).any(-1).double().mean() > 0.95
    assert_standard_normal(standardised(program, x, z))


@torch.no_grad()
def test_hamiltonian_chains_find_the_posterior_and_tune_their_step(program):
    torch.manual_seed(2)
    x = program.simulate(2000)
    z, chains = program.prior().sample((1, 2000)), algorithms.Chains(program)
    assert standardised(program, x, z).std() > 2
    accepted = []
    for _ in range(40):
        z = chains.move(x, z)
        accepted.append(chains.acceptance)
    assert sum(accepted[20:]) / 20 == pytest.approx(0.9, abs=0.01)
    assert_standard_normal(standardised(program, x, z))


def test_the_log_joint_by_hand():
    vae, x, z = small(latent=3), torch.rand(4, 1, 8, 8).round(), torch.randn(1, 4, 3)
    expected = Normal(0, 1).log_prob(z).sum() + Bernoulli(logits=vae.likelihood.network(z[0])).log_prob(x).sum()
    torch.testing.assert_close(algorithms.log_joint(vae, x, z), expected)


def test_monte_carlo_em_counts_fifteen_gradients_a_turn_and_trains_the_decoder_alone():
    vae, images = small(), DIGITS.train[:20]
    before = {name: parameter.detach().clone() for name, parameter in vae.named_parameters()}
    torch.manual_seed(0)
    seen = [n for n, _ in zip(algorithms.mcem(vae, images, step=0.02), range(10))]
    assert seen == [20 * n for n in (11, 12, 13, 14, 15, 26, 27, 28, 29, 30)]
    for name, parameter in vae.named_parameters():
        assert torch.equal(parameter, before[name]) == name.startswith("posterior")


def test_monte_carlo_em_finds_the_maximum_of_the_posterior_of_a_bias():
    """Without z a pixel is on with probability σ(b): Σ_n log p(x_n) − b²/2 has the gradient Σ_n (x_n − σ(b)) − b."""
    vae, pixels = small(), torch.zeros(30, 1, 8, 8, dtype=torch.uint8)
    pixels[:, :, :4] = 255
    for parameter in vae.likelihood.parameters():
        parameter.requires_grad_(parameter.shape == (64,))
        with torch.no_grad():
            parameter.zero_()
    for n, _ in enumerate(algorithms.mcem(vae, Split(pixels), step=0.5)):
        if n == 150:
            break
    bias = vae.likelihood.network.layers[-2].bias.detach()
    gradient = 30 * (pixels[0].flatten() / 255 - bias.sigmoid()) - bias
    assert gradient.abs().max() < 0.02 and bias.abs().min() > 1


# The marginal likelihood


def test_the_marginal_likelihood_by_numerical_integration():
    vae, x = small(), torch.rand(4, 1, 8, 8).round()
    with torch.no_grad():
        for parameter in vae.likelihood.parameters():
            parameter.mul_(40)
        grid = torch.linspace(-7, 7, 281)
        z = torch.cartesian_prod(grid, grid)
        joint = vae.likelihood(z).log_prob(x.unsqueeze(1)) + vae.prior().log_prob(z)
        expected = joint.logsumexp(1) + 2 * math.log(grid[1] - grid[0])
        spread = vae.likelihood(z).log_prob(x.unsqueeze(1)).std(1)
    evidence = marginal.marginal_likelihood(vae, x, 2**14)
    assert spread.min() > 1  # there is something to integrate
    torch.testing.assert_close(evidence.log_px.float(), expected, rtol=0, atol=0.02)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compiler")
def test_annealing_and_draws_of_the_prior_find_the_same_marginal_likelihood():
    run = panels.PanelRun("likelihood-1000", "aevb", 3000, 0, "meanfield", "dynamic", 100, 64, digits=True)
    images = panels.images_of(run, None)
    _, vae = panels.train(run, images, 0.1, 3000, [3000], lambda *_: {})
    x = fixed_x(vae, images.test.images[:50])
    by_prior, by_annealing = marginal.marginal_likelihood(vae, x, 2**14), panels.annealed(vae, x, seed=0)
    error = math.hypot(by_prior.monte_carlo_error, by_annealing["monte_carlo_error"])
    assert 0 < error < 0.1
    assert by_annealing["log_px"] == pytest.approx(by_prior.mean, abs=4 * error)


# The panels, small, on the digits

WORDS = ["--digits", "--samples", "1500", "--jobs", "1", "--quiet"]
SHOWN = ["mnist-3", "mnist-2", "frey-2", "likelihood-1000"]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("figures") / "aevb"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reproduce_aevb, "CHOICE", 750)
        patch.setattr(panels, "EVIDENCE_IMAGES", 20)
        patch.setattr(reproduce_aevb, "DRAWS", 2**12)
        patch.setattr(panels, "ANNEALED_IMAGES", 5)
        patch.setattr(panels, "ANNEALING", {"num_temperatures": 20, "chains": 4, "leapfrog": 2})
        assert reproduce_aevb.main([*WORDS, "--panels", *SHOWN, "--out", str(folder)]) == 0
    return folder


def results(out):
    return {path.stem: json.loads(path.read_text()) for path in out.glob("*.json")}


@pytest.mark.slow
def test_every_run_is_measured_on_both_splits_and_improves(out):
    runs = results(out)
    assert set(runs) == {
        "mnist-3-aevb", "mnist-3-wake-sleep", "mnist-2-aevb", "frey-2-aevb", "frey-2-wake-sleep",
        "likelihood-1000-aevb", "likelihood-1000-wake-sleep", "likelihood-1000-mcem",
    }  # fmt: skip
    for name, run in runs.items():
        seen, last = [point["samples"] for point in run["points"]], run["points"][-1]
        assert seen == sorted(set(seen)) and seen[-1] >= 1500
        assert len(seen) > 1 or "mcem" in name  # which sees 15,000 at a time
        start = 64 * math.log(0.5) if "frey" not in name else -64 * (0.5 * math.log(2 * math.pi))
        assert last["test"] > start and last["test_details"]["images"] == (20 if "likelihood" in name else 250)
        tried = {entry["step"]: entry["train"] for entry in run["choice_of_step"]}
        assert set(tried) == {0.01, 0.02, 0.1} and run["step"] == max(tried, key=tried.get)


@pytest.mark.slow
def test_tables_and_figures_are_written(out):
    names = {path.name for path in out.parent.iterdir()}
    assert names == {"aevb", "aevb.txt", "aevb.json", *(f"aevb_figure{n}.png" for n in (2, 3, 4, 5))}
    table = json.loads((out.parent / "aevb.json").read_text())
    assert len(table["figure_2"]) == 5 and {row["algorithm"] for row in table["figure_3"]} == set(published.NAMES)
    assert "mnist-3 aevb" in (out.parent / "aevb.txt").read_text()


@pytest.mark.slow
def test_what_lies_there_is_not_run_again_and_other_settings_are_refused(out, monkeypatch, capsys):
    monkeypatch.setattr(reproduce_aevb, "finish", lambda *_: pytest.fail("ran again"))
    monkeypatch.setattr(reproduce_aevb, "CHOICE", 750)
    monkeypatch.setattr(reproduce_aevb, "DRAWS", 2**12)
    assert reproduce_aevb.main([*WORDS, "--panels", *SHOWN, "--out", str(out)]) == 0
    assert reproduce_aevb.main([*WORDS, "--panels", "mnist-3", "--seed", "1", "--out", str(out)]) == 1
    assert "seed = 0" in capsys.readouterr().err


@pytest.mark.parametrize("name", panels.PANELS)
def test_every_panel_can_be_trained_and_measured(name, monkeypatch):
    monkeypatch.setattr(panels, "ANNEALED_IMAGES", 2)
    monkeypatch.setattr(panels, "ANNEALING", {"num_temperatures": 3, "chains": 2, "leapfrog": 2})
    for algorithm in panels.PANELS[name].algorithms:
        run = panels.PanelRun(name, algorithm, 200, 0, "trace", "dynamic", choice=100, draws=64, digits=True)
        images = panels.images_of(run, None)
        images = replace(images, train=images.train[:200], test=images.test[:25])
        points, _ = panels.train(run, images, 0.01, 200, [200], panels.measurement(run))
        assert len(points) == 1 and points[0]["samples"] >= 200
        assert points[0]["train_details"]["images"] == 200 and points[0]["test_details"]["images"] == 25


@pytest.mark.slow
def test_the_literal_algorithm_and_grey_levels_from_the_command_line(tmp_path):
    words = ["--panels", "mnist-3", "--algorithms", "aevb", "--engine", "literal", "--binarize", "intensity"]
    assert reproduce_aevb.main([*WORDS, *words, "--out", str(tmp_path / "aevb")]) == 0
    (run,) = results(tmp_path / "aevb").values()
    assert run["settings"]["binarize"] == "intensity" and run["points"][-1]["test"] > -44


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--samples", "50"], "--samples: wanted at least 100"), (["--jobs", "0"], "--jobs: wanted at least 1"),
     (["--report"], "holds no run to report")],
)  # fmt: skip
def test_what_cannot_be_is_an_error(tmp_path, capsys, words, message):
    assert reproduce_aevb.main([*WORDS, *words, "--out", str(tmp_path / "aevb")]) == 1
    assert message in capsys.readouterr().err


# The report


def test_published_numbers():
    bounds, evidence = published.published_bounds(), published.published_evidence()
    assert published.at(bounds["mnist", 20, "aevb", "test"], 7.0) == pytest.approx(-104.7)
    assert published.at(bounds["frey", 20, "aevb", "test"], 7.0) == pytest.approx(1200, abs=5)
    assert evidence[1000, "mcem", "test"][60e6] == -141.6
    assert {key[:2] for key in bounds} == {(p.dataset, p.latent) for p in panels.PANELS.values() if not p.evidence} - {
        ("mnist", 2)
    }


def as_published(shift=0.0):
    """The paper's own curves as if they were ours, AEVB moved by so many nats."""
    runs, bounds = [], published.published_bounds()
    for (dataset, latent, algorithm, split), curve in bounds.items():
        if split == "test":
            add = shift if algorithm == "aevb" else 0.0
            points = [{"samples": 10**x, "test": y + add, "train": y} for x, y in sorted(curve.items()) if x <= 7.01]
            runs.append(
                {
                    "settings": {"panel": f"{dataset}-{latent}", "algorithm": algorithm, "binarize": "dynamic"},
                    "panel": {"dataset": dataset, "latent": latent, "evidence": False},
                    "points": points,
                }
            )
    return runs


def test_the_paper_s_own_curves_bear_out_its_claims():
    rows = report.table_2(as_published())
    found = [row["test_difference"] for row in rows if row["log10_samples"] == 7]
    assert len(found) >= 14 and max(abs(difference) for difference in found) < 1e-3
    claims = report.claims(as_published(), [])
    assert len(claims) >= 9 + 5 + 1 and all(claim["holds"] for claim in claims)


def test_a_miss_is_called_one():
    above = [claim for claim in report.claims(as_published(3.0), []) if not claim["holds"]]
    assert len(above) == 5 and all("within 2 of the paper's" in claim["claim"] for claim in above)
    missed = [claim["claim"] for claim in report.claims(as_published(-10.0), []) if not claim["holds"]]
    assert sum("AEVB's test bound" in claim for claim in missed) == 5  # MNIST's; Frey Face's are within 40
    assert any("wake-sleep below AEVB" in claim for claim in missed)


def test_what_is_compared_was_measured_at_the_same_number_of_samples():
    runs = [run for run in as_published() if run["panel"]["dataset"] == "mnist"]
    for run in runs:
        if run["settings"]["algorithm"] == "wake-sleep":
            run["points"] = [point for point in run["points"] if point["samples"] < 10**6.3]
            run["points"][-1]["test"] = 0.0  # above AEVB, where it ends
    found = [claim for claim in report.claims(runs, []) if "wake-sleep" in claim["claim"]]
    assert len(found) == 5 and not any(claim["holds"] for claim in found)
    assert all("to 10^6.25" in claim["claim"] for claim in found)
    rows = report.table_2(runs)
    ends = {row["log10_samples"] for row in rows if row["algorithm"] == "aevb"}
    assert {6.0, 6.25, 6.5, 7.0} <= ends and max(r["log10_samples"] for r in rows if r["algorithm"] != "aevb") == 6.25


@pytest.mark.slow
def test_runs_that_are_lacking_are_named(out):
    assert report.gather(out, ["mnist-3-aevb", "mnist-200-aevb"]).endswith("not run: mnist-200-aevb")


def test_a_run_that_fails_does_not_end_the_others(tmp_path, monkeypatch, capsys):
    def finish(run, args):
        if run.panel == "mnist-3":
            raise FloatingPointError("the bound is not finite")

    monkeypatch.setattr(reproduce_aevb, "finish", finish)
    args = reproduce_aevb.parse_arguments([*WORDS, "--panels", "mnist-3", "mnist-2", "--out", str(tmp_path / "aevb")])
    assert reproduce_aevb.run_all(args) == 2
    assert "failed: mnist-3-aevb: the bound is not finite" in capsys.readouterr().err
