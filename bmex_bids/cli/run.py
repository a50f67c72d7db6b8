# SPDX-License-Identifier: Apache-2.0
"""``bmex``: plan, build, run, and an exit code that says how it went."""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from bmex_bids.cli.parser import parse
from bmex_bids.cli.streams import forgiving
from bmex_bids.config import Config
from bmex_bids.exceptions import BmexError, NoInputError, UsageError
from bmex_bids.running import folders, interrupts, plan_view, planning, status
from bmex_bids.running.plan_view import Task
from bmex_bids.running.progress import Progress, Sparingly
from bmex_bids.running.resources import available_memory_gb, refuse_too_little, within_machine

if TYPE_CHECKING:
    from bmex_bids.inputs.not_taken import NotTaken
    from bmex_bids.inputs.plan import PlannedImage


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``bmex`` with a command line and return its exit code."""
    with forgiving():
        return _main(argv)


def _main(argv: Sequence[str] | None) -> int:
    try:
        config = _within_machine(parse(argv))
        with _surroundings(config):
            return _run(config)
    except BmexError as error:
        print(f"bmex: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as stop:
        print(
            "bmex: interrupted; what is in the output is complete, and the same command goes on "
            "from there",
            file=sys.stderr,
        )
        return interrupts.exit_code(stop)


def _within_machine(config: Config) -> Config:
    """The same, with the processors and memory that are there, where this process does the work."""
    if config.cluster.submit or config.execution.plugin_file is not None:
        return config
    resources = within_machine(config.resources, say=lambda line: _say(line, sys.stderr))
    return dataclasses.replace(config, resources=resources)


@contextmanager
def _surroundings(config: Config) -> Iterator[None]:
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


def _run(config: Config) -> int:
    """All that the analysis levels ask for, and the worst exit code."""
    execution = config.execution
    if execution.boilerplate_only:
        return _boilerplate_only(config)
    if config.cluster.submit:
        return _submit(config)
    code = status.EXIT_DONE
    if "participant" in config.analysis_levels:
        code = _reports_only(config) if execution.reports_only else _participant(config)
    if "group" in config.analysis_levels:
        try:
            _group_plan(config) if execution.dry_run else _group(config)
        except NoInputError as error:
            if code == status.EXIT_DONE:
                raise
            _say(f"no group level: {error}")  # and what went wrong before keeps its exit code
    return code


def _submit(config: Config) -> int:
    """``--submit``: a cluster does it."""
    from bmex_bids.slurm import submit

    tasks = []
    refuse_too_little(config.resources)  # at once: before the dataset is read
    if "participant" in config.analysis_levels:
        if not config.execution.skip_bids_validation:
            _validate(config)
        planned, not_taken = planning.survey(config)
        for line in plan_view.lines_of_not_taken(not_taken):
            _say(line)
        tasks = [planning.task(config, image, quick=True) for image in planned]
        _refuse_nothing([task.planned for task in tasks])
    return submit.submit(config, tasks, say=_say)


def _participant(config: Config) -> int:
    from bmex_bids.running import address_space

    start = time.monotonic()
    refuse_too_little(config.resources)  # at once: before the dataset is read
    address_space.prepare()
    _plugin(config.execution.plugin_file)  # a fault of it is said before anything is done
    if not config.execution.skip_bids_validation:
        _validate(config)
    planned, not_taken = planning.survey(config)
    device = _device(config) if any(i.runnable for i in planned) else config.processing.device
    tasks = [planning.task(config, image) for image in planned]
    if config.execution.dry_run:
        return _dry_run(config, tasks, device, not_taken)
    for line in plan_view.table(tasks, device, not_taken):
        _say(line)
    _refuse_nothing(planned)
    planning.try_weights(tasks)
    folders.prepare(config)
    folders.clear_abandoned(config.paths.output_dir, planned)
    rows = _process(config, tasks, device, not_taken)
    return _finish(config, tasks, rows, time.monotonic() - start)


def _refuse_nothing(planned: Sequence[PlannedImage]) -> None:
    if not any(image.runnable for image in planned):
        raise NoInputError(
            f"expected at least one image that can be processed, found {len(planned)} and none of "
            "them can; the reasons are above"
        )


def _dry_run(
    config: Config, tasks: Sequence[Task], device: str, not_taken: Sequence[NotTaken]
) -> int:
    from bmex_bids.running.pace import pace

    threads = config.resources.omp_nthreads
    speed = pace(config, tasks, device) if any(task.to_run for task in tasks) else None
    if config.execution.dry_run == "json":
        print(
            plan_view.as_json(
                tasks,
                bids_dir=config.paths.bids_dir,
                output_dir=config.paths.output_dir,
                device=device,
                threads=threads,
                pace=speed,
                not_taken=not_taken,
            )
        )
    else:
        for line in plan_view.table(tasks, device, not_taken):
            _say(line)
        print(*plan_view.estimates(tasks, device, threads, speed), sep="\n")
    _refuse_nothing([task.planned for task in tasks])
    missing = any(item.asked_for for item in not_taken)
    return status.EXIT_PARTIAL if missing else status.EXIT_DONE


def _validate(config: Config) -> None:
    bids_dir = config.paths.bids_dir
    from bmex_bids.running.validation import PROGRAM, refuse_fatal, summary, validate

    errors = validate(bids_dir, config.selection.participants)
    if errors is None:
        print(f"bmex: {PROGRAM} could not be run; going on without validation", file=sys.stderr)
    elif errors:
        print(
            f"bmex: {PROGRAM} found {len(errors)} errors in {bids_dir}; images that can be "
            "read are processed all the same:",
            *summary(errors),
            sep="\n",
            file=sys.stderr,
        )
        refuse_fatal(errors)


def _device(config: Config) -> str:
    """``cpu``, ``cuda`` or ``cuda:N``; a GPU that is asked for and absent is a DeviceError."""
    from bmex_bids.network.devices import resolve_device

    return str(resolve_device(config.processing.device))


def _process(
    config: Config, tasks: Sequence[Task], device: str, not_taken: Sequence[NotTaken]
) -> list[status.Row]:
    """Run the workflow; keep the status table up to date; return its rows."""
    from bmex_bids.outputs.dataset import write_dataset
    from bmex_bids.outputs.records import read_record
    from bmex_bids.outputs.status import write_status
    from bmex_bids.running import execution
    from bmex_bids.workflows import base

    execution.configure(
        crash_dir=config.log_dir,
        verbosity=config.execution.verbosity,
        stop_on_first_crash=config.execution.stop_on_first_crash,
        resource_monitor=config.execution.resource_monitor,
    )
    to_run = status.in_order(
        [task for task in tasks if task.to_run],
        status.left_running(config.log_dir),
    )
    with execution.uncollected():
        workflows = [_image_workflow(config, task, device) for task in to_run]
        whole = base.init_run_wf(workflows, work_dir=config.paths.work_dir)

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
            folders.drop(config.paths.work_dir / base.RUN_WORKFLOW, progress)

    note = Sparingly(write_table)
    progress = Progress(
        {
            workflow.name: (task.name, execution.steps_of(workflow))
            for workflow, task in zip(workflows, to_run, strict=True)
        },
        say=_say,
        changed=note,
    )
    write_dataset(config.paths.bids_dir, config.paths.output_dir)
    note(progress)
    if config.execution.write_graph and to_run:
        _say(f"graph: {execution.write_graph(workflows[0], config.log_dir)}")
    try:
        if to_run:
            execution.run(
                whole,
                listener=progress,
                order=[workflow.name for workflow in workflows],
                nprocs=config.resources.nprocs,
                memory_gb=config.resources.mem_gb or 0.9 * available_memory_gb(),
                gpu_slots=config.resources.gpu_slots if device.startswith("cuda") else 0,
                verbosity=config.execution.verbosity,
                one_at_a_time=config.resources.low_mem,
                plugin=_plugin(config.execution.plugin_file),
                monitor_file=config.log_dir / "resource_monitor.json"
                if config.execution.resource_monitor
                else None,
            )
    finally:
        progress.end()
        write_table(progress)
    return status.status_rows(tasks, progress, committed=committed, not_taken=not_taken)


def _image_workflow(config: Config, task: Task, device: str) -> Any:
    from bmex_bids.workflows.base import init_image_wf

    if task.weights is None:
        raise ValueError(f"expected an image with weights, got {task.name} without")
    processing = config.processing
    return init_image_wf(
        task.planned,
        bids_dir=config.paths.bids_dir,
        output_dir=config.paths.output_dir,
        weights=task.weights,
        strip_weights=task.strip_weights,
        skull_strip=processing.skull_strip,
        output_res=processing.output_res,
        qc_only=processing.qc_only,
        fingerprint=task.fingerprint,
        device=device,
        use_gpu=device.startswith("cuda"),
        low_mem=config.resources.low_mem,
        geometry=processing.geometry,
        mirroring=processing.mirroring,
        precision=processing.precision,
        memory_limit_gb=config.resources.mem_gb,
        omp_nthreads=config.resources.omp_nthreads,
    )


def _plugin(path: Path | None) -> tuple[str, dict[str, Any]] | None:
    """Name and arguments of a Nipype plugin, from fMRIPrep's kind of file."""
    if path is None:
        return None
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UsageError(f"expected YAML in {path}, got: {error}; mend the file") from error
    arguments = content.get("plugin_args") or {} if isinstance(content, dict) else None
    if not isinstance(arguments, dict) or not isinstance(content.get("plugin"), str):
        raise UsageError(
            f"expected the keys plugin (a name, such as MultiProc or SLURM) and plugin_args (a "
            f"table) in {path}, got {content!r}; mend the file"
        )
    for name, least in (("n_procs", 1), ("memory_gb", 0.1), ("n_gpu_procs", 0)):
        value = arguments.get(name, least)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= least:
            raise UsageError(
                f"expected {name} of {least} or more in {path}, got {value!r}; mend the file"
            )
    return content["plugin"], arguments


