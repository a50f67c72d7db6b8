# SPDX-License-Identifier: Apache-2.0
"""The shell scripts of a submission, as text.

Whatever comes from a user stands in single quotes (``shlex.quote``) or in a file that a script
reads; nothing is ever taken for shell.  What a task shall do is not in its script either: it is in
``config.toml``, the flags of the user's command.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bmex_bids.exceptions import UsageError

#: what these scripts set themselves
OWN_OPTIONS = frozenset(
    "array chdir cpus-per-task dependency error job-name mem nodes ntasks open-mode output "
    "parsable requeue wait wrap".split()
)
GPU_OPTION = re.compile(r"gres|gpus?(-.*)?|.*-per-gpu|tres-per-.*")
#: the group job reads sidecars only
GROUP_CPUS, GROUP_MEM_MB, GROUP_MINUTES = 1, 4096, 240


@dataclass(frozen=True)
class Jobs:
    """All that the scripts of one submission are made from.

    Attributes
    ----------
    name : of the array job; the group job is ``<name>_group``
    folder : of this submission, with config.toml and participants.txt
    work_dir : each task has a folder of its own in it
    bids_dir, output_dir : the two datasets
    tasks, per_task : number of tasks, and participants of each
    max_running : tasks at once
    cpus, mem_mb, minutes : of one task
    options : of sbatch, name without dashes → value, such as ``{"partition": "gpu"}``
    gpu : whether one is asked for
    command : of the current environment, to run bmex; unused with a container
    container : image file of Apptainer or Singularity
    binds : paths a container needs, and whether it may write there
    variables : of the environment that tasks get
    wait_for : numbers of earlier jobs that the group job waits for, too
    version : of bmex_bids
    """

    name: str
    folder: Path
    work_dir: Path
    bids_dir: Path
    output_dir: Path
    tasks: int
    per_task: int
    max_running: int
    cpus: int
    mem_mb: int
    minutes: int | None
    options: Mapping[str, str]
    gpu: bool
    command: Sequence[str]
    container: Path | None = None
    binds: Sequence[tuple[Path, bool]] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    wait_for: Sequence[str] = ()
    version: str = ""


def array_script(jobs: Jobs) -> str:
    """One task: its participants, with the flags of ``config.toml``."""
    run = " \\\n    ".join(
        [
            *_runner(jobs),
            shlex.quote(str(jobs.bids_dir)),
            shlex.quote(str(jobs.output_dir)) + " participant",
            '--config-file "$folder/config.toml"',
            '--work-dir "$work"',
            '--participant-label "${labels[@]}"',
        ]
    )
    head = _head(
        jobs,
        jobs.name,
        {
            "array": f"0-{jobs.tasks - 1}%{jobs.max_running}",
            "output": log_path(jobs.folder, "task-%a.log"),
            "open-mode": "append",
            "requeue": "",
            "nodes": "1",
            "ntasks": "1",
            "cpus-per-task": str(jobs.cpus),
            "mem": f"{jobs.mem_mb}M",
            **({"time": str(jobs.minutes)} if jobs.minutes else {}),
            **jobs.options,
        },
    )
    return f"""\
{head}
# participants of this task: lines first ... last of the list
first=$((SLURM_ARRAY_TASK_ID * {jobs.per_task} + 1))
last=$((first + {jobs.per_task} - 1))
mapfile -t labels < <(sed -n "${{first}},${{last}}p" "$folder/participants.txt")
if [ "${{#labels[@]}}" -eq 0 ]; then
    echo "expected participants in lines $first to $last of $folder/participants.txt, got none" >&2
    exit 2
