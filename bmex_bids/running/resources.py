# SPDX-License-Identifier: Apache-2.0
"""How much of the machine this process may use: what the kernel, the container and SLURM allow."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from bmex_bids.config import Resources
from bmex_bids.exceptions import UsageError

CGROUP_ROOT = Path("/sys/fs/cgroup")
PROC = Path("/proc")
#: processors of a task, and of the job on this node
SLURM_CPUS = ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE")
BASE_GB = 0.8  # resident memory of Python, torch and ITK
IMAGE_GB = 0.2  # the least that a step takes for an image


def refuse_too_little(asked: Resources) -> None:
    """UsageError for memory (``--mem-mb``) below what the smallest image needs."""
    if asked.mem_gb is not None and asked.mem_gb < BASE_GB + IMAGE_GB:
        raise UsageError(too_little(asked.mem_gb, BASE_GB + IMAGE_GB, "any image"))


def too_little(given_gb: float, needed_gb: float, what: str) -> str:
    """The words for memory that is not enough; both in 2^30 bytes.

    >>> print(too_little(4 / 1024, 1.0, "any image"))
    expected --mem-mb of at least 1024 MB for any image, got 4 MB; the unit is MB: 4 GB are 4G
    """
    needed, given = math.ceil(needed_gb * 2**10), round(given_gb * 2**10, 3)
    meant = f"{given:g}" if 1 <= given <= 512 else "8"
    return (
        f"expected --mem-mb of at least {needed} MB for {what}, got {given:g} MB; the unit is MB: "
        f"{meant} GB are {meant}G"
    )


def within_machine(asked: Resources, say: Callable[[str], object]) -> Resources:
    """No more than this process may use, whatever the run was told; ``say`` is told what changed.

    More threads or processes than processors only slow each other down, and a library that cannot
    start its threads ends the process; memory that is not there is waited for in vain.
    """
    cpus, memory = available_cpus(), available_memory_gb()
    for flag, number in (("--nprocs", asked.nprocs), ("--omp-nthreads", asked.omp_nthreads)):
        if number > cpus:
            say(f"{flag} {number}: this process may use {cpus} processors; {cpus} are used")
    if asked.mem_gb is not None and asked.mem_gb > memory:
        say(f"--mem-mb of {asked.mem_gb:.1f} GiB: this process may use {memory:.1f} GiB")
    return replace(
        asked,
        nprocs=min(asked.nprocs, cpus),
        omp_nthreads=min(asked.omp_nthreads, cpus),
        mem_gb=None if asked.mem_gb is None else min(asked.mem_gb, memory),
    )


def available_cpus(
    environ: Mapping[str, str] | None = None, *, cgroup: Path = CGROUP_ROOT, proc: Path = PROC
) -> int:
    """Processors this process may use: the least of affinity, cgroup quota and SLURM's share."""
    environ = os.environ if environ is None else environ
    limits = [_affinity()]
    limits += _slurm(environ, *SLURM_CPUS)
    quota = cpu_quota(cgroup=cgroup, proc=proc)
    if quota is not None:
        limits.append(math.ceil(quota))
    return max(1, min(limits))


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_quota(*, cgroup: Path = CGROUP_ROOT, proc: Path = PROC) -> float | None:
    """Processors the cgroup allows (may be a fraction), or None without a limit."""
    quotas = []
    for folder in _groups("cpu", cgroup, proc):
        text = _read(folder / "cpu.max")  # version 2: "200000 100000" or "max 100000"
        if text is not None:
            first, _, period = text.partition(" ")
        else:
            first = _read(folder / "cpu.cfs_quota_us") or ""
            period = _read(folder / "cpu.cfs_period_us") or ""
        if first.isdigit() and period.isdigit() and int(period) > 0:
            quotas.append(int(first) / int(period))
    return min(quotas, default=None)


def available_memory_gb(
    environ: Mapping[str, str] | None = None, *, cgroup: Path = CGROUP_ROOT, proc: Path = PROC
) -> float:
    """Memory this process may use, in 2^30 bytes: the least of the machine, cgroup and SLURM."""
    environ = os.environ if environ is None else environ
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30]
    (cpus,) = _slurm(environ, *SLURM_CPUS) or [1]
    mebibytes = [
        *_slurm(environ, "SLURM_MEM_PER_NODE"),
        *(cpus * each for each in _slurm(environ, "SLURM_MEM_PER_CPU")),
    ]
    limits += [mib / 2**10 for mib in mebibytes if mib > 0]  # 0: all the memory of the node
    for folder in _groups("memory", cgroup, proc):
        for name in ("memory.max", "memory.limit_in_bytes"):
            text = _read(folder / name) or ""
            if text.isdigit():
                limits.append(int(text) / 2**30)
    return min(limits)


def _slurm(environ: Mapping[str, str], *names: str) -> list[int]:
    """The first of these variables that holds a number, alone; empty where none does."""
    return [int(environ[name]) for name in names if environ.get(name, "").isdigit()][:1]


def _groups(controller: str, cgroup: Path, proc: Path) -> Iterator[Path]:
    """The folders of this process's control group and those above it, versions 1 and 2."""
    lines = (_read(proc / "self" / "cgroup") or "").splitlines()
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        root = cgroup / controller if controllers else cgroup
        here = root / path.lstrip("/")
        for folder in (here, *here.parents):
            yield folder
            if folder == root:
                break


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
