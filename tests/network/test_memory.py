# SPDX-License-Identifier: Apache-2.0
import platform
import resource
import subprocess
import sys

import pytest
import torch

from bmex_bids.network.devices import (
    SPARE_CPU,
    free_bytes,
    freed_memory_kept,
    is_out_of_memory,
    native_dtype,
    or_on_processor,
)

CPU = torch.device("cpu")
GIB = 2**30


@pytest.fixture
def machine(tmp_path):
    """``machine(available_gb, ...)``: folders that look like /proc and /sys/fs/cgroup."""

    def make(available_gb=16, *, resident_gb=1, group="0::/job", limits=None, flags="avx2"):
        proc, cgroup = tmp_path / "proc", tmp_path / "cgroup"
        (proc / "self").mkdir(parents=True)
        (proc / "meminfo").write_text(
            f"MemTotal: 99 kB\nMemAvailable: {int(available_gb * 2**20)} kB\n"
        )
        (proc / "self" / "status").write_text(
            f"VmSize:\t{3 * 2**20} kB\nVmRSS:\t{int(resident_gb * 2**20)} kB\n"
        )
        (proc / "self" / "cgroup").write_text(group + "\n")
        (proc / "cpuinfo").write_text(f"processor : 0\nflags\t\t: fpu {flags} sse\n\n")
        for name, text in (limits or {}).items():
            path = cgroup / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")
        return {"proc": proc, "cgroup": cgroup}

    return make


def test_the_machine(machine):
    assert free_bytes(CPU, **machine(16)) == 16 * GIB - SPARE_CPU


def test_what_the_run_may_take_counts_what_the_process_has(machine):
    here = machine(16, resident_gb=1)
    assert free_bytes(CPU, 4096, **here) == 3 * GIB - SPARE_CPU
    assert free_bytes(CPU, 100, **here) == 0


def test_a_control_group_and_those_above(machine):
    limits = {
        "job/step/memory.max": "max",
        "job/step/memory.current": GIB,
        "job/memory.max": 6 * GIB,
        "job/memory.current": 3 * GIB,
        "job/memory.stat": f"anon 1\ninactive_file {GIB}\n",
    }
    found = free_bytes(CPU, **machine(16, group="0::/job/step", limits=limits))
    assert found == 4 * GIB - SPARE_CPU  # 6 − (3 − 1 of cached files)


def test_a_control_group_of_version_1(machine):
    limits = {
        "memory/job/memory.limit_in_bytes": 2 * GIB,
        "memory/job/memory.usage_in_bytes": GIB,
    }
    found = free_bytes(CPU, **machine(16, group="9:memory:/job\n3:cpu:/job", limits=limits))
    assert found == GIB - SPARE_CPU


def test_a_limit_of_the_shell(machine, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (5 * GIB, 5 * GIB))
    assert free_bytes(CPU, **machine(16)) == 2 * GIB - SPARE_CPU  # 3 GiB are mapped


def test_never_below_nothing(machine):
    assert free_bytes(CPU, **machine(0.1)) == 0


def test_this_machine():
    assert 0 < free_bytes(CPU) < 2**50
    assert native_dtype(CPU) in (torch.float32, torch.bfloat16)


def test_a_gpu_says_what_is_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (10 * GIB, 16 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 4 * GIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 2 * GIB)
    assert free_bytes(torch.device("cuda", 0)) == int(0.85 * 12 * GIB)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("avx2", torch.float32),
        ("avx512f avx512_bf16", torch.bfloat16),
        ("amx_tile amx_bf16", torch.bfloat16),
        ("avx512_bf16x", torch.float32),
    ],
)
def test_bfloat16_where_the_processor_has_it(machine, flags, expected):
    assert native_dtype(CPU, proc=machine(flags=flags)["proc"]) == expected


@pytest.mark.parametrize(
    ("capability", "expected"), [((7, 5), torch.float32), ((8, 0), torch.bfloat16),
                                 ((9, 0), torch.bfloat16)]
)  # fmt: skip
def test_bfloat16_where_the_gpu_has_it(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert native_dtype(torch.device("cuda", 0)) == expected


def test_a_real_allocation_that_fails_is_recognised():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**56)
    assert is_out_of_memory(caught.value)


def test_other_errors_are_not():
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("x"))
    assert is_out_of_memory(RuntimeError("std::bad_alloc"))
    for words in (
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "GET was unable to find an engine to execute this computation",
        "FIND was unable to find an engine to execute this computation",
    ):
        assert is_out_of_memory(RuntimeError(words))
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
    assert not is_out_of_memory(ValueError("out of memory"))


KEPT = """
import resource, torch
from bmex_bids.network.devices import freed_memory_kept

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(2):
        torch.ones(60 * 2**20, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident_mb():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / 2**20

torch.set_num_threads(1)
faults()
print(faults(), resident_mb())
with freed_memory_kept():
    with freed_memory_kept():  # the end of an inner one ends nothing
        faults()
    print(min(faults() for _ in range(6)), resident_mb())
print(faults(), resident_mb())
"""


def test_pages_of_a_freed_array_are_used_again_and_given_back_at_the_end():
    """An array of 60 MB, more than glibc keeps by itself; in a process of its own."""
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("another C library")
    found = subprocess.run(
        [sys.executable, "-c", KEPT], capture_output=True, text=True, check=True
    ).stdout
    before, kept, after = (tuple(map(float, line.split())) for line in found.splitlines())
    assert kept[0] < 0.2 * before[0]  # page faults
    assert kept[1] > before[1] + 40  # MB
    assert after[0] > 0.8 * before[0]  # and all is as it was
    assert after[1] < kept[1] - 40


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr("ctypes.CDLL", lambda _: object())
    with freed_memory_kept():
        pass


def test_what_a_full_gpu_cannot_do_the_processor_does(monkeypatch, caplog):
    emptied = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(1))

    def work(device):
        if device.type == "cuda":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return device.type

    assert or_on_processor(torch.device("cuda", 0), work) == "cpu"
    assert emptied == [1]
    assert "memory of cuda:0 was short (CUDA out of memory); continuing without it" in caplog.text

    def broken(_):
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        or_on_processor(torch.device("cuda", 0), broken)

    def never(_):
        raise MemoryError

    with pytest.raises(MemoryError):
        or_on_processor(torch.device("cpu"), never)
