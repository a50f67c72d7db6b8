# SPDX-License-Identifier: Apache-2.0
"""``bmex``: plan, build, run, and an exit code that says how it went."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from bmex_bids.cli.parser import parse
from bmex_bids.cli.progress import Progress
from bmex_bids.cli.resources import available_memory_gb
from bmex_bids.config import Config
from bmex_bids.exceptions import BmexError, NoInputError, OutputError

if TYPE_CHECKING:
    from bmex_bids.inputs.plan import PlannedImage
    from bmex_bids.network.registry import WeightRecord

Row = dict[str, str]
EXIT_DONE, EXIT_FAILED, EXIT_PARTIAL, EXIT_INTERRUPTED = 0, 1, 3, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``bmex`` with a command line and return its exit code."""
    try:
        config = parse(argv)
        with _surroundings(config):
            return _run(config)
    except BmexError as error:
        print(f"bmex: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("bmex: interrupted; what is in the output is complete", file=sys.stderr)
        return EXIT_INTERRUPTED


@contextmanager
def _surroundings(config: Config) -> Iterator[None]:
    """Thread limits for the libraries, no call home, and no chatter of libraries without ``-v``.

    Set before anything heavy is loaded, inherited by the worker processes, put back afterwards.
    A SIGTERM (``docker stop``, SLURM) ends the run as Ctrl-C does.
    """
    threads = str(config.resources.omp_nthreads)
    wanted = {
        "OMP_NUM_THREADS": threads,
        "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": threads,
        "NO_ET": "1",
        "NIPYPE_NO_ET": "1",
        "MPLBACKEND": "Agg",
    }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread:  # Python allows handlers nowhere else
        terminate = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with warnings.catch_warnings():
            if config.execution.verbosity == 0:
                warnings.simplefilter("ignore")
            yield
    finally:
        if in_main_thread:
            signal.signal(signal.SIGTERM, terminate)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _run(config: Config) -> int:
    start = time.monotonic()
    if not config.execution.skip_bids_validation:
        _validate(config.paths.bids_dir)
    planned = _plan(config)
    runnable = [image for image in planned if image.runnable]
    weights = {image.name: _weights(config, image) for image in runnable}
    device = _device(config) if runnable else config.processing.device
    for line in _table(planned, weights, device):
        print(line)
    if not runnable:
        raise NoInputError(
            f"expected at least one image that can be processed, found {len(planned)} and none of "
            "them can; the reasons are above"
        )
    if config.execution.dry_run:
        return EXIT_DONE
    _prepare_folders(config)
    rows = _process(config, planned, weights, device)
    return _finish(config, planned, rows, time.monotonic() - start)


def _validate(bids_dir: Path) -> None:
    from bmex_bids.cli.validation import PROGRAM, refuse_fatal, summary, validate

    errors = validate(bids_dir)
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


def _plan(config: Config) -> list[PlannedImage]:
    from bmex_bids.inputs.collect import collect
    from bmex_bids.inputs.plan import plan

    bids_dir, chosen = config.paths.bids_dir, config.selection
    images = collect(
        bids_dir,
        participants=chosen.participants,
        sessions=chosen.sessions,
        suffixes=chosen.modalities,
        runs=chosen.runs,
    )
    return list(plan(images, bids_dir, override_months=config.age.months, fetal=config.age.fetal))


def _weights(config: Config, image: PlannedImage) -> WeightRecord:
    from bmex_bids.network.registry import select

    return select(
        "enhance",
        age_group=image.age_group,
        contrast=image.image.suffix,
        weights=config.processing.weights,
        weights_dir=config.processing.weights_dir,
    )


def _device(config: Config) -> str:
    """``cpu``, ``cuda`` or ``cuda:N``; a GPU that is asked for and absent is a DeviceError."""
    from bmex_bids.network.predict import resolve_device

    return str(resolve_device(config.processing.device))


def _table(
    planned: Sequence[PlannedImage], weights: dict[str, WeightRecord], device: str
) -> Iterator[str]:
    """What will be done with each image, or why nothing."""
    runnable = sum(image.runnable for image in planned)
    plural = "" if len(planned) == 1 else "s"
    yield f"{len(planned)} image{plural}, {runnable} to process on {device}"
    for image in planned:
        if image.age is None or image.skip_reason is not None:
            yield f"  {image.name}: skipped: {image.skip_reason}"
            continue
        age = image.age
        yield (
            f"  {image.name}: age {age.value} {age.unit} ({age.source}) → {age.months:.2f} months"
            f"{' of gestation' if age.fetal else ''}, model {image.age_group}, "
            f"weights {weights[image.name].name}, {image.spacing_mm:g} mm → {image.output_dir}"
        )
        for text in image.warnings:
            yield f"    warning: {text}"


def _prepare_folders(config: Config) -> None:
    """Make the output and work folders and see that both can be written (OutputError)."""
    for folder, option in (
        (config.paths.work_dir, "name another work folder with -w"),
        (config.paths.output_dir, "name another output folder"),
    ):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise OutputError(
                f"expected a folder that can be written at {folder}, got: "
                f"{error.strerror or error}; {option}, or change its permissions"
            ) from error
    config.log_dir.mkdir(parents=True)
    (config.log_dir / "config.toml").write_text(
        config.to_toml(), encoding="utf-8", errors="surrogateescape"
    )


def _process(
    config: Config,
    planned: Sequence[PlannedImage],
    weights: dict[str, WeightRecord],
    device: str,
) -> list[Row]:
    """Run the workflow; keep the status table up to date; return its rows."""
    from bmex_bids.network.registry import select
    from bmex_bids.outputs.dataset import write_dataset, write_status
    from bmex_bids.workflows import base, execution

    execution.configure(
        crash_dir=config.log_dir,
        verbosity=config.execution.verbosity,
        stop_on_first_crash=config.execution.stop_on_first_crash,
    )
    runnable = [image for image in planned if image.runnable]
    skull_strip = config.processing.skull_strip
    strip_weights = None if skull_strip == "skip" else select("strip")
    on_gpu = device.startswith("cuda")
    workflows = [
        base.init_image_wf(
            image,
            bids_dir=config.paths.bids_dir,
            output_dir=config.paths.output_dir,
            weights=weights[image.name],
            strip_weights=strip_weights,
            skull_strip=skull_strip,
            device=device,
            use_gpu=on_gpu,
            omp_nthreads=config.resources.omp_nthreads,
        )
        for image in runnable
    ]
    whole = base.init_run_wf(workflows, work_dir=config.paths.work_dir)

    def note(progress: Progress) -> None:
        write_status(config.log_dir / "status.tsv", status_rows(planned, progress))

    progress = Progress(
        {
            workflow.name: (image.name, execution.steps_of(workflow))
            for workflow, image in zip(workflows, runnable, strict=True)
        },
        say=_say,
        changed=note,
    )
    write_dataset(config.paths.bids_dir, config.paths.output_dir)
    note(progress)
    try:
        execution.run(
            whole,
            listener=progress,
            order=[workflow.name for workflow in workflows],
            nprocs=config.resources.nprocs,
            memory_gb=config.resources.mem_gb or 0.9 * available_memory_gb(),
            gpu_slots=int(on_gpu),
            verbosity=config.execution.verbosity,
        )
    finally:
        progress.end()
        note(progress)
    return status_rows(planned, progress)


def _say(line: str) -> None:
    print(line, flush=True)


def status_rows(planned: Sequence[PlannedImage], progress: Progress) -> list[Row]:
    """One row an image, in the plan's order: what became of it, and why."""
    tracks = {track.name: track for track in progress.tracks.values()}
    rows = []
    for image in planned:
        row = dict.fromkeys(("image", "status", "step", "seconds", "reason"), "")
        row["image"] = image.name
        track = tracks.get(image.name)
        if track is None:
            row |= {"status": "skipped", "reason": image.skip_reason or ""}
        else:
            row |= {"status": track.status, "step": track.step, "reason": track.reason or ""}
            if track.seconds is not None:
                row["seconds"] = f"{track.seconds:.1f}"
        rows.append(row)
    return rows


def _finish(
    config: Config, planned: Sequence[PlannedImage], rows: Sequence[Row], seconds: float
) -> int:
    """Reports of what is done, a summary, and the exit code; all from the rows of the table."""
    from bmex_bids.reports.individual import write_subject_report

    output_dir = config.paths.output_dir
    done = [image for image, row in zip(planned, rows, strict=True) if row["status"] == "done"]
    pages = {(image.image.subject, image.image.session) for image in done}
    for subject, session in sorted(pages, key=lambda page: (page[0], page[1] or "")):
        write_subject_report(output_dir, subject, session)
    counts = dict.fromkeys(("done", "failed", "not run", "skipped"), 0)
    for row in rows:
        counts[row["status"]] += 1
        if row["status"] != "done":
            where = f" in {row['step']}" if row["step"] else ""
            print(f"bmex: {row['image']} {row['status']}{where}: {row['reason']}", file=sys.stderr)
    print(
        ", ".join(f"{number} {status}" for status, number in counts.items() if number)
        + f" in {seconds:.0f} s\noutput: {output_dir}\nlog: {config.log_dir}"
    )
    if not counts["failed"] + counts["not run"]:
        return EXIT_DONE
    return EXIT_PARTIAL if done else EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
