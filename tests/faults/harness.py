#!/usr/bin/env python
"""Kills runs, fills their disk and damages their files: nothing may be lost, crash, hang or pass for what it is not.

    python tests/faults/harness.py                          # 100 kills, 1,000 files
    python tests/faults/harness.py --kills 3 --files 140 --no-pictures

A run is the command experiments/run.py on the digits. Each is killed by SIGKILL at a random moment, in or between the
writes of its checkpoints, which are made slow; then it is resumed, and must end with the very parameters and test
bound of a run that nobody touched. Processes are forked from this one, which has everything imported.
"""

import argparse
import contextlib
import gzip
import io
import json
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import scipy.io
import sklearn.neighbors  # noqa: F401 - else each of the processes spends seconds on importing it
import torch
import torch._dynamo
from safetensors.torch import load_file

from pyro_vae import files, load_vae
from pyro_vae.data import formats
from pyro_vae.data import sets as data
from pyro_vae.runs import job, train
from pyro_vae.training import checkpoint

WORDS = ["--dataset", "digits", "--net", "mlp", "--hidden", "8", "--epochs", "4", "--quiet"]
SECONDS = 10  # that a damaged file may take
MEMORY = 1 << 30  # bytes that it may take


def main() -> int:
    """Run the command; return 1 if anything went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--options", default="", help="further options of run.py, such as '--engine compiled'")
    parser.add_argument("--no-pictures", action="store_true", help="runs draw none, which is half of their time")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.no_pictures:
        job.pictures = lambda *_: {}
    WORDS.extend(args.options.split())
    draw = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        failures = kill_runs(Path(folder), args.kills, draw)
        failures += fill_the_disk(Path(folder))
        failures += damage_files(Path(folder), args.files, draw)
    print("\n".join([f"{len(failures)} FAILURES:", *failures[:10]]) if failures else "everything held")
    return 1 if failures else 0


# Runs that are killed


def kill_runs(folder: Path, number: int, draw: random.Random) -> list[str]:
    """Kill so many runs and resume them; return what went wrong, in words."""
    reference = finished(folder / "reference")
    started = time.monotonic()
    if wait(forked(lambda: slow_run(folder / "slow"), folder / "log")) != 0:
        return [f"a run without faults failed: {(folder / 'log').read_text()}"]
    length, moments, failures = time.monotonic() - started, Counter(), []
    while sum(moments.values()) < number:
        out = folder / "killed"
        shutil.rmtree(out, ignore_errors=True)
        process = forked(lambda out=out: slow_run(out), folder / "log")
        time.sleep(draw.uniform(0, length))
        os.kill(process, signal.SIGKILL)
        if os.WIFEXITED(os.waitpid(process, 0)[1]):
            continue  # it had ended already
        when = moment(out)
        moments[when] += 1
        code = wait(forked(lambda out=out: run([*WORDS, "--out", str(out), "--resume"]), folder / "log"))
        if code != 0 or result(out) != reference:
            failures.append(f"killed {when}, exit status {code}: {(folder / 'log').read_text()[-500:]}")
    found = ", ".join(f"{count} {name}" for name, count in moments.most_common())
    print(f"{number - len(failures)} of {number} killed runs ended with the same bits ({found})", flush=True)
    return failures


def run(words: list[str]) -> int:
    """Run the command experiments/run.py with these options in this process."""
    return train.main(words, __doc__, "run.py")


def slow_run(out: Path) -> int:
    """Do a run that writes a checkpoint every second step, slowly."""

    def write(file, content: bytes) -> None:
        for start in range(0, len(content), len(content) // 50 + 1):
            file.write(content[start : start + len(content) // 50 + 1])
            file.flush()
            time.sleep(0.002)

    files._write = write
    return run([*WORDS, "--out", str(out), "--checkpoint-every", "2"])


def moment(out: Path) -> str:
    """Return what a run was doing when it was killed."""
    if list(out.glob("checkpoint*.new")):
        return "writing a checkpoint"
    if list(out.glob("*.new")) or (out / "metrics.json").exists() or (out / "model.safetensors").exists():
        return "writing results"
    return "between writes" if (out / "checkpoint.pt").exists() else "before the first checkpoint"


def finished(out: Path) -> tuple:
    """Do a run without faults; return its result."""
    if wait(forked(lambda: run([*WORDS, "--out", str(out)]), out.with_suffix(".log"))) != 0:
        raise SystemExit(out.with_suffix(".log").read_text())
    return result(out)


def result(out: Path) -> tuple:
    """Return what must not depend on faults: the bits of the parameters, and the numbers."""
    metrics = json.loads((out / "metrics.json").read_text())
    kept = [metrics[name] for name in ("test", "best_epoch", "estimators", "engine", "interrupted")]
    state = load_file(out / "model.safetensors")
    return {name: value.numpy().tobytes() for name, value in state.items()}, kept


# A disk that is full


def fill_the_disk(folder: Path) -> list[str]:
    """Check that a checkpoint that does not fit is an error with a cure, and that the run goes on with more room."""
    reference, failures, size = result(folder / "reference"), [], 0
    for name, place in {"a limit on the size of files": limited, "a full file system": small_disk}.items():
        out = folder / name.replace(" ", "-")
        out.mkdir()
        with place(out, size) as (work, make_room):
            if work is None:
                print(f"{name}: left out, since this user may not mount one", flush=True)
                continue
            code, said = wait(forked(work, folder / "log")), (folder / "log").read_text()
            content = checkpoint.Checkpoints(out, resume=True).load()
            size = (out / "checkpoint.pt").stat().st_size
            if code != 1 or "cannot be written" not in said or "what was saved before is untouched" not in said:
                failures.append(f"{name}: exit status {code}: {said}")
            make_room()
            code = wait(forked(lambda out=out: run([*WORDS, "--out", str(out), "--resume"]), folder / "log"))
            if code != 0 or result(out) != reference:
                failures.append(f"{name}: not resumed, exit status {code}: {(folder / 'log').read_text()}")
            print(f"{name}: the error said {said.strip().split(': ', 1)[-1]!r}; resumed from step {content['step']}")
    return failures


@contextlib.contextmanager
def limited(out: Path, size: int) -> Iterator[tuple[Callable[[], int], Callable[[], None]]]:
    """Context manager with a run that may write no large file from its third checkpoint on, and a way to make room."""

    def work() -> int:
        due = checkpoint.Checkpoints.due

        def due_and_full(self: checkpoint.Checkpoints, step: int) -> bool:
            if step == 6:
                resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))
            return due(self, step)

        checkpoint.Checkpoints.due = due_and_full
        return run([*WORDS, "--out", str(out), "--checkpoint-every", "2"])

    yield work, lambda: None


@contextlib.contextmanager
def small_disk(out: Path, size: int) -> Iterator[tuple[Callable[[], int] | None, Callable[[], None] | None]]:
    """Context manager with a run into a small file system, and a way to make room; None if it cannot be mounted."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={int(2.5 * size)}", "tmpfs", str(out)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        yield None, None
        return
    try:
        yield (
            lambda: run([*WORDS, "--out", str(out), "--checkpoint-every", "2"]),
            lambda: subprocess.run(["mount", "-o", "remount,size=50m", str(out)], check=True),
        )
    finally:
        subprocess.run(["umount", str(out)], check=True)


