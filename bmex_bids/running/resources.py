# SPDX-License-Identifier: Apache-2.0
"""How much of the machine this process may use: what the kernel, the container and SLURM allow."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

CGROUP_ROOT = Path("/sys/fs/cgroup")
PROC = Path("/proc")
#: processors of a task, and of the job on this node
SLURM_CPUS = ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE")


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
