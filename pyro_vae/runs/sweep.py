"""Many trainings by one command: ``pyro-vae sweep --lik bernoulli beta --seeds 0:8 --jobs 2``."""

import argparse
import io
import itertools
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyro_vae._lazy import LazyModule
from pyro_vae.config import NETWORK
from pyro_vae.printing import estimate
from pyro_vae.records import flag, options_of
from pyro_vae.runs import arguments, table
from pyro_vae.runs.commands import exit_status
from pyro_vae.runs.folders import make_folder
from pyro_vae.runs.options import add_jobs_option, home_path
from pyro_vae.runs.parser import Parser

if TYPE_CHECKING:
    from pyro_vae import saved
    from pyro_vae.runs import job, origins, resume, together
    from pyro_vae.training import checkpoint
else:
    saved, job, origins, resume, together, checkpoint = map(
        LazyModule,
        (
            "pyro_vae.saved",
            "pyro_vae.runs.job",
            "pyro_vae.runs.origins",
            "pyro_vae.runs.resume",
            "pyro_vae.runs.together",
            "pyro_vae.training.checkpoint",
        ),
    )

DESCRIPTION = """\
Train and measure one VAE for each combination of options, and print the table of all.

    pyro-vae sweep --lik bernoulli beta --seeds 0:8 --jobs 2 --out runs
    pyro-vae sweep --latent 2 10 50 --lr 1e-3 5e-3 --dataset digits --out runs
    pyro-vae sweep --vary hidden 256,256 64 --vary conditional no yes --out runs

All options of pyro-vae train are taken, and one with several values varies. Each run is a folder in --out, named by
what varies, as pyro-vae train writes it. The same command goes on where it was stopped: a run that has ended is not
done again. A run that fails is named at the end, and the others go on.
"""
LISTS = {"size", *(option.name for option in options_of(NETWORK).values() if option.nargs)}
OWN = {"resume": "a sweep goes on by itself", "overwrite": "give another --out, or remove the folders of these runs"}
ELSEWHERE = {"seed": "--seeds 0 1", "seeds": "--seeds 0 1", "out": "--out", "quiet": "--quiet", "jobs": "--jobs"}


