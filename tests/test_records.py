"""Parts and their options: one record is enough, two must not contradict each other, values are checked."""

import argparse
import math
from dataclasses import replace

import pytest
import torch
from saved_programs import change, saved_in_format_3

from pyro_vae import config, load_vae
from pyro_vae.config import LIKELIHOODS, SETTINGS
from pyro_vae.files import CheckpointError
from pyro_vae.records import Option, Part, Words, markdown, options_of, table, taken_by
from pyro_vae.runs.options import add_options, parsed
from pyro_vae.saved import METRICS


def test_one_record_is_enough(monkeypatch, tmp_path):
    """A new part is an option's word, in the help, built, saved and loaded; its option is refused beside others."""
    power = Option("power", float, 1.5, "exponent of the decoder's width")
    part = Part("own", lambda decoder, power: LIKELIHOODS["beta"].build(decoder), "a test's own family", (power,))
    own = replace(config.LIKELIHOOD, choices=table(*LIKELIHOODS.values(), part))
    parser = argparse.ArgumentParser()
    add_options(parser, [own, *options_of(own).values()], taken_by(own))
    assert parser.parse_args(["--lik", "own", "--power", "2"]).power == 2.0
    text = " ".join(parser.format_help().split())
    assert "own, a test's own family" in text and "own: exponent of the decoder's width (default: 1.5)" in text
    with pytest.raises(ValueError, match="--power: ignored beside --lik beta; write --lik own, or leave --power out"):
        parsed(parser, ["--lik", "beta", "--power", "2"], taken_by(own))
    monkeypatch.setitem(LIKELIHOODS, "own", part)
    monkeypatch.setitem(SETTINGS, "power", power)
    vae = saved_in_format_3(tmp_path, lik="own", power=2.0)
    assert "power" in (tmp_path / METRICS).read_text() and type(vae.likelihood).__name__ == "Beta"
    assert all(map(torch.equal, load_vae(tmp_path).parameters(), vae.parameters()))
    for value in (math.inf, "2", True):
        change(tmp_path, "model", "parts", "power", value=value)
        with pytest.raises(CheckpointError, match="power: wanted a finite number"):
            load_vae(tmp_path)


def test_what_a_word_stands_for_is_looked_up_late():
    asked = []
    words = Words(one=lambda: asked.append("one") or 1, none=lambda: None)
    option = Option("number", str, "one", "", words)
    option.check("one")
    assert list(words) == ["one", "none"] and len(words) == 2 and "one" in words and "two" not in words
    assert option.parts() == [] and options_of(option) == {} and option == replace(option) and asked == []
    with pytest.raises(ValueError, match="number: wanted one of one, none, got 'two'"):
        option.check("two")
    assert option.meaning("one") == 1 and option.meaning("none") is None and asked == ["one"]
    with pytest.raises(KeyError, match="two"):
        words["two"]


def test_records_that_contradict_each_other():
    one, other = Option("size", int, 1, ""), Option("size", int, 2, "")
    with pytest.raises(ValueError, match="table: wanted a word of its own for each part, got a, a"):
        table(Part("a", int, ""), Part("a", float, ""))
    slot = Option("slot", str, "a", "", table(Part("a", int, "", (one,)), Part("b", int, "", (other,))))
    with pytest.raises(ValueError, match="size: wanted one option of this name, got two that differ"):
        options_of(slot)


SIZE, RATE = Option("size", int, 4, "the width", largest=9), Option("rate", float, 0.5, "how fast")
SLOT = Option("slot", str, "a", "", table(Part("a", int, "", (SIZE,)), Part("b", int, "", (SIZE, RATE))))


@pytest.mark.parametrize(
    ("option", "taken", "refused"),
    [
        (SIZE, [1, 9], [0, 10, 2.0, True, "4", None]),
        (RATE, [-1.5, 3], [math.nan, True, "1", None]),
        (Option("word", str, None, ""), ["big", None], [3]),
        (Option("sizes", int, (4,), "", nargs="+", largest=9), [(), (1, 9)], [[4], 4, None, (0,), 200 * (1,)]),
        (SLOT, ["a", "b"], ["c", ["a"], None]),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_values_that_saved_settings_may_have(option, taken, refused):
    for value in taken:
        option.check(value)
    for value in refused:
        with pytest.raises(ValueError, match=f"{option.name}: wanted .*, got"):
            option.check(value)


def test_what_takes_an_option_and_the_page_follow_from_the_records():
    assert options_of(SLOT) == {"size": SIZE, "rate": RATE}
    assert taken_by(SLOT) == {"rate": {"slot": ("b",)}}  # all parts take the size
    lines = list(markdown(SLOT, "slot"))
    assert "| `a` (default) |  | `--size` |" in lines and "| `b` |  | `--size` `--rate` |" in lines
    assert "| `--rate` | `0.5` | how fast |" in lines
    assert RATE.described(["b"]) == "b: how fast" and SLOT.flag == "--slot"
