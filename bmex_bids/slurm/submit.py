# SPDX-License-Identifier: Apache-2.0
"""``--submit slurm``: what is unfinished goes to a cluster, one task a participant.

Nothing is kept but files in ``OUTPUT/logs/slurm/<submission>/``, and the output itself says what is
finished, so that a second call after anything at all submits the rest:

=====================  ======================================================================
``participants.txt``   one participant a line; task *i* takes the *i*-th, or the *i*-th lot
``config.toml``        the flags of the command, for ``--config-file``
``participants.sh``    the array job
``group.sh``           the group job, which waits for the array, well ended or not
``submit.sh``          submits both by hand, after ``--dry-run``
``submission.json``    numbers of the jobs
``task-*.log``         what each task says
=====================  ======================================================================
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from bmex_bids import __version__
from bmex_bids.config import TASK_MEM_GB, Cluster, Config
from bmex_bids.exceptions import EnvironmentProblem, OutputError
from bmex_bids.running.status import EXIT_DONE
from bmex_bids.slurm import commands, scripts
from bmex_bids.slurm.scripts import Jobs

if TYPE_CHECKING:
    from bmex_bids.running.plan_view import Task

#: of a task's memory, what bmex plans with; the rest is for what it cannot foresee
MEMORY_SHARE = 0.9
#: a lock of this age is nobody's any more
STALE_S = 900.0
JOB_PREFIX, GROUP_SUFFIX = "bmex_", "_group"
LIST, SETTINGS, NOTE = "participants.txt", "config.toml", "submission.json"


@dataclass
class Waiting:
    """What earlier calls submitted for this output and has not ended.

    Attributes
    ----------
    participants : label with prefix → number of its array job
    arrays, groups : numbers of jobs
    """

    participants: dict[str, str] = field(default_factory=dict)
    arrays: set[str] = field(default_factory=set)
    groups: set[str] = field(default_factory=set)


def submit(config: Config, tasks: Sequence[Task], *, say: Callable[[str], None]) -> int:
    """Write the scripts of what is left to do, and submit them; return the exit code.

    Parameters
    ----------
    tasks : all images of the plan; none with the level ``group`` alone
    say : where a line of the summary goes

    Raises
    ------
    EnvironmentProblem
        SLURM is not there or refuses, or another submission of this output is under way.
    UsageError
        An option that sbatch could not take, or an array that is too large.
    OutputError
        The output folder cannot be written.
    """
    dry = bool(config.execution.dry_run)
    with _alone(config.paths.output_dir / "logs" / "slurm") as folder:
        waiting = _waiting(folder, dry, say)
        unfinished = _participants(task for task in tasks if task.to_run)
        labels = [label for label in unfinished if label not in waiting.participants]
        _say_plan(tasks, unfinished, labels, say)
        group = bool(labels) or (
            not waiting.groups and (bool(waiting.arrays) or "group" in config.analysis_levels)
        )
        if not group:
            say("nothing to submit")
            return EXIT_DONE
        jobs = _jobs(config, labels, tasks, sorted(waiting.arrays), folder)
        _write(config, jobs, labels)
        if dry:
            say(
                f"nothing was submitted; to submit it: bash {shlex.quote(str(jobs.folder / 'submit.sh'))}"
            )
        else:
            _submit(jobs, say)
    return EXIT_DONE


@contextmanager
def _alone(folder: Path) -> Iterator[Path]:
    """Make the folder of all submissions; two calls at once would submit everything twice."""
    lock = folder / "submitting"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.mkdir()  # is atomic on network file systems, too
        except FileExistsError:
            if time.time() - lock.stat().st_mtime < STALE_S:
                raise EnvironmentProblem(
                    f"expected no other submission to {folder.parent.parent} under way, found "
                    f"{lock}; wait for it, or remove that folder if there is none"
                ) from None
            with suppress(OSError):  # refused by some file systems
                os.utime(lock)
    except OSError as error:
        raise OutputError(
            f"expected a folder that can be written at {folder}, got: {error.strerror or error}; "
            "name another output folder, or change its permissions"
        ) from error
    try:
        yield folder
    finally:
        lock.rmdir()


def _waiting(folder: Path, dry: bool, say: Callable[[str], None]) -> Waiting:
    """What is in the queue, by the names of jobs, which are those of submissions' folders."""
    waiting = Waiting()
    try:
        queue = commands.queued()
    except EnvironmentProblem as error:
        if not dry:
            raise
        say(f"the state of the queue is unknown: {error}")
        return waiting
    lists: dict[str, list[list[str]]] = {}
    for task in queue:
        name = task.name.removeprefix(JOB_PREFIX)
        submission = name.removesuffix(GROUP_SUFFIX)
        if name == task.name or not (folder / submission / NOTE).is_file():
            continue
        if name != submission:
            waiting.groups.add(task.job)
            continue
        if submission not in lists:
            lists[submission] = _lots(folder / submission)
        waiting.arrays.add(task.job)
        if task.index is not None and task.index < len(lists[submission]):
            waiting.participants |= dict.fromkeys(lists[submission][task.index], task.job)
    return waiting


def _lots(folder: Path) -> list[list[str]]:
    """The participants of each task of an earlier submission."""
    labels = (folder / LIST).read_text(encoding="utf-8").split("\n")
    size = int(json.loads((folder / NOTE).read_text(encoding="utf-8"))["ParticipantsPerTask"])
    labels = [label for label in labels if label]
    return [labels[start : start + size] for start in range(0, len(labels), size)]


def _participants(tasks: Iterable[Task]) -> list[str]:
    """``sub-<label>`` of each participant, in the plan's order, once."""
    return list(dict.fromkeys(f"sub-{task.planned.image.subject}" for task in tasks))


