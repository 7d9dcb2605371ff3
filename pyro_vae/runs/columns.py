"""What a table of runs says about each: what its numbers are of, and the numbers, from the files in its folder."""

import csv
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pyro_vae._lazy import LazyModule
from pyro_vae.files import CheckpointError
from pyro_vae.printing import estimate

if TYPE_CHECKING:
    from pyro_vae import saved
    from pyro_vae.data import sets
    from pyro_vae.runs import resume
else:
    saved, sets, resume = map(LazyModule, ("pyro_vae.saved", "pyro_vae.data.sets", "pyro_vae.runs.resume"))

GREY = "grey levels"
# Settings that change neither what is trained nor what is measured.
WAYS = {"out", "quiet", "overwrite", "resume", "checkpoint_every", "data_dir", "skip_non_finite", "engine"}
FOLLOW = {"recipe", "classes"}  # from other settings, or others from them
DENSITIES = {"continuous-bernoulli", "normal", "beta"}  # of x in [0, 1], where a grey level is 1/256 wide


class Cell(NamedTuple):
    """A value of a table, with its standard error where it has one; ``digits`` are those of a measured value.

    >>> str(Cell(-83.123, 0.052, 2)), str(Cell("beta")), str(Cell([256, 256])), str(Cell(None))
    ('-83.12 ± 0.05', 'beta', '256 256', '')
    """

    value: Any
    error: float | None = None
    digits: int | None = None

    def __str__(self) -> str:
        if self.value is None:
            return ""
        if isinstance(self.value, (list, tuple)):
            return " ".join(map(str, self.value))
        return str(self.value) if self.digits is None else estimate(self.value, self.error, self.digits)


@dataclass(frozen=True)
class Run:
    """A finished run: its folder and the content of its metrics.json."""

    folder: Path
    metrics: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> "Run":
        """Return the run in a folder. Raises CheckpointError, with the reason, if there is none that has ended."""
        if not (folder / saved.METRICS).is_file():
            began = folder.is_dir() and any(folder.iterdir())
            why = "its run has not ended" if began else "no run is there"
            if any(folder.glob(f"*/{saved.METRICS}")):
                why = f"the runs are the folders in it, {folder}/*"
            raise CheckpointError(f"it holds no {saved.METRICS}: {why}")
        metrics = saved.read_metrics(folder / saved.METRICS)
        _check(metrics)
        if metrics.get("interrupted"):
            raise CheckpointError("its run was interrupted; go on with it by --resume")
        if not metrics.get("test") and "test" not in (metrics.get("left_out") or {}):
            raise CheckpointError("nothing was measured")
        return cls(folder, metrics)

    @property
    def settings(self) -> dict[str, Any]:
        """The options of the run, with those that an earlier version lacked."""
        return {**resume.SINCE, **self.metrics["settings"]}

    def entry(self, name: str, value: str) -> Any:
        """Return an entry of a part of metrics.json, such as the bound in test; None if it was not measured."""
        found = (self.metrics.get(name) or {}).get(value)
        return found if isinstance(found, (int, float)) and math.isfinite(found) else None

    @property
    def training(self) -> str:
        """What was trained: all settings that change its numbers. Runs with the same are copies of each other."""
        free = WAYS | FOLLOW | {"evidence", "measure"}
        return str(sorted((name, str(value)) for name, value in self.settings.items() if name not in free))

    @property
    def observation(self) -> str:
        """What the likelihood scores; only numbers of the same observation compare."""
        settings = self.settings
        given = "given the class: " if settings["conditional"] else ""
        if self.entry("test", "bits_per_dim") is not None:
            return f"{given}{GREY}"
        if settings.get("lik") != "bernoulli":
            return f"{given}x of the {settings.get('lik')} likelihood"
        if settings.get("binarize") == "intensity":
            return f"{given}grey levels read as probabilities, whose bound is that of no likelihood"
        return f"{given}black and white pixels ({settings.get('binarize') or 'dynamic'})"

    @property
    def block(self) -> str:
        """The data and the observation: runs with the same compare."""
        data = self.metrics["dataset"]
        shape = " × ".join(map(str, data.get("shape") or ()))
        return f"{data.get('name')}{self._which}, {data.get('test')} test images of {shape}: {self.observation}"

    @property
    def _which(self) -> str:
        """Which images of your own these are, as folders of one name may hold others; nothing for a known data set."""
        asked = self.settings.get("dataset")
        if asked is None or asked in (*sets.SETS, "auto"):
            return ""
        digest = self.metrics["dataset"].get("test_digest")  # earlier versions had none
        return f" (digest {digest})" if digest else f" (read as {asked})"

    @property
    def unit(self) -> str:
        """The observation whose nats the bounds are, which differs between likelihoods of grey levels."""
        settings = self.settings
        lik = settings.get("lik")
        if lik in DENSITIES:
            return "densities of [0, 1]"
        return f"{settings.get('bins')} bins" if lik == "categorical" else str(lik)

    def valid(self) -> float | None:
        """Return the bound of the kept epoch on the validation images, from history.csv."""
        try:
            with (self.folder / resume.HISTORY).open(newline="") as file:
                rows = {row["epoch"]: row for row in csv.DictReader(file)}
            return float(rows[str(self.metrics.get("kept_epoch"))]["valid_bound"])
        except (OSError, KeyError, ValueError, TypeError):
            return None


