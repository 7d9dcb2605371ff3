"""What a training shows, on a terminal and elsewhere."""

import sys

from programs import small_vae
from small_trainings import started


def test_without_a_terminal_progress_is_a_line_an_epoch(capsys):
    training = started(small_vae(), epochs=2, progress=True)
    shown = []
    for row in training:
        shown.append(capsys.readouterr())
        assert shown[-1].out == (
            f"epoch {row['epoch']} of 2: bound {row['train_bound']:.2f} nats per image on training images, "
            f"{row['valid_bound']:.2f} on validation images; {row['seconds']:.0f} s\n"
        )
    assert len(shown) == 2 and all(each.err == "" for each in shown)


def test_on_a_terminal_progress_is_a_bar(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert len(list(started(small_vae(), epochs=2, progress=True))) == 2
    said = capsys.readouterr()
    assert said.out == "" and "400/400" in said.err