# Files that are damaged


def damage_files(folder: Path, number: int, draw: random.Random) -> list[str]:
    """Read so many damaged files, each within limits of time and memory; return what went wrong, in words."""
    readers, whole = readers_and_files(folder)
    names = list(readers)
    tried = [(names[i % len(names)], damaged(whole, names[i % len(names)], draw)) for i in range(number)]
    outcomes, failures, at = Counter(), [], 0
    while at < number:
        read_end, write_end = os.pipe()
        process = forked(lambda at=at, end=write_end: read_all(tried[at:], readers, folder, end), folder / "log")
        os.close(write_end)
        with os.fdopen(read_end) as pipe:
            lines = [json.loads(line) for line in pipe]
        status = os.waitpid(process, 0)[1]
        for (name, _), outcome in zip(tried[at:], lines):
            outcomes[outcome if outcome in ("refused", "read") else "failed"] += 1
            if outcome not in ("refused", "read"):
                failures.append(f"{name}: {outcome}")
        at += len(lines)
        if at < number:
            failures.append(f"{tried[at][0]}: the process ended by signal {status & 127}: {tried[at][1][:60]!r}")
            at += 1
    print(f"{number} damaged files: {dict(outcomes)}, {len(failures)} failures")
    return failures


def read_all(files: list, readers: dict, folder: Path, end: int) -> int:
    """Try to read each file; report a line each."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))
    with os.fdopen(end, "w") as pipe:
        for name, content in files:
            signal.alarm(SECONDS)
            try:
                outcome = readers[name](content)
            except (checkpoint.CheckpointError, data.DataError):
                outcome = "refused"
            except BaseException:
                outcome = traceback.format_exc()[-1000:]
            signal.alarm(0)
            print(json.dumps(outcome), file=pipe, flush=True)
    return 0


def readers_and_files(folder: Path) -> tuple[dict[str, Callable[[bytes], str]], dict[str, bytes]]:
    """Return for each kind of file its reader, which says "read" or what is wrong with that, and a whole one."""
    model = folder / "model"
    shutil.copytree(folder / "reference", model)
    (folder / "MNIST").mkdir()
    (folder / data.FREY_FILE).parent.mkdir()
    state = load_vae(model).state_dict()
    random_images = np.random.RandomState(0).randint(0, 256, (50, 28, 28), np.uint8)
    images = struct.pack(">4B3I", 0, 0, 8, 3, *random_images.shape) + random_images.tobytes()
    readers = {
        "checkpoint.pt": read_checkpoint,
        "idx": lambda content: read_idx(folder / "MNIST/images", "", content),
        "model.safetensors": lambda content: read_model(folder, "model.safetensors", state, content),
        "idx.gz": lambda content: read_idx(folder / "MNIST/images", ".gz", content),
        "metrics.json": lambda content: read_model(folder, "metrics.json", state, content),
        "mat": lambda content: read_faces(folder / data.FREY_FILE, content),
        "mat, packed": lambda content: read_faces(folder / data.FREY_FILE, content),
    }
    whole = {
        "checkpoint.pt": checkpoint.encode({"step": 1, "program": state, "history": {"rows": [{"epoch": 1}]}}),
        "idx": images,
        "model.safetensors": (model / "model.safetensors").read_bytes(),
        "idx.gz": gzip.compress(images),
        "metrics.json": (model / "metrics.json").read_bytes(),
        "mat": mat(False),
        "mat, packed": mat(True),
    }
    return readers, whole


def read_checkpoint(content: bytes) -> str:
    """Decode a checkpoint."""
    checkpoint.decode(content, "checkpoint.pt")
    return "a damaged file was taken for a checkpoint"


def read_model(folder: Path, name: str, state: dict[str, torch.Tensor], content: bytes) -> str:
    """Load a model; damaged metrics may still describe the same one, damaged parameters may not be read."""
    whole = (folder / "reference" / name).read_bytes()
    (folder / "model" / name).write_bytes(content)
    try:
        again = load_vae(folder / "model").state_dict()
    finally:
        (folder / "model" / name).write_bytes(whole)
    same = all(torch.equal(value, state[key]) for key, value in again.items())
    return "read" if same and name == "metrics.json" else "a damaged file was taken for a model"


def read_idx(images: Path, suffix: str, content: bytes) -> str:
    """Read a file of images in MNIST's format."""
    path = images.with_name(images.name + suffix)
    path.write_bytes(content)
    try:
        return "read" if formats.read_idx(images, 3).dtype == torch.uint8 else "no images"
    finally:
        path.unlink()


