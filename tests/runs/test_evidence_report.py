"""The table and the figure of the bounds."""

import pytest

from pyro_vae.runs.evidence_report import picture, report


@pytest.fixture
def results():
    row = {"log_px": -9.0, "standard_error": 0.4, "monte_carlo_error": 0.1, "seconds": 1, "images": 8}
    share = {"share_pareto_k_above_0.7": 0.25}
    both = {"lower": -9.5, "upper": -8.5, "gap": 1.0, "gap_standard_error": 0.1, "seconds": 2, "images": 5}
    return {
        "importance": [{**row, **share, "num_particles": K, "log_px_of_annealed_images": -9.25} for K in (10, 100)],
        "annealed": [{**row, **share, "start": start, "num_temperatures": 30} for start in ("prior", "guide")],
        "bidirectional": [{**both, "start": "guide", "num_temperatures": 30}],
        "proposals": [],
        "certificates": [{**both, "gap": 0.5, "proposal": "local proposals", "num_particles": 100}],
    }


def test_the_table_has_a_row_for_each_bound(results):
    first, *rows = report(results).splitlines()
    assert " ".join(first.split()) == "bound nats per image ± images ± Monte Carlo images k̂ > 0.7 seconds"
    assert rows[0].split()[4:] == ["-9.000", "0.400", "0.100", "8", "25.0%", "1"]
    assert [row.partition("  ")[0] for row in rows[:4]] == [
        "importance, K = 10",
        "importance, K = 100",
        "annealed from prior, T = 30",
        "annealed from guide, T = 30",
    ]
    assert "-9.500 ≤ log p(x) ≤ -8.500 on 5 simulated images, gap 1.000 ± 0.100, T = 30, 2 seconds" in rows[-2]
    assert "gap 0.500 ± 0.100, local proposals, K = 100, 2 seconds" in rows[-1]


def test_the_table_says_what_helps_where_importance_sampling_cannot_be_trusted(results):
    text = report(results)
    assert "k̂ > 0.7 for 25.0% of the images" in text and "annealed bounds" in text and "--guide full-rank" in text
    results["importance"][-1]["share_pareto_k_above_0.7"] = 0.0
    assert "cannot be trusted" not in report(results)


def test_the_figure_has_the_numbers_of_the_table(results):
    left, middle, right = picture(results).axes
    assert list(next(line for line in left.lines if len(line.get_ydata()) == 2).get_ydata()) == [-9.0, -9.0]
    assert [text.get_text() for text in left.texts] == ["K = 10\n25%", "K = 100\n25%"]
    assert [text.get_text() for text in middle.texts] == ["T = 30"]
    assert middle.get_legend_handles_labels()[1][-1] == "importance sampling"
    line = next(line for line in right.lines if len(line.get_xdata()) == 1)
    assert line.get_xdata() == [0.4] and right.get_xlabel() == "seconds per image"  # 2 seconds, 5 images
    assert right.get_title() == "5 simulated images: gap 1.00 nats"
    assert right.get_legend_handles_labels()[1] == ["upper bound", "lower bound", "local proposals, K = 100"]


def test_what_was_not_measured_has_no_panel_and_no_row(results):
    results |= {"annealed": [], "bidirectional": [], "certificates": []}
    assert [axes.axison for axes in picture(results).axes] == [True, False, False]
    assert "annealed from" not in report(results) and "≤ log p(x) ≤" not in report(results)


def test_other_proposals_have_rows_and_lines_of_their_own(results):
    row = {**results["importance"][0], "log_px": -8.0}
    refitted = {**row, "proposal": "refitted guide", "refit_epochs": 4, "refit_seconds": 17.2}
    results["proposals"] = [refitted, {**row, "proposal": "local proposals", "log_px": -7.0}]
    text = report(results).splitlines()
    assert [line.split()[5] for line in text[3:5]] == ["-8.000", "-7.000"]
    assert text[3].startswith("refitted guide, K = 10") and text[4].startswith("local proposals, K = 10")
    assert "the guide was refitted by 4 epochs in 17 seconds" in text
    labels = picture(results).axes[0].get_legend_handles_labels()[1]
    assert labels == ["importance sampling", "refitted guide", "local proposals"]


def test_the_title_says_whether_fewer_images_were_annealed(results):
    assert [axes.get_title() for axes in picture(results).axes[:2]] == [
        "8 test images (%: share with k̂ > 0.7)",
        "the same 8 test images",
    ]
    for row in results["annealed"]:
        row["images"] = 3
    assert picture(results).axes[1].get_title() == "the first 3 test images"


def test_bars_are_two_monte_carlo_errors_long(results):
    results["importance"][1] |= {"monte_carlo_error": None, "share_pareto_k_above_0.7": None}
    left = picture(results).axes[0]
    (bars,) = left.containers[0][2]
    assert [[y for _, y in segment] for segment in bars.get_segments()] == [pytest.approx([-9.2, -8.8]), [-9.0, -9.0]]
    assert [text.get_text() for text in left.texts] == ["K = 10\n25%", "K = 100"]


def test_a_row_in_bfloat16_is_named_in_the_table_and_left_out_of_the_figure(results):
    row = {**results["importance"][0], "log_px": -3.0, "bias": 0.01, "bias_standard_error": 0.002}
    results["importance"].append(row)
    assert report(results).count("importance, K = 10, bfloat16") == 1
    assert "bfloat16 moves it by +0.0100 ± 0.0020 nats per image, on 8 of them" in report(results)
    assert len(picture(results).axes[0].texts) == 2
