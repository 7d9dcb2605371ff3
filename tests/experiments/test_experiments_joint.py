"""The control variate's experiment from end to end: kept seeds, tables in a page, and the variance that falls."""

import json

import pytest

from experiments import joint


@pytest.mark.slow
def test_a_seed_is_measured_once_and_written_into_a_page(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- joint -->\n<!-- end -->\nb\n")
    words = ["--quick", "--quiet", "--rows", "250", "--draws", "20", "--seconds", "0.2", "--epochs", "1"]
    words += ["--out", str(tmp_path / "joint"), "--into", str(page)]
    assert joint.main(words) == 0
    (cell,) = json.loads((tmp_path / "joint.json").read_text())["cells"]
    for found in cell["moments"].values():
        assert 20 * found[joint.NEW]["variance"] < found["L^A"]["variance"]
    assert cell["moments"]["1 epochs"][joint.OLD]["variance"] < cell["moments"]["1 epochs"]["L^A"]["variance"]
    assert all(found["steps"] > 0 and -2 < found["elbo"] < 0 for found in cell["trained"].values())
    assert "| start, L^A |" in page.read_text() and page.read_text().startswith("a\n<!-- joint -->\n| moment")
    done = (tmp_path / "joint" / "logistic-seed0.json").stat().st_mtime_ns
    assert joint.main(words) == 0
    assert (tmp_path / "joint" / "logistic-seed0.json").stat().st_mtime_ns == done
    assert "| trained by | steps |" in capsys.readouterr().out
