"""What a device can do: faster matrix products, memory that is kept, bfloat16 that is emulated."""

import platform

import pytest
import torch

from pyro_vae import hardware
from pyro_vae.hardware import _matmul_error, fast_matmul, keep_freed_memory, warn_if_emulated, widest_float


@pytest.mark.parametrize("error", [TypeError, RuntimeError])
def test_sums_are_in_float64_where_the_device_has_it(monkeypatch, error):
    assert widest_float("cpu") is widest_float(torch.device("cpu")) is torch.float64

    def zeros(*shape, dtype, device):
        raise error("the MPS framework doesn't support float64")

    monkeypatch.setattr(torch, "zeros", zeros)
    assert widest_float("mps") is torch.float32


def test_other_errors_are_not_taken_for_a_device_without_float64(monkeypatch):
    monkeypatch.setattr(torch, "zeros", lambda *shape, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        widest_float("mps")


def test_the_faster_matmul_is_taken_only_where_it_is_accurate_and_for_the_block(monkeypatch):
    with fast_matmul("cpu"):
        assert _matmul_error.__wrapped__() < 1e-6
    monkeypatch.setattr("pyro_vae.hardware._matmul_error", lambda: 4e-3)
    with pytest.raises(KeyError), fast_matmul("cpu"):
        assert torch.get_float32_matmul_precision() == "highest"
        raise KeyError
    assert torch.get_float32_matmul_precision() == "highest"


def test_a_cpu_that_emulates_bfloat16_is_said_to_be_slow(caplog, monkeypatch):
    able = {"architecture": "x86_64", "avx512_bf16": False}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    warn_if_emulated(torch.bfloat16, "cpu")
    (said,) = caplog.messages
    assert said.startswith("bfloat16 will be slow")
    able["avx512_bf16"] = True
    warn_if_emulated(torch.bfloat16, "cpu")
    warn_if_emulated(None, "cpu")
    assert caplog.messages == [said]


def test_freed_memory_is_kept_by_what_malloc_h_calls_so(monkeypatch):
    asked = []

    class Glibc:
        @staticmethod
        def mallopt(parameter, value):
            asked.append((parameter, value))
            return 1

    monkeypatch.setattr(hardware.ctypes, "CDLL", lambda name: Glibc)
    assert keep_freed_memory.__wrapped__()
    assert asked == [(-3, 32 << 20), (-1, 1 << 30)]  # M_MMAP_THRESHOLD at its maximum, M_TRIM_THRESHOLD

    def nowhere(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(hardware.ctypes, "CDLL", nowhere)
    assert not keep_freed_memory.__wrapped__()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
def test_glibc_takes_it():
    assert keep_freed_memory()
