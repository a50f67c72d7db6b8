# SPDX-License-Identifier: Apache-2.0
"""SLURM's three commands that we need: sbatch, squeue, scontrol.

``sacct`` is never asked: many clusters keep no accounts, and what is done stands in the output.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bmex_bids.exceptions import EnvironmentProblem

#: SLURM's default of MaxArraySize; array indices are below it
DEFAULT_ARRAY_SIZE = 1001
TIMEOUT_S = 120.0
#: states of squeue in which a task will not go on
ENDED = frozenset(
    "BOOT_FAIL CANCELLED COMPLETED COMPLETING DEADLINE FAILED NODE_FAIL OUT_OF_MEMORY PREEMPTED "
    "REVOKED TIMEOUT".split()
)


@dataclass(frozen=True)
class QueuedTask:
    """One job, or one task of an array, that waits or runs.

    Attributes
    ----------
    name : of the job
    job : number of the job or of the whole array
    index : in the array; None for a job that is none
    state : in SLURM's words
    """

    name: str
    job: str
    index: int | None
    state: str


def submit_job(script: Path, dependencies: Sequence[str] = ()) -> str:
    """Submit a script from its own folder and return the job's number.

    Parameters
    ----------
    dependencies : numbers of jobs that must have ended, well or not

    Raises
    ------
    EnvironmentProblem
        There is no sbatch, or it refuses.
    """
    command = ["sbatch", "--parsable"]
    if dependencies:
        command.append(f"--dependency=afterany:{':'.join(dependencies)}")
    answer = _run([*command, script.name], script.parent)
    lines = answer.strip().splitlines()  # sites' own messages may come before the number
    number = lines[-1].partition(";")[0] if lines else ""  # "123" or "123;cluster"
    if not number.isdigit():
        raise EnvironmentProblem(
            f"expected a job's number from sbatch, got {answer!r}; see squeue whether it was "
            "submitted anyway"
        )
    return number


def queued() -> list[QueuedTask]:
    """This user's jobs that wait or run, each task of an array by itself (EnvironmentProblem)."""
    lines = _run(
        ["squeue", "--noheader", "--array", f"--user={os.getuid()}", "--format=%F|%K|%T|%j"]
    ).splitlines()
    tasks = []
    for line in lines:
        parts = line.strip().split("|", 3)
        if len(parts) == 4 and parts[2] not in ENDED:
            job, index, state, name = parts
            tasks.append(QueuedTask(name, job, int(index) if index.isdigit() else None, state))
    return tasks


def array_size() -> int:
    """The most tasks an array may have here; SLURM's default where it cannot be asked."""
    try:
        answer = _run(["scontrol", "show", "config"])
    except EnvironmentProblem:
        return DEFAULT_ARRAY_SIZE
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", answer, re.M)
    return max(1, int(found[1]) if found else DEFAULT_ARRAY_SIZE)


def _run(command: Sequence[str], folder: Path | None = None) -> str:
    """Standard output of one of SLURM's commands."""
    name = command[0]
    try:
        done = subprocess.run(  # noqa: S603 - a list, no shell
            command,
            cwd=folder,
            env=_environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
        )
    except FileNotFoundError as error:
        raise EnvironmentProblem(
            f"expected SLURM's {name} on this machine, found none; run this on a login node of the "
            "cluster, or add --dry-run, which only writes the scripts"
        ) from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EnvironmentProblem(
            f"expected an answer of {name}, got: {error}; try later"
        ) from error
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())
        raise EnvironmentProblem(
            f"expected {name} to succeed, got code {done.returncode}: {said}; correct what it names "
            "(--nprocs, --mem-mb, --partition, --account, --time-limit, --slurm-option …), or try "
            "later"
        )
    return done.stdout


def _environment() -> dict[str, str]:
    """Ours without what would change the commands' answers or a job's size.

    Within a job, SLURM_MEM_PER_NODE and its like describe that job, and sbatch would hand them on.
    """
    return {
        name: value
        for name, value in os.environ.items()
        if not re.match(r"(SLURM|SQUEUE|SBATCH)_", name) or name in KEPT
    }


#: where SLURM is, and what sites tell their users to set
KEPT = frozenset(
    "SLURM_CONF SLURM_CLUSTERS SBATCH_ACCOUNT SBATCH_PARTITION SBATCH_QOS SBATCH_RESERVATION "
    "SBATCH_CLUSTERS SQUEUE_CLUSTERS".split()
)
