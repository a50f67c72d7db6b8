# SPDX-License-Identifier: Apache-2.0
"""Devices: which one is meant, how much memory it has, and which number format it multiplies."""

from __future__ import annotations

import ctypes
import logging
import resource
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch

from bmex_bids.exceptions import DeviceError

LOGGER = logging.getLogger(__name__)
Result = TypeVar("Result")

PROC = Path("/proc")
CGROUP = Path("/sys/fs/cgroup")
#: kept free on a processor: work arrays, transformed weights, what the libraries take
SPARE_CPU = 500 * 2**20
#: of the free memory of a GPU that is used; the rest is for its libraries
GPU_SHARE = 0.85

_OUT_OF_MEMORY = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",
    "defaultcpuallocator",
    "bad_alloc",
    "cublas_status_alloc_failed",
    "could not create a memory",
    # cuDNN's words where a GPU is full
    "cudnn_status_alloc_failed",
    "allocation_failed",
    "unable to find an engine",
    "unable to find a valid cudnn algorithm",
)


def resolve_device(name: str = "auto") -> torch.device:
    """``auto`` takes a GPU when there is one; one asked for and absent is a DeviceError.

    What a GPU computes in float32 is float32 from then on: its convolutions would else round what they
    multiply to the ten bits of TF32, and a sidecar would not say so.
    """
    torch.backends.cudnn.allow_tf32 = False
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(
            f"expected a device of auto, cpu, cuda or cuda:N, got {name!r}"
        ) from error
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise DeviceError(
                f"expected a CUDA device {name!r}, found {count} on this machine; use --device "
                "cpu, or run the container with --gpus all (Docker) or --nv (Singularity)"
            )
    elif device.type != "cpu":
        raise DeviceError(f"expected a device of auto, cpu, cuda or cuda:N, got {name!r}")
    return device


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch, numpy or Python says that memory was short."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(
        text in str(error).lower() for text in _OUT_OF_MEMORY
    )


def reason_of(error: BaseException) -> str:
    """The first line of an error, or its kind where it says nothing."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def or_on_processor(device: torch.device, work: Callable[[torch.device], Result]) -> Result:
    """Do it on a device, and where a GPU's memory is short, on the processor, with a warning."""
    try:
        return work(device)
    except Exception as error:
        if device.type == "cpu" or not is_out_of_memory(error):
            raise
        reason = reason_of(error)
    # outside of the handler: its traceback would keep the memory
    torch.cuda.empty_cache()
    LOGGER.warning("memory of %s was short (%s); continuing without it", device, reason)
    return work(torch.device("cpu"))


def free_bytes(
    device: torch.device,
    limit_mb: float | None = None,
    *,
    proc: Path = PROC,
    cgroup: Path = CGROUP,
) -> int:
    """Memory that a network may take on a device now, in bytes.

    Parameters
    ----------
    device : of a GPU, what its driver says is free; of the processor, the least of what the
        machine, the control groups (versions 1 and 2), ``ulimit -v`` and ``limit_mb`` leave
    limit_mb : what this whole process may take, in 2^20 bytes
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(GPU_SHARE * (free + held))
    resident, virtual = _own(proc)
    limits = [_available(proc)]
    limits += [top - used for top, used in _groups(proc, cgroup)]
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        limits.append(soft - virtual)
    if limit_mb is not None:
        limits.append(int(limit_mb * 2**20) - resident)
    return max(min(limits) - SPARE_CPU, 0)


#: numbers by which glibc's mallopt (malloc.h) knows its settings
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_KEEPING = threading.Lock()
_keepers = 0  # how many want what is freed to be kept


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """What this process frees stays with it for a while, and goes back to the system at the end of the outermost.

    A convolution's result is a new array each time.  Left to itself glibc gives large ones back to
    the system at once, and their pages are handed out, zeroed, anew: on two cores the published
    network took a tenth longer.  Nothing happens with another C library.
    """
    library = ctypes.CDLL(None)
    known = hasattr(library, "mallopt") and hasattr(library, "malloc_trim")
    global _keepers
    with _KEEPING:
        _keepers += 1
    if known:
        library.mallopt(_MMAP_THRESHOLD, 2**30)
        library.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        library.mallopt(_ARENA_MAX, 1)  # a thread's own arena would keep none of this
    try:
        yield
    finally:
        with _KEEPING:
            _keepers -= 1
            last = _keepers == 0
        if known and last:  # where glibc's own adjustment would end
            library.mallopt(_MMAP_THRESHOLD, 32 * 2**20)
            library.mallopt(_TRIM_THRESHOLD, 64 * 2**20)
            library.malloc_trim(0)


def native_dtype(device: torch.device, *, proc: Path = PROC) -> torch.dtype:
    """bfloat16 where the device multiplies it in hardware, else float32.

    A GPU of compute capability 8 or more does; a processor does whose flags name avx512_bf16 or
    amx_bf16.
    """
    if device.type == "cuda":
        major, _ = torch.cuda.get_device_capability(device)
        return torch.bfloat16 if major >= 8 else torch.float32
    for line in _text(proc / "cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "flags":
            if {"avx512_bf16", "amx_bf16"} & set(value.split()):
                return torch.bfloat16
            break
    return torch.float32


def _own(proc: Path) -> tuple[int, int]:
    """Resident and virtual size of this process, bytes."""
    sizes = {"VmRSS": 0, "VmSize": 0}
    for line in _text(proc / "self" / "status").splitlines():
        name, _, value = line.partition(":")
        if name in sizes:
            sizes[name] = int(value.split()[0]) * 1024
    return sizes["VmRSS"], sizes["VmSize"]


def _available(proc: Path) -> int:
    for line in _text(proc / "meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 4 * 2**30  # a system without /proc


def _groups(proc: Path, cgroup: Path) -> Iterator[tuple[int, int]]:
    """(limit, used) of this process's control group and of those above it."""
    for line in _text(proc / "self" / "cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "memory" not in controllers.split(","):
            continue
        root = cgroup / "memory" if controllers else cgroup
        here = root / path.lstrip("/")
        for folder in (here, *here.parents):
            for top, used in (
                ("memory.max", "memory.current"),
                ("memory.limit_in_bytes", "memory.usage_in_bytes"),
            ):
                limit, taken = _text(folder / top).strip(), _text(folder / used).strip()
                if limit.isdigit() and taken.isdigit():
                    yield int(limit), int(taken) - _reclaimable(folder)
            if folder == root:
                break


def _reclaimable(folder: Path) -> int:
    """Cached files that the kernel counts as used and gives up when asked."""
    for line in _text(folder / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file") and value.isdigit():
            return int(value)
    return 0


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
