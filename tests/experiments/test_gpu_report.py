"""The table and the figure of a GPU's speeds, from what a run has found."""

import json

import pytest

from experiments.on_gpu import report

WAYS = {
    "mlp, batch 128, svi": {"median": 1000.0, "seconds_to_third_step": 0.3},
    "conv, batch 128, svi": {"median": 500.0, "seconds_to_third_step": 0.3},
    "mlp, batch 128, compiled, TF32": {"median": 12345.6, "seconds_to_third_step": 8.25},
    "conv, batch 128, compiled, TF32": {"error": "no memory"},
}
FOUND = {"torch": "2.11", "steps": WAYS}
CONTENT = {"machine": "A card, 1 GiB", "commit": "0123456789", "steps": {"speed": {"found": FOUND}}}


@pytest.mark.slow
def test_the_table_holds_what_was_found(tmp_path):
    (tmp_path / "gpu.json").write_text(json.dumps(CONTENT))
    page = tmp_path / "page.md"
    page.write_text("above\n<!-- gpu -->\nold\n<!-- end -->\nbelow\n")
    words = [str(tmp_path / "gpu.json"), "--into", str(page), "--figure", str(tmp_path / "gpu.png")]
    assert report.main(words) == 0
    text = page.read_text()
    assert "| 128 | compiled, TF32 | 12,346 | 12.3 | 8.2 s |  |  |  |" in text and "old" not in text
    assert "A card, 1 GiB; torch 2.11; commit 0123456" in text
    assert (tmp_path / "gpu.png").read_bytes()[:4] == b"\x89PNG"


def test_a_page_without_a_place_is_left_as_it_was(tmp_path, capsys):
    (tmp_path / "gpu.json").write_text(json.dumps(CONTENT))
    (tmp_path / "page.md").write_text("nothing")
    words = [str(tmp_path / "gpu.json"), "--into", str(tmp_path / "page.md"), "--figure", str(tmp_path / "gpu.png")]
    assert report.main(words) == 1 and "<!-- gpu -->" in capsys.readouterr().err
    assert not (tmp_path / "gpu.png").exists()
