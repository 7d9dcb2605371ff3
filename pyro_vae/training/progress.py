"""What a training shows while it runs: a bar on a terminal or in a notebook, elsewhere a line for each epoch."""

import sys
from collections.abc import Mapping, Sized

from tqdm.auto import tqdm


class Progress:
    """A progress bar of all images where standard error is a terminal, else a line on standard output for each epoch.

    >>> progress = Progress(shown=True, images=100, epochs=2)  # a doctest has no terminal
    >>> progress.end_epoch({"epoch": 1, "train_bound": -21.5, "valid_bound": -22.0, "seconds": 3.2})
    epoch 1 of 2: bound -21.50 nats per image on training images, -22.00 on validation images; 3 s
    """

    def __init__(self, shown: bool, images: int, epochs: int):
        self.images, self.epochs = images, epochs
        is_terminal = getattr(sys.stderr, "isatty", bool)() or "ipykernel" in sys.modules
        self._with_bar, self._with_lines = shown and is_terminal, shown and not is_terminal
        self._bar: tqdm | None = None

    def begin(self, rows: Sized, images: int) -> None:
        """Show the bar, if it is not there, after the epochs and the images of the present one that are behind."""
        if self._with_bar and self._bar is None:
            self._bar = tqdm(total=self.epochs * self.images, unit="image", unit_scale=True)
            self._bar.update(len(rows) * self.images + min(images, self.images))

    def step(self, images: int) -> None:
        """Count the images of a step."""
        if self._bar is not None:
            self._bar.update(images)

    def bound(self, epoch: int, bound: float) -> None:
        """Show the bound of the last step, in nats per image."""
        if self._bar is not None:
            self._bar.set_postfix_str(f"epoch {epoch}, bound {bound:.1f} nats", refresh=False)

    def end_epoch(self, row: Mapping[str, float]) -> None:
        """Print the line of an epoch, where there is no bar."""
        if self._with_lines:
            print(
                f"epoch {row['epoch']} of {self.epochs}: bound {row['train_bound']:.2f} nats per image on training "
                f"images, {row['valid_bound']:.2f} on validation images; {row['seconds']:.0f} s",
                flush=True,
            )

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