def _say(line: str, stream: TextIO | None = None) -> None:
    """Print a line; what a dataset smuggles into it cannot steer the terminal."""
    plain = "".join(sign if sign.isprintable() else "\ufffd" for sign in line)
    print(plain, file=stream, flush=True)


def _finish(
    config: Config, tasks: Sequence[Task], rows: Sequence[status.Row], seconds: float
) -> int:
    """Reports, methods text, a summary, and the exit code; all from the rows of the table."""
    output_dir = config.paths.output_dir
    if not config.execution.skip_boilerplate:
        _write_citation(config)
    _write_pages(config, [task.planned for task in tasks])
    for line in status.complaints(rows):
        print(f"bmex: {line}", file=sys.stderr)
    print(
        f"{status.summary(rows)} in {seconds:.0f} s\noutput: {output_dir}\nlog: {config.log_dir}"
    )
    return status.exit_code(rows)


def _write_pages(config: Config, planned: Sequence[PlannedImage]) -> list[Path]:
    """A page for each participant and session of the plan, also where nothing came out."""
    from bmex_bids.reports.individual import write_subject_report

    pages = {(image.image.subject, image.image.session) for image in planned}
    return [
        write_subject_report(config.paths.output_dir, subject, session)
        for subject, session in sorted(pages, key=lambda page: (page[0], page[1] or ""))
    ]