@dataclass(frozen=True)
class Planned:
    """A run of a sweep: its name, its command line without the name of the program, and whether it has ended."""

    name: str
    words: list[str]
    seed: int
    done: bool = False


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return exit_status(
        lambda: parse_arguments(argv), run, "the runs that had ended are in {out}; the same command goes on"
    )


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of a sweep; ``options`` are the words that are left for ``pyro-vae train``."""
    parser = Parser(prog="pyro-vae sweep", description=DESCRIPTION, epilog="pyro-vae train --help lists its options.")
    parser.add_argument(
        "--seeds",
        "--seed",
        type=seeds,
        nargs="+",
        default=[[0]],
        metavar="SEED",
        help="seeds, or a range of them: 0:8 are the eight from 0 to 7 (default: 0)",
    )
    parser.add_argument(
        "--vary",
        nargs="+",
        action="append",
        default=[],
        metavar="OPTION",
        help=f"an option and its values; for one that takes several numbers ({', '.join(sorted(LISTS))}), whose values "
        "have commas, such as hidden 256,256 128, and for one without a value: no yes",
    )
    add_jobs_option(parser)
    parser.add_argument("--out", type=home_path, required=True, metavar="FOLDER", help="folder of the runs' folders")
    parser.add_argument("--dry-run", action="store_true", help="print the commands of the runs, and do nothing")
    parser.add_argument("--quiet", action="store_true", help="no line for each run")
    args, args.options = parser.parse_known_args(sys.argv[1:] if argv is None else argv)
    args.seeds = list(dict.fromkeys(seed for some in args.seeds for seed in some))
    args.out = args.out.absolute()  # a worker on another machine has another folder
    return args


def seeds(text: str) -> list[int]:
    """Return the seeds that a word stands for.

    >>> seeds("3"), seeds("2:4"), seeds(":2")
    ([3], [2, 3], [0, 1])
    """
    first, colon, end = text.partition(":")
    try:
        found = list(range(int(first or 0), int(end))) if colon else [int(first)]
    except ValueError:
        raise argparse.ArgumentTypeError(f"wanted a seed, or a range such as 0:8, got {text!r}") from None
    if not found:
        raise argparse.ArgumentTypeError(f"{text} holds no seed; write 0:8 for those from 0 to 7")
    return found


def run(args: argparse.Namespace) -> int:
    """Do the runs that are not there yet, and print the table of all; return 1 if one failed."""
    runs = list(checked(planned(args), args.out))
    if args.dry_run:
        for each in runs:
            print(f"{shlex.join(['pyro-vae', 'train', *each.words])}" + "  # has ended" * each.done)
        return 0
    make_folder(args.out)
    waiting = [each for each in runs if not each.done]
    if len(waiting) < len(runs):
        print(f"{len(runs) - len(waiting)} of {len(runs)} runs have ended before", flush=True)
    works = {each.name: partial(finished, each.words) for each in waiting}
    failed = together.run_together(works, args.jobs, args.quiet)
    show([args.out / each.name for each in runs], len(args.seeds) > 1)
    return 1 if failed else 0


def show(folders: Sequence[Path], by_seeds: bool) -> None:
    """Print the table of the runs that have ended, the mean over seeds of each setting if there are several."""
    found, _ = table.read(folders)
    if found:
        by = ([name for name in table.differing(found) if name != "seed"] or ["lik"]) if by_seeds else []
        blocks, columns = table.blocks_of(found, by)
        print("\n".join(["", *table.lines(blocks, columns), *table.notes(found, by)]))


def planned(args: argparse.Namespace) -> Iterator[Planned]:
    """Yield all runs: those of the first seed, then those of the next."""
    always, varied = grouped(args.options)
    for name, values in values_of_vary(args.vary):
        if name in varied:
            raise ValueError(f"{flag(name)}: wanted its values once, got them twice; give all of them together")
        varied[name] = values
    for name in (*always, *varied):
        if name in OWN:
            raise ValueError(f"{flag(name)}: {OWN[name]}; leave it out")
        if name in always and name in varied:
            raise ValueError(f"{flag(name)}: wanted it once, got it with --vary too; leave one of them out")
    fixed = [word for name, words in always.items() for word in (flag(name), *words)]
    for seed in args.seeds:
        for values in itertools.product(*varied.values()):
            chosen = dict(zip(varied, values))
            name = "_".join([*(f"{name}-{named(value)}" for name, value in chosen.items()), f"seed-{seed}"])
            words = [word for name, value in chosen.items() for word in words_of(name, value)]
            ends = ["--seed", str(seed), "--out", str(args.out / name)]
            yield Planned(name, [*fixed, *words, *ends], seed)


def values_of_vary(given: Iterable[Sequence[str]]) -> Iterator[tuple[str, list[str]]]:
    """Yield the options of --vary with their values; ValueError for one without values, or that is one of a sweep."""
    for word, *values in given:
        name = word.lstrip("-").replace("-", "_")
        if name in ELSEWHERE:
            raise ValueError(f"--vary {word}: it is an option of the sweep itself; give {ELSEWHERE[name]}")
        if not values:
            raise ValueError(f"--vary {word}: wanted values after it, got none; write --vary {word} VALUE VALUE")
        yield name, values


def grouped(words: Iterable[str]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Return options by name, with their values: those of all runs, and those that vary.

    >>> grouped("--lik beta normal --latent=8 --hidden 64 64 --conditional".split())
    ({'latent': ['8'], 'hidden': ['64', '64'], 'conditional': []}, {'lik': ['beta', 'normal']})
    """
    options: dict[str, list[str]] = {}
    values: list[str] = []
    for word in words:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            options[name.replace("-", "_")] = values = [value] if equals else []
        elif options:
            values.append(word)
        else:
            raise ValueError(f"{word}: no option takes it; pyro-vae sweep --help lists all")
    varied = {name: values for name, values in options.items() if len(values) > 1 and name not in LISTS}
    return {name: values for name, values in options.items() if name not in varied}, varied