def _check(metrics: Mapping[str, Any]) -> None:
    """Raise CheckpointError unless these are the metrics of a training, whose entries have the types that it writes."""
    settings, dataset = metrics.get("settings"), metrics.get("dataset")
    if not isinstance(settings, dict) or not isinstance(dataset, dict) or "lik" not in settings:
        raise CheckpointError(f"its {saved.METRICS} is not one of pyro-vae train")
    parts = dict.fromkeys(("test", "evidence", "seconds", "left_out"), dict)
    numbers = dict.fromkeys(("active_units", "knn_accuracy"), (int, float))
    for name, kind in {**parts, **numbers}.items():
        if metrics.get(name) is not None and not isinstance(metrics[name], kind):
            raise CheckpointError(f"its {saved.METRICS} is damaged: {name} is {str(metrics[name])[:40]!r}")
    if not isinstance(settings.get("seed"), int):
        raise CheckpointError(f"its {saved.METRICS} is damaged: the seed is {settings.get('seed')!r}")


@dataclass(frozen=True)
class Column:
    """A measured column: its title, in LaTeX too, and how a run has it."""

    title: str
    of: Callable[[Run], float | None]
    error: Callable[[Run], float | None] = lambda run: None
    digits: int = 2
    latex: str = ""

    def cell(self, run: Run) -> Cell:
        """Return the column's cell of a run, with the standard error over its test images."""
        return Cell(self.of(run), self.error(run), self.digits)


def _column(title: str, part: str, name: str, error: str = "", digits: int = 2, latex: str = "") -> Column:
    of_error = (lambda run: run.entry(part, error)) if error else (lambda run: None)
    return Column(title, lambda run: run.entry(part, name), of_error, digits, latex or title)


def _whole(run: Run, name: str) -> float | None:
    return run.metrics.get(name)


COLUMNS = {
    "bound": _column("test bound", "test", "bound", "standard_error"),
    "log_px": _column("log p(x)", "evidence", "log_px", "standard_error", latex=r"$\log p(x)$"),
    "rate": _column("rate", "test", "rate"),
    "distortion": _column("distortion", "test", "distortion"),
    "active": Column("active units", lambda run: _whole(run, "active_units"), digits=0, latex="active units"),
    "bits": _column("bits/dim of the bound", "test", "bits_per_dim", "bits_per_dim_standard_error", 3),
    "valid": Column("validation bound", Run.valid, latex="validation bound"),
    "knn": Column("k-NN accuracy", lambda run: _whole(run, "knn_accuracy"), digits=3, latex="$k$-NN accuracy"),
    "seconds": _column("seconds", "seconds", "training", digits=0),
}
MEASURED = ("bound", "log_px", "rate", "active", "bits")  # unless --columns says others


def differing(runs: list[Run]) -> list[str]:
    """Return the names of the settings, but for the seed, that differ between runs; the seed is last."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    differ = [
        name for name in names if name not in WAYS | FOLLOW and len({str(run.settings.get(name)) for run in runs}) > 1
    ]
    return sorted(differ, key=lambda name: name == "seed")
