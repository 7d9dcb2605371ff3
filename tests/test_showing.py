"""Results as people see them: one line as ``repr``, a table as ``str``, and the same content as HTML."""

import re
import sys
import warnings
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from programs import FEW

import pyro_vae as pv
from pyro_vae.comparison import compare_estimators
from pyro_vae.evidence import AnnealedEvidence, Evidence, Sandwich, from_log_weights
from pyro_vae.linear_gaussian import LinearGaussian
from pyro_vae.showing import Shown, on_one_line
from pyro_vae.training.history import ROW

pytestmark = pytest.mark.slow

EMPTY = {"img", "br"}  # elements without an end


class Read(HTMLParser):
    """Reads HTML, whose elements must end in the order in which they began."""

    def __init__(self, html):
        super().__init__()
        self.open, self.words, self.tags = [], [], []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def results():
    x = torch.randn(6, 3)
    program = LinearGaussian(torch.randn(3, 2))
    log_w = torch.randn(50, 6)
    log_w[0] += 30  # one weight is larger than all others together: k̂ is large
    evidence = from_log_weights(log_w, seed=3)
    annealed = AnnealedEvidence(
        **{name: getattr(evidence, name) for name in ("log_px", "standard_error", "ess", "pareto_k")},
        num_particles=50, acceptance=torch.rand(6), step_size=torch.rand(6), num_temperatures=10,
    )  # fmt: skip
    fields = {f"a_field_with_a_long_name_{i}": np.ones((40, 1)) for i in range(9)}
    rows = [dict.fromkeys(ROW, -90.0 - epoch) | {"epoch": epoch} for epoch in range(1, 9)]
    comparison = compare_estimators(
        program, x, draws=10, progress=False,
        estimators={f"an estimator <{i}>": pv.estimators.ImportanceWeighted(2) for i in range(5)},
    )  # fmt: skip
    entry = next(iter(comparison.estimators.values()))
    return {
        "data": FEW,
        "a data set of many fields": pv.Data.from_arrays(**fields, classes=(), name="an & b"),
        "split": FEW.train,
        "a split of many fields": pv.Split(**fields),
        "history": pv.History(rows, engine="eager", skipped=2),
        "no history": pv.History(),
        "evaluation": pv.evaluate(program, x),
        "evaluation of one row": pv.evaluate(program, x[:1]),
        "evidence": evidence,
        "annealed evidence": annealed,
        "evidence of few particles": from_log_weights(torch.zeros(2, 1)),
        "sandwich": Sandwich(-x[:, 0] - 5, -x[:, 0], x, 4),
        "comparison": comparison,
        "step": pv.Step(1, 7, 101.5, rows[0]),
        "statistics": entry,
        "statistics of the bound": entry.bound,
        "statistics of the gradient": entry.guide,
        "agreement": comparison.agreements[0],
        "interval": entry.guide.variance,
        "imputation": pv.impute(pv.Masked(program), (x.where(x > 0, torch.nan), x > 0), particles=30),
    }


@pytest.fixture(scope="module")
def shown():
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pv.UntrustedImputation)  # thirty particles may or may not suffice
        return results()


def test_a_repr_is_one_line_without_tensors(shown):
    for name, result in shown.items():
        assert len(repr(result)) <= 120 and "\n" not in repr(result), name
        assert "tensor(" not in repr(result) + str(result) and repr(result).startswith(type(result).__name__), name


def test_html_holds_what_print_shows_and_is_well_formed(shown):
    rich = {name: result for name, result in shown.items() if hasattr(result, "_repr_html_")}
    assert len(rich) == 14
    for name, result in rich.items():
        read = Read(result._repr_html_())
        assert not {"script", "style", "link"} & set(read.tags), name
        assert set(re.findall(r"color: *(\w+)", result._repr_html_())) <= {"inherit"}, name
        if not name.startswith(("split", "a split")):  # whose str is its repr
            assert sorted(" ".join(read.words).split()) == sorted(str(result).split()), name


