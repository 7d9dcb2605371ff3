"""What is printed can be printed: whatever the encoding of the terminal, with what it lacks spelled out."""

import io
import sys

import pytest
import torch
from pyro.infer import Trace_ELBO

from pyro_vae.comparison.compare import compare_estimators
from pyro_vae.evidence import AnnealedEvidence, AnnealedSandwich, from_log_weights
from pyro_vae.linear_gaussian import LinearGaussian
from pyro_vae.printing import SPELLED, printable, spell_out


@pytest.fixture
def terminal(monkeypatch):
    """Makes standard output a terminal of this encoding; what it is sent can be read back."""

    def make(encoding):
        raw = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
        return lambda: (sys.stdout.flush(), raw.getvalue().decode(encoding))[1]

    return make


def results():
    evidence = from_log_weights(torch.randn(100, 3, generator=torch.Generator().manual_seed(0)))
    fields = {name: getattr(evidence, name) for name in ("log_px", "standard_error", "ess", "pareto_k")}
    ones = torch.ones(3)
    program = LinearGaussian(torch.ones(4, 1))
    x = program.simulate(5)
    return [
        evidence,
        AnnealedEvidence(**fields, num_particles=8, acceptance=ones, step_size=ones, num_temperatures=10),
        AnnealedSandwich(-ones, ones, x, 4, acceptance=ones, num_temperatures=10),
        compare_estimators(program.model, program.guide, x, estimators={"L^A": Trace_ELBO()}, draws=5, progress=False),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "cp437", "shift_jis", "utf-8"])
def test_every_result_can_be_printed(terminal, encoding):
    for result in results():
        terminal("utf-8")
        doubtful = str(result).count("?")  # the mark of an interval that rests on few draws
        read = terminal(encoding)
        print(result)
        assert read().count("?") == doubtful  # everything that they say has a spelling


@pytest.mark.slow
def test_where_everything_can_be_shown_nothing_is_spelled(terminal):
    terminal("utf-8")
    assert "log p(x) ≥ " in str(results()[0]) and "k̂" in str(results()[0])
    terminal("ascii")
    assert "log p(x) >= " in str(results()[0]) and "k-hat" in str(results()[0])


def test_streams_without_an_encoding_get_the_text_as_it_is(monkeypatch):
    for stream in (None, io.StringIO()):
        monkeypatch.setattr(sys, "stdout", stream)
        assert printable("k̂ ≥ −1") == "k̂ ≥ −1"


def test_spellings_are_ascii_and_what_has_none_is_a_question_mark(terminal):
    assert "".join(SPELLED.values()).isascii()
    assert printable("日本 \udcff ≥", "ascii") == "?? ? >="
    read = terminal("ascii")
    spell_out()
    print("日本 − \udcff")
    assert read() == "?? - ?\n"
    with pytest.raises(UnicodeDecodeError):
        b"\xff".decode("ascii", "pyro_vae.spelled")
