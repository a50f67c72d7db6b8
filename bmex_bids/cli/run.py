# SPDX-License-Identifier: Apache-2.0
"""``bmex``: plan, build, run, and an exit code that says how it went."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bmex_bids.cli.ending import ended
from bmex_bids.cli.parser import parse
from bmex_bids.cli.streams import forgiving, say
from bmex_bids.config import Config
from bmex_bids.exceptions import NoInputError
from bmex_bids.running import folders, plan_view, planning, process, status
from bmex_bids.running.plan_view import Task
from bmex_bids.running.resources import refuse_too_little, within_machine

if TYPE_CHECKING:
    from bmex_bids.inputs.not_taken import NotTaken
    from bmex_bids.inputs.plan import PlannedImage


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``bmex`` with a command line and return its exit code."""
    with forgiving():
        return ended(
            "bmex",
            lambda: _main(argv),
            interrupted="interrupted; the files in the output are complete, and the same command "
            "continues",
        )


def _main(argv: Sequence[str] | None) -> int:
    config = _within_machine(parse(argv))
    with process.surroundings(config):
        return _run(config)


def _within_machine(config: Config) -> Config:
    """The same, with the processors and memory that are there, where this process does the work."""
    if config.cluster.submit or config.execution.plugin_file is not None:
        return config
    resources = within_machine(config.resources, say=lambda line: say(line, sys.stderr))
    return dataclasses.replace(config, resources=resources)


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
            _group_dry_run(config) if execution.dry_run else _group(config)
        except NoInputError as error:
            if code == status.EXIT_DONE:
                raise
            say(f"no group level: {error}")  # and what went wrong before keeps its exit code
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
            say(line)
        tasks = [planning.task(config, image, quick=True) for image in planned]
        _refuse_nothing([task.planned for task in tasks])
    return submit.submit(config, tasks, say=say)


def _participant(config: Config) -> int:
    from bmex_bids.running import address_space

    start = time.monotonic()
    refuse_too_little(config.resources)  # at once: before the dataset is read
    address_space.prepare()
    process.read_plugin(
        config.execution.plugin_file
    )  # a fault of it is said before anything is done
    if not config.execution.skip_bids_validation:
        _validate(config)
    planned, not_taken = planning.survey(config)
    device = (
        process.device_of(config) if any(i.runnable for i in planned) else config.processing.device
    )
    tasks = [planning.task(config, image) for image in planned]
    if config.execution.dry_run:
        return _dry_run(config, tasks, device, not_taken)
    for line in plan_view.table(tasks, device, not_taken):
        say(line)
    _refuse_nothing(planned)
    planning.try_weights(tasks)
    folders.prepare(config)
    folders.clear_abandoned(config.paths.output_dir, planned)
    with process.work_folder(config, tasks, say) as work_dir:
        outcome = process.images(config, tasks, device, not_taken, work_dir=work_dir, say=say)
    return _finish(config, tasks, outcome, time.monotonic() - start)


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
                group=_group_plan(config) if "group" in config.analysis_levels else None,
            )
        )
    else:
        for line in plan_view.table(tasks, device, not_taken):
            say(line)
        for line in plan_view.estimates(tasks, device, threads, speed):
            print(line)
    _refuse_nothing([task.planned for task in tasks])
    without = any(item.asked_for for item in not_taken) or not all(
        i.planned.runnable for i in tasks
    )
    return status.EXIT_PARTIAL if without else status.EXIT_DONE  # as the run would, at best


def _validate(config: Config) -> None:
    bids_dir = config.paths.bids_dir
    from bmex_bids.running.validation import PROGRAM, refuse_fatal, summary, validate

    errors = validate(bids_dir, config.selection.participants)
    if errors is None:
        print(f"bmex: {PROGRAM} could not be run; continuing without validation", file=sys.stderr)
    elif errors:
        print(
            f"bmex: {PROGRAM} found {len(errors)} errors in {bids_dir}; images that can be "
            "read are processed:",
            *summary(errors),
            sep="\n",
            file=sys.stderr,
        )
        refuse_fatal(errors)


def _finish(config: Config, tasks: Sequence[Task], outcome: status.Outcome, seconds: float) -> int:
    """Reports, methods text, a summary, and the exit code."""
    output_dir = config.paths.output_dir
    if not config.execution.skip_boilerplate:
        _write_texts(config)
    _write_pages(config, [task.planned for task in tasks])
    for line in status.complaints(outcome.rows):
        print(f"bmex: {line}", file=sys.stderr)
    print(
        f"{status.summary(outcome.rows)} in {seconds:.0f} s",
        f"output: {output_dir}",
        f"log: {config.log_dir}",
        sep="\n",
    )
    return outcome.exit_code


def _write_pages(config: Config, planned: Sequence[PlannedImage]) -> list[Path]:
    """A page for each participant and session of the plan, also where nothing came out."""
    from bmex_bids.reports.individual import write_subject_report

    pages = {(image.image.subject, image.image.session) for image in planned}
    return [
        write_subject_report(config.paths.output_dir, subject, session)
        for subject, session in sorted(pages, key=lambda page: (page[0], page[1] or ""))
    ]


def _write_texts(config: Config) -> list[Path]:
    """The methods text and the provenance, from what the output says was done."""
    from bmex_bids.outputs.provenance import write_provenance
    from bmex_bids.reports.methods import collect_facts, write_citation

    output_dir = config.paths.output_dir
    methods = write_citation(
        output_dir,
        collect_facts(output_dir),
        markdown_only=config.execution.md_only_boilerplate,
    )
    return [*methods, *write_provenance(output_dir)]


def _reports_only(config: Config) -> int:
    """``--reports-only``: the pages again, from what is in the output."""
    for page in _write_pages(config, planning.plan(config)):
        print(page)
    return status.EXIT_DONE


def _boilerplate_only(config: Config) -> int:
    """``--boilerplate-only``: the methods text and the provenance, from what is in the output."""
    for path in _write_texts(config):
        print(path)
    return status.EXIT_DONE


def _group_dry_run(config: Config) -> None:
    """``--dry-run`` of the level ``group``: what it would read and write."""
    if config.execution.dry_run != "json":
        for line in plan_view.group_lines(_group_plan(config), config.paths.output_dir):
            print(line)
    elif "participant" not in config.analysis_levels:  # else it is part of the one JSON object
        print(plan_view.group_json(_group_plan(config), config.paths))


def _group_plan(config: Config) -> dict[str, int]:
    """Contrast → how many of its images have results in the output."""
    from bmex_bids.outputs.records import find_records

    names = [image.source.suffix for image in find_records(config.paths.output_dir)]
    return {suffix: names.count(suffix) for suffix in config.selection.modalities}


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