def read_faces(frey: Path, content: bytes) -> str:
    """Read a file of Frey faces."""
    frey.write_bytes(content)
    return "read" if len(formats.read_frey(frey)) == 1965 else "no faces"


def mat(packed: bool) -> bytes:
    """Return a MATLAB file of faces."""
    file, faces = io.BytesIO(), np.random.RandomState(0).randint(0, 256, (560, 1965)).astype(np.uint8)
    scipy.io.savemat(file, {"ff": faces}, do_compression=packed)
    return file.getvalue()


def damaged(whole: dict[str, bytes], name: str, draw: random.Random) -> bytes:
    """Return the file with one to three random faults."""
    content = bytearray(whole[name])
    while bytes(content) == whole[name]:
        for _ in range(draw.randint(1, 3)):
            # Headers are small and matter most: half of all damage is done to the first 300 bytes.
            at = draw.randrange(max(1, min(len(content), draw.choice([300, len(content) or 1]))))
            kind = draw.choice(["cut", "flip", "replace", "huge", "twice", "other"])
            if kind == "cut":
                del content[draw.choice([0, 1, at, max(0, len(content) - 1)]) :]
            elif kind == "flip" and content:
                content[at] ^= 1 << draw.randrange(8)
            elif kind == "replace":
                content[at : at + 8] = draw.randbytes(draw.randint(0, 8))
            elif kind == "huge":
                at -= at % 4
                content[at : at + 4] = draw.choice([b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f"])
            elif kind == "twice":
                content[at:at] = content[at : at + draw.randint(1, 5000)]
            elif draw.random() < 0.2:
                content[:] = whole[draw.choice(list(whole))]
    return bytes(content)


# Processes


def forked(work: Callable[[], int], log: Path) -> int:
    """Start a process that does the work, writes its output to the log, and ends; return its number."""
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    code = 70
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(process: int) -> int:
    """Return the exit status of a process."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


if __name__ == "__main__":
    sys.exit(main())
