# SPDX-License-Identifier: Apache-2.0
"""A run of images that are planned: its surroundings, its workflow, its status table."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bmex_bids.config import Config
from bmex_bids.exceptions import UsageError
from bmex_bids.running import claims, folders, interrupts, status
from bmex_bids.running.plan_view import Task
from bmex_bids.running.progress import Progress, Sparingly
from bmex_bids.running.resources import available_memory_gb

if TYPE_CHECKING:
    from bmex_bids.inputs.not_taken import NotTaken


@contextmanager
def surroundings(config: Config) -> Iterator[None]:
    """Thread limits for the libraries, no call home, and no chatter of libraries without ``-v``.

    Set before anything heavy is loaded, inherited by the worker processes, put back afterwards.
    """
    threads = str(config.resources.omp_nthreads)
    wanted = {
        "OMP_NUM_THREADS": threads,
        # threads that wait turn for microseconds, then let others work (docs/performance.md)
        "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", "3000"),
        "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": threads,
        "NO_ET": "1",
        "NIPYPE_NO_ET": "1",
        # no settings of the user's for other pipelines: a log file that cannot be made ends the run
        "NIPYPE_CONFIG_DIR": os.devnull,
        "MPLBACKEND": "Agg",
    }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    nibabel = logging.getLogger("nibabel.global")  # it speaks of headers without their names
    level = nibabel.level
    if config.execution.verbosity == 0:
        nibabel.setLevel(logging.CRITICAL)
    try:
        with interrupts.handled(), warnings.catch_warnings():
            if config.execution.verbosity == 0:
                warnings.simplefilter("ignore")
            yield
    finally:
        nibabel.setLevel(level)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def device_of(config: Config) -> str:
    """``cpu``, ``cuda`` or ``cuda:N``; a GPU that is asked for and absent is a DeviceError."""
    from bmex_bids.network.devices import resolve_device

    return str(resolve_device(config.processing.device))


@contextmanager
def work_folder(
    config: Config, tasks: Sequence[Task], say: Callable[[str], None]
) -> Iterator[Path]:
    """Where intermediate files lie: the work folder, or one in it for this run alone."""
    from bmex_bids.workflows import base

    shared = config.paths.work_dir
    names = [base.workflow_name(task.name) for task in tasks if task.to_run]
    with claims.own_folder(shared, base.RUN_WORKFLOW, names, config.run_id) as folder:
        if folder != shared:
            say(f"another run processes the same images in {shared}; using {folder}")
        yield folder


def images(
    config: Config,
    tasks: Sequence[Task],
    device: str,
    not_taken: Sequence[NotTaken],
    *,
    work_dir: Path,
    say: Callable[[str], None],
) -> status.Outcome:
    """Run the workflow; keep the status table up to date; return its rows and the failures."""
    from bmex_bids.outputs.dataset import write_dataset
    from bmex_bids.outputs.records import read_record
    from bmex_bids.outputs.status import write_status
    from bmex_bids.running import engine, execution
    from bmex_bids.workflows import base

    engine.configure(
        crash_dir=config.log_dir,
        verbosity=config.execution.verbosity,
        stop_on_first_crash=config.execution.stop_on_first_crash,
        resource_monitor=config.execution.resource_monitor,
    )
    to_run = status.in_order(
        [task for task in tasks if task.to_run],
        status.left_running(config.log_dir),
    )
    with engine.uncollected():
        workflows = [image_workflow(config, task, device) for task in to_run]
        whole = base.init_run_wf(workflows, work_dir=work_dir)

    known: dict[str, Mapping[str, Any]] = {}

    def committed(task: Task) -> Mapping[str, Any] | None:
        if task.name not in known and task.record is not None:
            record = read_record(task.record)
            if record is not None and record.get("Fingerprint") == dict(task.fingerprint or {}):
                known[task.name] = record  # it will not change: read once, however many images
        return known.get(task.name)

    def write_table(progress: Progress) -> None:
        folders.write_settings(config)  # again, where somebody has removed the output in mid-run
        write_status(
            config.log_dir / "status.tsv",
            status.status_rows(tasks, progress, committed=committed, not_taken=not_taken),
        )
        if config.execution.drop_workdir:
            folders.drop(work_dir / base.RUN_WORKFLOW, progress)

    note = Sparingly(write_table)
    progress = Progress(
        {
            workflow.name: (task.name, execution.steps_of(workflow))
            for workflow, task in zip(workflows, to_run, strict=True)
        },
        say=say,
        changed=note,
    )
    write_dataset(config.paths.bids_dir, config.paths.output_dir)
    note(progress)
    if config.execution.write_graph and to_run:
        say(f"graph: {execution.write_graph(workflows[0], config.log_dir)}")
    try:
        if to_run:
            execution.run(
                whole,
                listener=progress,
                order=[workflow.name for workflow in workflows],
                limits=execution.Limits(
                    nprocs=config.resources.nprocs,
                    memory_gb=config.resources.mem_gb or 0.9 * available_memory_gb(),
                    gpu_slots=config.resources.gpu_slots if device.startswith("cuda") else 0,
                    one_at_a_time=config.resources.low_mem,
                ),
                verbosity=config.execution.verbosity,
                plugin=read_plugin(config.execution.plugin_file),
                monitor_file=config.log_dir / "resource_monitor.json"
                if config.execution.resource_monitor
                else None,
            )
    finally:
        progress.end()
        write_table(progress)
    return status.Outcome(
        status.status_rows(tasks, progress, committed=committed, not_taken=not_taken),
        [track.failure for track in progress.tracks.values() if track.failure is not None],
    )


def image_workflow(config: Config, task: Task, device: str) -> Any:
    """The workflow of an image."""
    from bmex_bids.workflows.base import init_image_wf
    from bmex_bids.workflows.request import Machine, Networks, Target

    if task.weights is None:
        raise ValueError(f"expected an image with weights, got {task.name} without")
    processing, resources = config.processing, config.resources
    return init_image_wf(
        task.planned,
        Networks(
            task.weights,
            task.strip_weights,
            task.segment_weights,
            task.super_weights,
            geometry=processing.geometry,
            mirroring=processing.mirroring,
            precision=processing.precision,
            max_change=processing.max_change,
        ),
        Target(
            config.paths.bids_dir,
            config.paths.output_dir,
            output_res=processing.output_res,
            qc_only=processing.qc_only,
            uncertainty=processing.uncertainty,
            segment=processing.segment,
            fingerprint=task.fingerprint,
        ),
        Machine(
            device=device,
            use_gpu=device.startswith("cuda"),
            low_mem=resources.low_mem,
            memory_limit_gb=resources.mem_gb,
            omp_nthreads=resources.omp_nthreads,
        ),
        skull_strip=processing.skull_strip,
        reorient=processing.reorient,
        motion_correction=processing.motion_correction,
    )


def read_plugin(path: Path | None) -> tuple[str, dict[str, Any]] | None:
    """Name and arguments of a Nipype plugin, from fMRIPrep's kind of file."""
    if path is None:
        return None
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UsageError(f"expected YAML in {path}, got: {error}; correct the file") from error
    arguments = content.get("plugin_args") or {} if isinstance(content, dict) else None
    if not isinstance(arguments, dict) or not isinstance(content.get("plugin"), str):
        raise UsageError(
            f"expected the keys plugin (a name, such as MultiProc or SLURM) and plugin_args (a "
            f"table) in {path}, got {content!r}; correct the file"
        )
    for name, least in (("n_procs", 1), ("memory_gb", 0.1), ("n_gpu_procs", 0)):
        value = arguments.get(name, least)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= least:
            raise UsageError(
                f"expected {name} of {least} or more in {path}, got {value!r}; correct the file"
            )
    return content["plugin"], arguments