def words_of(name: str, value: str) -> list[str]:
    """Return the words of a command line for an option of ``--vary``.

    >>> words_of("hidden", "256,128"), words_of("conditional", "yes"), words_of("conditional", "no")
    (['--hidden', '256', '128'], ['--conditional'], [])
    """
    if value in ("yes", "no"):
        return [flag(name)] if value == "yes" else []
    return [flag(name), *(value.split(",") if name in LISTS else [value])]


def named(value: str) -> str:
    """Return a value as it stands in the name of a folder.

    >>> named("256,128"), named("my/pictures")
    ('256x128', 'my-pictures')
    """
    return re.sub(r"[^\w.+-]", "-", value.replace(",", "x"))


def checked(runs: Iterable[Planned], out: Path) -> Iterator[Planned]:
    """Yield the runs, with whether they have ended. Raises ValueError for settings of one that cannot be trained.

    The settings are checked with the first seed alone, since the others differ in nothing else.
    """
    jobs: dict[str, tuple[argparse.Namespace, dict[str, Any], dict[str, Any]]] = {}  # without images, which fill memory
    names: set[str] = set()
    trained: dict[str, str] = {}
    notes: dict[str, None] = {}
    for each in runs:
        if each.name in names:
            raise ValueError(f"two runs would have the folder {each.name}; give each value once")
        names.add(each.name)
        settings = each.name.removesuffix(f"seed-{each.seed}")
        try:
            if settings not in jobs:
                found = job_of(each.words)
                jobs[settings] = found.args, found.same, found.described
                other = trained.setdefault(str({**vars(found.args), "out": None}), each.name)
                if other != each.name:
                    raise ValueError(f"it is the same run as {other}; give each value once")
            options, same, rows = jobs[settings]
            metrics = ended(out / each.name, {**same, "seed": each.seed}, options.epochs, rows)
        except ValueError as error:
            raise ValueError(f"{each.name}: {error}") from error
        measured = resume.measured_otherwise(metrics["settings"], options, out / each.name) if metrics else ""
        notes |= dict.fromkeys(filter(None, (rows["note"], measured)))
        yield Planned(each.name, each.words, each.seed, metrics is not None)
    for note in notes:
        print(f"NOTE: {note}", flush=True)


def job_of(words: Sequence[str]) -> "job.Job":
    """Return the job of a command line of ``pyro-vae train``."""
    args = arguments.parse_arguments(list(words))  # before torch is imported
    return job.Job.of(args)


def ended(folder: Path, same: dict[str, Any], epochs: int, rows: dict[str, Any]) -> dict[str, Any] | None:
    """Return the results of the run if it has left them, else None.

    ValueError if they are those of other settings, of more epochs or of other ``rows`` than these, a description.
    """
    if not (folder / saved.METRICS).is_file():
        return None
    metrics = saved.read_metrics(folder / saved.METRICS)
    if metrics.get("interrupted"):
        return None
    settings = metrics.get("settings") or {}
    checkpoint.check_same(resume.compared(settings), same)
    if settings.get("epochs", 0) > epochs:
        raise ValueError(f"{folder} holds a run of {settings['epochs']} epochs, got {epochs}; give another --out")
    if settings.get("epochs") != epochs:
        return None
    origins.check_same_rows(folder, metrics.get("dataset", {}), rows, "give another --out")
    return metrics


def finished(words: Sequence[str]) -> str:
    """Train and measure one run, or go on with it, without a word; return a line about it."""
    args = arguments.parse_arguments([*words, "--resume", "--quiet"])
    with redirect_stdout(io.StringIO()):
        status = job.run(args)
    if status:
        raise KeyboardInterrupt(status - 128)
    metrics = saved.read_metrics(args.out / saved.METRICS)
    if "test" not in metrics:
        return f"trained; {(metrics.get('left_out') or {}).get('test', 'nothing was measured')}"
    test = metrics["test"]
    return f"test bound {estimate(test['bound'], test['standard_error'])} nats per image"
