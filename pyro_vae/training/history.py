"""What a training reports: a row for each epoch, also as a CSV file that grows, and its warnings."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pyro_vae.files import CURES, CheckpointError, write_whole

# Columns of a history row.
ROW = (
    "epoch",
    *(f"{split}_{term}" for split in ("train", "valid") for term in ("bound", "rate", "distortion")),
    "seconds",
    "images_per_second",
    "valid_objective",
)


class TrainingWarning(UserWarning):
    """A training differs from what its settings suggest; the message says how and names the cure."""


@dataclass
class History:
    """A row for each epoch of a training, and the epoch whose parameters are kept.

    Args:
        rows: bounds, rates and distortions in nats per image on training and validation images, seconds of training so
            far, images a second, and ``valid_objective``, by which epochs are compared, in nats per image.
        skipped: the number of steps left out because their loss or gradient was not finite.
        signal: the number of the signal that ended the training, if one did.
        engine: the name of the engine that trained.
        keep: "best" or "last", the setting of the training.
        objective: the name of ``valid_objective``.
        comparable_from: the first epoch with the present weights of the program's sites, such as a KL weight. Earlier
            epochs were trained by another objective and are not compared.
    """

    rows: list[dict[str, float]] = field(default_factory=list)
    skipped: int = 0
    signal: int | None = None
    engine: str = ""
    keep: Literal["best", "last"] = "best"
    objective: str = "the bound with one particle"
    comparable_from: int = 1

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Load a history that an earlier version has pickled, which compared epochs by the bound."""
        rows = [{"valid_objective": row["valid_bound"], **row} for row in state["rows"]]
        self.__dict__.update({**state, "rows": rows})

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C, or another signal, ended the training early."""
        return self.signal is not None

    @property
    def best_epoch(self) -> int | None:
        """The epoch with the highest objective on the validation images; None before the first epoch has ended."""
        rows = self.rows[self.comparable_from - 1 :]
        return int(max(rows, key=lambda row: row["valid_objective"])["epoch"]) if rows else None

    @property
    def kept_epoch(self) -> int | None:
        """The epoch whose parameters the program has after the training; None where no epoch has ended."""
        return len(self.rows) or None if self.keep == "last" else self.best_epoch

    @property
    def reason(self) -> str:
        """The reason why ``kept_epoch`` is kept.

        >>> History([{"epoch": 1, "valid_objective": -9.0}, {"epoch": 2, "valid_objective": -8.0}]).reason
        'the best of epochs 1 to 2 on the validation images by the bound with one particle'
        """
        first, last = self.comparable_from, len(self.rows)
        if not last:
            return "no epoch has ended: the parameters are those of the last step"
        if self.keep == "last":
            return 'the last epoch, as keep="last" asks'
        if first == last > 1:
            return "the last epoch: the weights of the sites, such as a KL weight, changed in it, so no other compares"
        since = f", since the weights of the sites changed in epoch {first}" if first > 1 else ""
        return f"the best of epochs {first} to {last} on the validation images by {self.objective}{since}"


def history_row(
    epoch: int, summaries: Mapping[str, Mapping[str, float]], seconds: float, images: int
) -> dict[str, float]:
    """Return a row of the history from the summaries of "train" and "valid"; ``images`` are those of one epoch."""
    values = {f"{name}_{term}": summary[term] for name, summary in summaries.items() for term in summary}
    row = {"epoch": epoch, **values, "seconds": seconds, "images_per_second": epoch * images / seconds}
    return {name: row[name] for name in ROW}


def csv_of(rows: Sequence[Mapping[str, float]], header: bool = True) -> bytes:
    r"""Return rows of a history as CSV, one line an epoch.

    >>> csv_of([dict.fromkeys(ROW, 1)], header=False)
    b'1,1,1,1,1,1,1,1,1,1\r\n'
    """
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, ROW)
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


class HistoryFile:
    """The rows of a history on disk: a CSV file to which a line is added after each epoch.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = HistoryFile(Path(folder, "history.csv"))
    ...     file.begin([])
    ...     file.append(dict.fromkeys(ROW, 1))
    ...     file.path.read_bytes() == csv_of([dict.fromkeys(ROW, 1)])
    True
    """

    def __init__(self, path: Path):
        self.path = path

    def begin(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Replace the file by one with these rows, which are those of the checkpoint that is resumed, if any."""
        if rows:
            write_whole(self.path, csv_of(rows))
        else:
            self.path.unlink(missing_ok=True)

    def append(self, row: Mapping[str, float]) -> None:
        """Add the row of an epoch. Raises CheckpointError with the cure where it cannot be written."""
        try:
            with self.path.open("ab") as file:
                file.write(csv_of([row], header=not file.tell()))
        except OSError as error:
            cure = CURES.get(error.errno or 0, "see that it can be written")
            raise CheckpointError(f"{self.path} cannot be written ({error.strerror}): {cure}, then resume") from error