def _write_citation(config: Config) -> list[Path]:
    """The methods text, from what the output says was done."""
    from bmex_bids.reports.methods import collect_facts, write_citation

    return write_citation(
        config.paths.output_dir,
        collect_facts(config.paths.output_dir),
        markdown_only=config.execution.md_only_boilerplate,
    )


def _reports_only(config: Config) -> int:
    """``--reports-only``: the pages again, from what is in the output."""
    for page in _write_pages(config, planning.plan(config)):
        print(page)
    return status.EXIT_DONE


def _boilerplate_only(config: Config) -> int:
    """``--boilerplate-only``: the methods text, from what is in the output."""
    for path in _write_citation(config):
        print(path)
    return status.EXIT_DONE


def _group_plan(config: Config) -> None:
    """``--dry-run`` of the level ``group``: what it would read and write."""
    from bmex_bids.outputs.records import find_records

    if config.execution.dry_run == "json":
        return  # the table of images alone is JSON
    output_dir = config.paths.output_dir
    names = [image.source.suffix for image in find_records(output_dir)]
    for suffix in config.selection.modalities:
        files = f"group_{suffix}.tsv and group_{suffix}.html in {output_dir}"
        count = names.count(suffix)
        print(
            f"group: {count} {suffix} image{'' if count == 1 else 's'} with results; would write "
            f"{files}"
            if count
            else f"group: no {suffix} image has results yet in {output_dir}"
        )


def _group(config: Config) -> None:
    """Analysis level ``group``: tables and pages over all images in the output.

    The participants' pages are put together again: they link to the group's, and show the methods text,
    which may have come after them or know more images now.
    """
    from bmex_bids.reports.group import write_group
    from bmex_bids.reports.individual import pages_there, write_subject_report

    for path in write_group(
        config.paths.output_dir, config.paths.bids_dir, config.selection.modalities
    ):
        print(path)
    for page in pages_there(config.paths.output_dir):
        write_subject_report(config.paths.output_dir, page.subject, page.session)


if __name__ == "__main__":
    sys.exit(main())
