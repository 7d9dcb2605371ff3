"""What a training shows while it runs: a bar on a terminal or in a notebook, elsewhere a line for each epoch."""

import sys
import time
from collections.abc import Mapping

from tqdm import tqdm

from pyro_vae.printing import duration
from pyro_vae.training.history import History

# Early stopping, or a loop that is left, may end the training sooner: "at most".
BAR = "{percentage:3.0f}%|{bar}| {elapsed}, at most {remaining} left{postfix}"


class Progress:
    """A progress bar of all images where standard error is a terminal, else a line on standard output for each epoch.

    The time left in a line is that of the epochs left, at the average speed of the steps so far, those before the run
    was resumed included, and at the speed of the last epoch's measurement. In the bar it is at the average speed since
    the bar is there.

    >>> progress = Progress(shown=True, images=100, epochs=2)  # a doctest has no terminal
    >>> row = {"epoch": 1, "train_bound": -21.5, "valid_bound": -22.0, "valid_objective": -22.0, "seconds": 3.2}
    >>> progress.end_epoch(History([row]))
    epoch 1 of 2: bound -21.50 nats per image on training images, -22.00 on validation images; best so far: epoch 1;
    3 s, at most 3 s left
    """

    def __init__(self, shown: bool, images: int, epochs: int):
        self.images, self.epochs = images, epochs
        is_terminal = getattr(sys.stderr, "isatty", bool)() or "ipykernel" in sys.modules
        self._with_bar, self._with_lines = shown and is_terminal, shown and not is_terminal
        self._bar: tqdm | None = None
        self._measured = ""  # what the last epoch came to
        self._stepped: float | None = None  # the time of the last step

    def begin(self, history: History, images: int) -> None:
        """Show the bar, if it is not there, after the epochs and the images of the present one that are behind."""
        if self._with_bar and self._bar is None:
            behind = len(history.rows) * self.images + min(images, self.images)
            self._bar = tqdm(total=self.epochs * self.images, initial=behind, smoothing=0, bar_format=BAR)
            self._note(history)

    def step(self, images: int) -> None:
        """Count the images of a step."""
        self._stepped = time.perf_counter()
        if self._bar is not None:
            self._bar.update(images)

    def bound(self, epoch: int, bound: float) -> None:
        """Show the bound of the last step, in nats per image."""
        if self._bar is not None:
            self._bar.set_postfix_str(f"epoch {epoch} of {self.epochs}{self._measured}, now {bound:.1f}", refresh=False)

    def end_epoch(self, history: History) -> None:
        """Show the bound on the validation images and the best epoch: in the bar, or as the line of the epoch."""
        self._note(history)
        row = history.rows[-1]
        if self._with_lines:
            left = self._seconds_left(row)
            print(
                f"epoch {row['epoch']} of {self.epochs}: bound {row['train_bound']:.2f} nats per image on training "
                f"images, {row['valid_bound']:.2f} on validation images; best so far: epoch {history.best_epoch}; "
                f"{duration(row['seconds'])}{f', at most {duration(left)} left' if left else ''}",
                flush=True,
            )

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _note(self, history: History) -> None:
        if history.rows:
            valid, best = history.rows[-1]["valid_bound"], history.best_epoch
            self._measured = f", validation {valid:.2f} (best: epoch {best})"

    def _seconds_left(self, row: Mapping[str, float]) -> float:
        """Return the seconds until the last epoch has ended and is measured."""
        measuring = 0.0 if self._stepped is None else time.perf_counter() - self._stepped
        return (self.epochs - row["epoch"]) * (row["seconds"] / row["epoch"] + measuring)
