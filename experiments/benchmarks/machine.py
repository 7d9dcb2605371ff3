"""The machine of a measurement: processor, cores, vector instructions, and measured peak."""

import os
import platform
import time
from pathlib import Path
from typing import Any

import torch

from pyro_vae.hardware import fast_matmul
from pyro_vae.parallel import cpu_quota

# Of /proc/cpuinfo: those that decide how fast matrix products are.
INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16", "sve")
PRODUCTS, LONGEST = 40, 1.0  # of matrices, and seconds: without bfloat16 in hardware one product takes seconds


def describe() -> dict[str, Any]:
    """Return processor, cores, threads of torch, vector instructions, load, and operations a second at the peak."""
    fields = cpu_fields(_text(Path("/proc/cpuinfo")))
    flags = fields.get("flags", fields.get("Features", "")).split()
    return {
        "cpu": cpu_name(fields),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "instructions": [name for name in INSTRUCTIONS if name in flags],
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "peak": peak(),
    }


def cpu_fields(text: str) -> dict[str, str]:
    r"""Return the fields of the first processor in the text of /proc/cpuinfo.

    >>> cpu_fields("model name\t: A CPU\nmodel\t: 17\n\nmodel name\t: another")
    {'model name': 'A CPU', 'model': '17'}
    """
    lines = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}


def cpu_name(fields: dict[str, str]) -> str:
    """Return the name of the processor, with family and model, as virtual machines give several one name.

    >>> cpu_name({"model name": "AMD EPYC", "cpu family": "25", "model": "17"})
    'AMD EPYC (family 25, model 17)'
    """
    name = fields.get("model name") or platform.processor() or platform.machine()
    return f"{name} (family {fields['cpu family']}, model {fields['model']})" if "cpu family" in fields else name


def cores() -> dict[str, float | None]:
    """Return the cores of the machine, those that this process may run on, and its share of them in cores."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"machine": os.cpu_count(), "allowed": allowed, "quota": cpu_quota()}


def peak() -> dict[str, float]:
    """Return the operations a second of a product of 1024 × 1024 matrices on this machine, in each precision."""
    found = {}
    for name, dtype in ("float32", torch.float32), ("bfloat16", torch.bfloat16):
        a = torch.randn(1024, 1024).to(dtype)
        with fast_matmul("cpu"):
            seconds = []
            while len(seconds) < PRODUCTS and sum(seconds) < LONGEST:
                start = time.perf_counter()
                a @ a
                seconds.append(time.perf_counter() - start)
        found[name] = 2 * 1024**3 / min(seconds)
    return found


def in_words(machine: dict[str, Any]) -> str:
    """Return the machine in a line.

    >>> in_words({"cpu": "A CPU", "cores": {"allowed": 2, "quota": 1.5}, "threads": 2, "instructions": ["avx2"],
    ...           "load": 0.3, "peak": {"float32": 2e11, "bfloat16": 4e11}})
    'A CPU, 2 cores (quota 1.5), 2 threads, avx2; peak 200 Gflop/s in float32, 400 in bfloat16; load 0.3'
    """
    part = f" (quota {machine['cores']['quota']:g})" if machine["cores"]["quota"] else ""
    peaks = [round(machine["peak"][name] / 1e9) for name in ("float32", "bfloat16")]
    load = "" if machine["load"] is None else f"; load {machine['load']:.1f}"
    return (
        f"{machine['cpu']}, {machine['cores']['allowed']} cores{part}, {machine['threads']} threads, "
        f"{' '.join(machine['instructions'])}; peak {peaks[0]} Gflop/s in float32, {peaks[1]} in bfloat16{load}"
    )


def _text(path: Path) -> str:
    return path.read_text() if path.is_file() else ""