def test_numbers_are_never_split_and_a_wide_table_scrolls_by_itself(shown):
    html = shown["comparison"]._repr_html_()
    assert all("nowrap" in cell for cell in re.findall("<td [^>]*>", html))
    assert html.count('<div style="overflow-x: auto"><table') == html.count("<table") > 0


def test_names_are_escaped(shown):
    assert "an &amp; b" in shown["a data set of many fields"]._repr_html_()
    html = shown["comparison"]._repr_html_()
    assert "an estimator &lt;0&gt;" in html and "<0>" not in html


def test_pictures_of_data_are_thumbnails(shown):
    for name in ("data", "split"):
        assert shown[name]._repr_html_().count('src="data:image/png;base64,') == 1


def test_a_history_shows_the_last_epochs_the_kept_one_and_why(shown):
    history, lines = shown["history"], str(shown["history"]).splitlines()
    assert [line.split()[0] for line in lines[2:7]] == ["4", "5", "6", "7", "8"]
    assert f"kept: epoch 1, {history.reason}" in lines and history.kept_epoch == 1
    assert "2 steps left out" in str(history) and "no epoch has ended" in str(shown["no history"])


def test_evidence_says_what_helps_only_where_it_cannot_be_trusted(shown):
    unwrapped = {name: " ".join(str(result).split()) for name, result in shown.items()}
    assert unwrapped["evidence"].endswith(Evidence.ADVICE) and "k̂ > 0.7 for 100.0%" in repr(shown["evidence"])
    assert unwrapped["annealed evidence"].endswith(AnnealedEvidence.ADVICE)
    assert Evidence.ADVICE not in str(shown["evidence of few particles"])
    assert str(shown["evidence"]).count("k̂ > 0.7") == 1


def test_frames_hold_the_rows(shown):
    frame = shown["history"].to_frame()
    assert frame.index.name == "epoch" and frame.reset_index().to_dict("records") == shown["history"].rows
    assert list(shown["no history"].to_frame()) == [name for name in ROW if name != "epoch"]
    for name in ("evidence", "annealed evidence"):
        frame = shown[name].to_frame()
        assert frame.index.tolist() == list(range(6))
        assert all(np.array_equal(frame[column], getattr(shown[name], column)) for column in frame)
    assert np.allclose(shown["sandwich"].to_frame().gap, 5)
    frame = shown["evaluation"].to_frame()
    assert np.allclose(frame.bound, -(frame.rate + frame.distortion)) and len(frame) == 6
    frame = shown["comparison"].to_frame()
    entry = shown["comparison"].estimators["an estimator <3>"]
    assert frame.loc["an estimator <3>", "bound"] == entry.bound.mean
    assert frame.loc["an estimator <3>", "guide_variance_high"] == entry.guide.variance.high


def test_frames_need_pandas(shown, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    for name in ("history", "evidence", "sandwich", "evaluation", "comparison"):
        with pytest.raises(ImportError, match=re.escape("pip install 'pyro_vae[data]'")):
            shown[name].to_frame()


def test_columns_of_text_are_aligned_whatever_accents_they_hold():
    lines = str(Shown("", [("k̂", 1), ("kk", 22)], ["", "n"])).splitlines()
    assert [line.encode("utf-32-le").decode("utf-32-le").replace("\u0302", "") for line in lines[1:]] == [
        "     n", "k    1", "kk  22",
    ]  # fmt: skip
    assert on_one_line("Split(" + "x, " * 100 + ")").endswith("x…)")


def test_bounds_that_have_crossed_by_chance_are_not_shown_as_an_inequality():
    lower, upper = torch.tensor([-3.0, -5.0]), torch.tensor([-3.5, -5.0])
    crossed, right = Sandwich(lower, upper, lower, 4), Sandwich(upper, lower, lower, 4)
    assert "log p(x) of -4.000 to -4.250 nats" in str(crossed) and "chance has crossed them" in str(crossed)
    assert "-4.250 ≤ log p(x) ≤ -4.000 nats" in str(right) and "chance" not in str(right)