fi
work={shlex.quote(str(jobs.work_dir))}/"${{labels[0]}}"
mkdir -p "$work" || exit 5
echo "task $SLURM_ARRAY_TASK_ID of job $SLURM_ARRAY_JOB_ID on $(hostname): ${{labels[*]}}"
{_setup(jobs)}
# exec: a signal (time limit, scancel) reaches bmex itself, which ends in order
exec {run}
"""


def group_script(jobs: Jobs) -> str:
    """The tables and pages over all images, and the methods text."""
    run = " \\\n    ".join(
        [
            *_runner(jobs, gpu=False),
            shlex.quote(str(jobs.bids_dir)),
            shlex.quote(str(jobs.output_dir)) + " group",
            '--config-file "$folder/config.toml"',
        ]
    )
    options = {name: v for name, v in jobs.options.items() if not GPU_OPTION.fullmatch(name)}
    head = _head(
        jobs,
        f"{jobs.name}_group",
        {
            "output": log_path(jobs.folder, "group.log"),
            "open-mode": "append",
            "nodes": "1",
            "ntasks": "1",
            "cpus-per-task": str(GROUP_CPUS),
            "mem": f"{GROUP_MEM_MB}M",
            **({"time": str(GROUP_MINUTES)} if jobs.minutes else {}),
            **options,
        },
    )
    return f"""\
{head}
work={shlex.quote(str(jobs.work_dir))}
mkdir -p "$work" || exit 5
{_setup(jobs)}
bmex() {{
    {run} "$@"
}}
bmex --boilerplate-only || exit
bmex
"""


def submit_script(jobs: Jobs) -> str:
    """What submits the others by hand, after ``--dry-run``."""
    lines = ["#!/bin/bash", "# Submits the jobs of this folder.", "set -eu"]
    lines += ['cd "$(dirname "$0")"']
    waiting = [*jobs.wait_for]
    if jobs.tasks:
        lines += ["array=$(sbatch --parsable participants.sh)", "array=${array%%;*}"]
        lines += ['echo "array job $array"']
        waiting.append("$array")
    after = f'--dependency="afterany:{":".join(waiting)}" ' if waiting else ""
    lines += [f"group=$(sbatch --parsable {after}group.sh)", 'echo "group job ${group%%;*}"']
    return "\n".join(lines) + "\n"


def log_path(folder: Path, name: str) -> str:
    """Where a job writes what it says, as sbatch wants it.

    A name alone is in the folder the script is submitted from.  SLURM replaces ``%j`` and its like
    in that folder's path, too [ran, 22.05], so such a path is spelt out with doubled marks.

    >>> log_path(Path("/out"), "task-%a.log"), log_path(Path("/50%"), "task-%a.log")
    ('task-%a.log', '/50%%/task-%a.log')
    """
    path = str(folder)
    if "\\" in path or not path.isprintable():
        raise UsageError(
            f"expected an output folder without backslashes and line breaks, which SLURM cannot "
            f"write logs to, got {path!r}; name another"
        )
    return name if "%" not in path else f"{path.replace('%', '%%')}/{name}"


def minutes_for(images: int) -> int:
    """A time limit that is generous for so many images, in minutes."""
    return 30 + 20 * images


def tasks_for(participants: int, per_task: int | None, array_size: int) -> tuple[int, int]:
    """Number of tasks and participants of each; one each, or as many as the array's size needs.

    >>> tasks_for(6, None, 1001), tasks_for(100_000, None, 1001), tasks_for(7, 3, 1001)
    ((6, 1), (1000, 100), (3, 3))
    """
    if per_task is None:
        per_task = max(1, math.ceil(participants / array_size))
    tasks = math.ceil(participants / per_task)
    if tasks > array_size:
        raise UsageError(
            f"expected at most {array_size} tasks, which is what this cluster allows in an array, "
            f"got {participants} participants, {per_task} a task; name more with "
            f"--participants-per-task ({math.ceil(participants / array_size)} or more)"
        )
    return tasks, per_task


def parse_options(values: Sequence[str]) -> dict[str, str]:
    """``NAME=VALUE`` of ``--slurm-option`` as a table; leading dashes may stand or not.

    >>> parse_options(["qos=long", "--exclusive", "constraint=a&b"])
    {'qos': 'long', 'exclusive': '', 'constraint': 'a&b'}
    """
    options = {}
    for text in values:
        name, _, value = text.removeprefix("--").partition("=")
        if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
            raise UsageError(
                f"expected an option of sbatch such as qos=long for --slurm-option, got {text!r}"
            )
        if name in OWN_OPTIONS:
            raise UsageError(
                f"expected an option that bmex does not set itself, got {text!r}; use --nprocs, "
                "--mem-mb, --max-running or --participants-per-task for the tasks' size and number"
            )
        options[name] = checked_value(name, value)
    return options


def checked_value(name: str, value: str) -> str:
    """A value that can stand in a line of a script; UsageError for one that cannot."""
    if not value.isprintable() or any(mark in value for mark in "\"'\\"):
        raise UsageError(
            f"expected a plain value for {name}, without quotes, backslashes and line breaks, got "
            f"{value!r}"
        )
    return value


def wants_gpu(partition: str | None, options: Mapping[str, str], device: str) -> bool:
    """Whether the options ask for a GPU: by name of the partition, by option or by ``--device``.

    >>> wants_gpu("gpu-long", {}, "auto"), wants_gpu(None, {"gres": "gpu:1"}, "auto")
    (True, True)
    >>> wants_gpu("debug", {"gres": "lustre"}, "auto"), wants_gpu(None, {}, "cuda")
    (False, True)
    """
    asked = any(
        re.fullmatch(r"gpus?(-per-.*)?", name) or (GPU_OPTION.fullmatch(name) and "gpu" in value)
        for name, value in options.items()
    )
    return asked or "gpu" in (partition or "").lower() or device.startswith("cuda")


def _head(jobs: Jobs, name: str, options: Mapping[str, str]) -> str:
    lines = ["#!/bin/bash", f"# Written by bmex {jobs.version}; submit.sh submits it."]
    for option, value in {"job-name": name, **options}.items():
        shown = value
        if re.search(r"[\s#\"']", value):
            shown = '"' + value.replace('"', '\\"') + '"'
        lines.append(f"#SBATCH --{option}" + (f"={shown}" if value else ""))
    return "\n".join([*lines, "", "set -u", f"folder={shlex.quote(str(jobs.folder))}"])


def _setup(jobs: Jobs) -> str:
    """The environment of a task, and the program that runs a container."""
    lines = [f"export {name}={shlex.quote(value)}" for name, value in jobs.variables.items()]
    if jobs.container is not None:
        lines += [
            "runner=$(command -v apptainer || command -v singularity) || {",
            '    echo "expected apptainer or singularity on $(hostname), found neither; does this '
            'site need a module?" >&2',
            "    exit 5",
            "}",
        ]
        if jobs.gpu:
            lines += [
                "# --cleanenv drops it, and it says which GPU is ours",
                'if [ -n "${CUDA_VISIBLE_DEVICES:-}" ]; then',
                '    export APPTAINERENV_CUDA_VISIBLE_DEVICES="$CUDA_VISIBLE_DEVICES"',
                '    export SINGULARITYENV_CUDA_VISIBLE_DEVICES="$CUDA_VISIBLE_DEVICES"',
                "fi",
            ]
    return "\n".join(lines)


def _runner(jobs: Jobs, *, gpu: bool | None = None) -> list[str]:
    """Shell words that come before bmex' own."""
    if jobs.container is None:
        return [" ".join(shlex.quote(word) for word in jobs.command)]
    words = ['"$runner" run --cleanenv --no-home']
    if jobs.gpu if gpu is None else gpu:
        words.append("--nv")
    words += _binds(jobs.binds)
    words.append(shlex.quote(str(jobs.container)))
    return words


def _binds(binds: Sequence[tuple[Path, bool]]) -> Iterator[str]:
    """Each path stands at the same place inside; ``--bind`` cannot take a colon or a comma."""
    for path, writable in binds:
        text = str(path)
        if re.search(r'[:,"]', text):
            quoted = text.replace('"', '""')
            mount = f'type=bind,"source={quoted}","destination={quoted}"'
            yield "--mount " + shlex.quote(mount + ("" if writable else ",ro"))
        else:
            yield "--bind " + shlex.quote(f"{text}:{text}" + ("" if writable else ":ro"))
