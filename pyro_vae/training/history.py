"""What a training reports: a row for each epoch, also as a CSV file that grows, and its warnings."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pyro_vae.data.frames import framed
from pyro_vae.files import CURES, CheckpointError, write_whole
from pyro_vae.showing import Shown, on_one_line

# Columns of a history row.
ROW = (
    "epoch",
    *(f"{split}_{term}" for split in ("train", "valid") for term in ("bound", "rate", "distortion")),
    "seconds",
    "images_per_second",
    "valid_objective",
)

SHOWN = {  # columns of the table that ``print`` shows, and their headings
    "epoch": "epoch",
    "train_bound": "training bound",
    "valid_bound": "validation bound",
    "valid_rate": "rate",
    "valid_distortion": "distortion",
    "valid_objective": "objective",
    "seconds": "seconds",
    "images_per_second": "images a second",
}
LAST = 5  # epochs in that table
UNUSED = 0.05  # nats: codes, or a latent dimension, of a smaller rate say nothing about x


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
        since = f", since the weights of the sites, such as a KL weight, changed in epoch {first}" if first > 1 else ""
        return f"the best of epochs {first} to {last} on the validation images by {self.objective}{since}"

    def to_frame(self) -> Any:
        """Return the rows as a pandas frame, whose index is the epoch. Raises ImportError without pandas.

        >>> History([dict.fromkeys(ROW, 1.0)]).to_frame().loc[1, "train_bound"].item()
        1.0
        """
        names = dict.fromkeys(name for row in self.rows for name in row) or ROW
        columns = {name: [row.get(name) for row in self.rows] for name in names}
        return framed({**columns, "epoch": [int(row["epoch"]) for row in self.rows]}, "epoch")

    def _shown(self) -> Shown:
        """Return what ``print`` and notebooks show: the last epochs, and which one is kept for what reason."""
        columns = [name for name in SHOWN if any(name in row for row in self.rows[-LAST:])]
        rows = [[_cell(name, row.get(name)) for name in columns] for row in self.rows[-LAST:]]
        kept = f"kept: epoch {self.kept_epoch}, " if self.kept_epoch else ""
        notes = [f"{kept}{self.reason}"]
        if self.skipped:
            notes.append(f"{self.skipped} steps left out, as their loss or gradient was not finite")
        if self.kept_epoch and abs(self.rows[self.kept_epoch - 1].get("valid_rate", UNUSED)) < UNUSED:
            notes.append(
                f"collapsed: z says nothing of x, by a rate below {UNUSED} nats; train again for more epochs, or with "
                "a smaller lr or batch_size"
            )
        if self.interrupted:
            notes.append(f"ended early by signal {self.signal}")
        last = f", of which the last {LAST}" if len(self.rows) > LAST else ""
        return Shown(f"{self._epochs()}{last}; in nats per image", rows, [SHOWN[name] for name in columns], notes)

    def __str__(self) -> str:
        return str(self._shown())

    def __repr__(self) -> str:
        words, kept = [self._epochs()], self.kept_epoch
        if kept:
            objective = self.rows[kept - 1].get("valid_objective", math.nan)
            words.append(f"epoch {kept} is kept, valid_objective {objective:.2f} nats per image")
        return on_one_line(f"History({', '.join([*words, *[f'{self.engine} engine'] * bool(self.engine)])})")

    def _repr_html_(self) -> str:
        return self._shown().html()

    def _epochs(self) -> str:
        return f"{len(self.rows)} epoch{'s' * (len(self.rows) != 1)}"


def _cell(name: str, value: float | None) -> str:
    """Return a number of a row: whole epochs and rates of work, all else with two decimals."""
    if value is None:
        return ""
    return f"{value:,.0f}" if name in ("epoch", "images_per_second") else f"{value:.2f}"


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
            raise CheckpointError(
                f"{self.path} cannot be written ({error.strerror}): {cure}, and do it again"
            ) from error