def _say_plan(
    tasks: Sequence[Task],
    unfinished: Sequence[str],
    labels: Sequence[str],
    say: Callable[[str], None],
) -> None:
    if not tasks:
        return
    for task in tasks:
        if not task.planned.runnable:
            say(f"  {task.name}: skipped: {task.planned.skip_reason}")
    runnable = _participants(task for task in tasks if task.planned.runnable)
    say(
        f"{_counted(len(runnable), 'participant')}: {len(runnable) - len(unfinished)} finished, "
        f"{len(unfinished) - len(labels)} in the queue, {len(labels)} to submit"
    )


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _jobs(
    config: Config,
    labels: Sequence[str],
    tasks: Sequence[Task],
    wait_for: Sequence[str],
    folder: Path,
) -> Jobs:
    """Everything that the scripts say."""
    cluster, paths = config.cluster, config.paths
    number, per_task = scripts.tasks_for(len(labels), cluster.per_task, commands.array_size())
    options = {
        name: scripts.checked_value(f"--{name}", value)
        for name, value in (
            ("partition", cluster.partition),
            ("account", cluster.account),
            ("gres", cluster.gres),
            ("time", cluster.time_limit),
        )
        if value is not None
    } | scripts.parse_options(cluster.options)
    images = dict.fromkeys(labels, 0)
    for task in tasks:
        label = f"sub-{task.planned.image.subject}"
        images[label] = images.get(label, 0) + task.to_run
    limit = scripts.minutes_for(per_task * max(images.values(), default=1))
    pythonpath = os.environ.get("PYTHONPATH")
    return Jobs(
        name=f"{JOB_PREFIX}{config.run_id}",
        folder=folder / config.run_id,
        work_dir=paths.work_dir,
        bids_dir=paths.bids_dir,
        output_dir=paths.output_dir,
        tasks=number,
        per_task=per_task,
        max_running=cluster.max_running,
        cpus=config.resources.nprocs,
        mem_mb=math.ceil(1024 * (config.resources.mem_gb or TASK_MEM_GB)),
        minutes=None if "time" in options else limit,
        options=options,
        gpu=scripts.wants_gpu(cluster.partition, options, config.processing.device),
        command=[sys.executable, "-m", "bmex_bids"],
        container=cluster.container,
        binds=tuple(dict.fromkeys(config.mounts())) if cluster.container else (),
        variables={"PYTHONPATH": pythonpath} if pythonpath and not cluster.container else {},
        wait_for=wait_for,
        version=__version__,
    )


def task_config(config: Config) -> Config:
    """What a task is told: the flags of the command, but for what is this call's own business."""
    memory = MEMORY_SHARE * (config.resources.mem_gb or TASK_MEM_GB)
    return dataclasses.replace(
        config,
        analysis_levels=("participant",),
        cluster=Cluster(),
        # a task looks at its own participants' folders: quicker than an index of all
        selection=dataclasses.replace(config.selection, participants=None, database_dir=None),
        resources=dataclasses.replace(config.resources, mem_gb=round(memory, 2)),
        execution=dataclasses.replace(
            config.execution,
            dry_run="",
            clean_workdir=False,
            skip_bids_validation=True,
            skip_boilerplate=True,
            drop_workdir=True,
        ),
    )


def _write(config: Config, jobs: Jobs, labels: Sequence[str]) -> None:
    """The files of a submission (OutputError)."""
    from bmex_bids.outputs.files import write_json, write_text

    texts = {
        LIST: "".join(f"{label}\n" for label in labels),
        SETTINGS: task_config(config).to_toml(),
        "submit.sh": scripts.submit_script(jobs),
        "group.sh": scripts.group_script(jobs),
    }
    if jobs.tasks:
        texts["participants.sh"] = scripts.array_script(jobs)
    for name, text in texts.items():
        write_text(jobs.folder / name, text)
    write_json(jobs.folder / NOTE, _note(jobs))


def _note(jobs: Jobs, **numbers: str) -> Mapping[str, object]:
    return {
        "Name": jobs.name,
        "Version": jobs.version,
        "Tasks": jobs.tasks,
        "ParticipantsPerTask": jobs.per_task,
        **numbers,
    }


def _submit(jobs: Jobs, say: Callable[[str], None]) -> None:
    from bmex_bids.outputs.files import write_json

    numbers: dict[str, str] = {}
    before = list(jobs.wait_for)
    if jobs.tasks:
        numbers["ArrayJob"] = commands.submit_job(jobs.folder / "participants.sh")
        before.append(numbers["ArrayJob"])
        write_json(jobs.folder / NOTE, _note(jobs, **numbers))
        several = f", {jobs.per_task} participants each" if jobs.per_task > 1 else ""
        say(
            f"array job {numbers['ArrayJob']}: {_counted(jobs.tasks, 'task')}{several}, at most "
            f"{jobs.max_running} at once, {jobs.cpus} processors and {jobs.mem_mb} MB each"
        )
    try:
        numbers["GroupJob"] = commands.submit_job(jobs.folder / "group.sh", before)
    except EnvironmentProblem as error:
        if not jobs.tasks:
            raise
        raise EnvironmentProblem(
            f"the array job {numbers['ArrayJob']} was submitted, the group job was not: {error}; "
            "when the array has ended, run the level group"
        ) from error
    write_json(jobs.folder / NOTE, _note(jobs, **numbers))
    after = f" after {', '.join(before)}" if before else ""
    say(f"group job {numbers['GroupJob']}{after}")
    say(f"scripts and logs: {jobs.folder}")
    say(f"watch: squeue --array --job {','.join(numbers.values())}")
    say(f"cancel: scancel {' '.join(numbers.values())}")
    say("when they have ended, the same command submits what is unfinished")
