# SPDX-License-Identifier: Apache-2.0
"""``bmex-enhance``: one image, without a dataset around it, through the same nodes as ``bmex``.

The image is planned as the only one of a dataset, its workflow runs in a temporary folder, and
what was asked for is copied from there: under this command line there is no second way.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bmex_bids import __version__
from bmex_bids.cli import arguments
from bmex_bids.cli import parser as flags
from bmex_bids.cli.ending import ended
from bmex_bids.cli.files import check_distinct, check_source, check_target, sidecar_of, stem_of
from bmex_bids.cli.streams import forgiving, say
from bmex_bids.config import (
    MOST_THREADS,
    AgeOverride,
    Config,
    Execution,
    Paths,
    Processing,
    Resources,
)
from bmex_bids.exceptions import OutputError, StepError, UsageError
from bmex_bids.outputs.status import Status
from bmex_bids.running import planning, preflight, process
from bmex_bids.running.plan_view import Task
from bmex_bids.running.progress import Progress
from bmex_bids.running.resources import available_cpus
from bmex_bids.running.status import EXIT_DONE, EXIT_FAILED, gate_reasons

if TYPE_CHECKING:
    from bmex_bids.inputs.plan import PlannedImage

PROGRAM = "bmex-enhance"
#: option → which product of the workflow it saves (``field`` of ``outputs.sidecar.PRODUCTS``)
SAVES: Mapping[str, str] = {
    "OUT": "enhanced_native",
    "--save-res": "enhanced_res",
    "--save-head": "preproc_native",
    "--save-mask": "mask_native",
    "--save-dseg": "dseg_native",
}


@dataclass(frozen=True)
class Request:
    """What the command line asks for; all paths absolute, all of them checked.

    Attributes
    ----------
    source : the image
    contrast : ``"T1w"`` or ``"T2w"``
    images : field of a product → where it is saved; ``enhanced_native`` is always there
    mask : a brain mask made elsewhere, or None
    report : where the page is saved, or None
    """

    source: Path
    contrast: str
    images: Mapping[str, Path]
    mask: Path | None = None
    report: Path | None = None


def main(argv: Sequence[str] | None = None) -> int:
    """Enhance one image and return an exit code, as ``bmex`` has them."""
    with forgiving():
        options = build_parser().parse_args(argv)
        return ended(
            PROGRAM,
            lambda: _main(options),
            interrupted="interrupted; no half-written file is left",
        )


def _main(options: argparse.Namespace) -> int:
    request = check(options)
    with _temporary_folder() as folder:
        config = configuration(options, request, folder)
        with process.surroundings(config):
            return _enhance(request, config)


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``bmex-enhance``; flags are those of ``bmex`` where both have them."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Enhance one T1w or T2w image of a brain: less motion, less noise. For a "
        "whole study use bmex, which does the same to each image of a BIDS dataset.",
        epilog="Exit codes: 0 done; 1 the image failed, or the result did not pass the quality "
        "gate; 2 the command line is wrong; 5 the machine stands in the way (weights, device, "
        "permission, disk). Intermediate files go to a temporary folder (set TMPDIR for another "
        "disk) and are removed.",
        allow_abbrev=False,
    )
    parser.add_argument("source", metavar="IN", type=Path, help="NIfTI image; stays untouched")
    parser.add_argument(
        "out",
        metavar="OUT",
        type=Path,
        help="the enhanced brain on the grid of IN, in harmonised intensities (0 to about 1000): "
        ".nii.gz or .nii; OUT.json beside it tells how it was made",
    )
    arguments.add_shared(parser, "age_months", required=True, help="age at the scan; 0 is an age")
    arguments.add_shared(
        parser,
        "fetal",
        help="a fetus: --age-months counts from conception, and --contrast must be T2w",
    )
    parser.add_argument(
        "--contrast", choices=["T1w", "T2w"], default="T1w", help="of IN (default: %(default)s)"
    )
    _add_saves(parser.add_argument_group("what else to save"))
    _add_processing(parser.add_argument_group("what is done to it, and how"))
    arguments.add_shared(parser, "verbose")
    parser.add_argument("--version", action=arguments.ShowVersion)
    return parser


def _add_saves(group: argparse._ArgumentGroup) -> None:
    for name, text in (
        ("--save-res", "the enhanced brain at 0.8 mm (fetus: 0.75 mm), as the network made it"),
        ("--save-head", "the enhanced brain in its own head, in the intensities of IN"),
        ("--save-mask", "the brain mask"),
        ("--save-dseg", "tissues: 1 grey matter, 2 white matter, 3 fluid"),
    ):
        group.add_argument(
            name, name.replace("save-", "save_"), type=Path, metavar="FILE", help=text
        )
    group.add_argument(
        "--report",
        type=Path,
        metavar="FILE.html",
        help="a page with pictures before and after, all in one file",
    )


def _add_processing(group: argparse._ArgumentGroup) -> None:
    arguments.add_shared(
        group,
        "skull_strip",
        help="auto (default): detect whether the skull is already removed; skip: IN is already "
        "stripped; force: always run the stripping network",
    )
    group.add_argument(
        "--mask",
        type=Path,
        metavar="FILE",
        help="a brain mask made by another program, used instead of skull stripping; voxels above "
        "0.5 are brain",
    )
    for option in ("device", "weights", "weights_dir"):
        arguments.add_shared(group, option)
    arguments.add_shared(
        group,
        "omp_nthreads",
        help=f"processors to use (default: all that are allowed, at most {MOST_THREADS})",
    )


def check(options: argparse.Namespace) -> Request:
    """Look at every path before anything is read.

    Raises
    ------
    UsageError
        IN is not there, a name has another ending than its kind of file, or two files are one.
    OutputError
        A folder to save in is missing or cannot be written.
    """
    # links are not followed: the names that count are those the user gave
    source = options.source.expanduser().absolute()
    targets = {"OUT": options.out}
    for flag in (*SAVES, "--report"):
        value = getattr(options, flag.lstrip("-").replace("-", "_"), None)
        if value is not None:
            targets[flag] = value
    targets = {flag: path.expanduser().absolute() for flag, path in targets.items()}
    mask = None if options.mask is None else options.mask.expanduser().absolute()
    check_source("IN", source)
    if mask is not None:
        check_source("--mask", mask)
    for flag, path in targets.items():
        check_target(flag, path)
    check_distinct({"IN": source} | ({"--mask": mask} if mask else {}), targets)
    return Request(
        source=source,
        contrast=options.contrast,
        images={SAVES[flag]: path for flag, path in targets.items() if flag in SAVES},
        mask=mask,
        report=targets.get("--report"),
    )


def _temporary_folder() -> tempfile.TemporaryDirectory[str]:
    try:
        return tempfile.TemporaryDirectory(prefix=f"{PROGRAM}-")
    except OSError as error:
        raise OutputError(
            f"expected a folder for temporary files, got: {error.strerror or error}; set TMPDIR "
            "to a folder that can be written"
        ) from error


def configuration(options: argparse.Namespace, request: Request, folder: str | Path) -> Config:
    """The same request as ``bmex`` would have it, in a temporary folder."""
    weights, weights_dir = flags.weights_of(options.weights, options.weights_dir)
    folder = Path(folder).resolve()
    return Config(
        run_id=flags.new_run_id(),
        version=__version__,
        paths=Paths(
            bids_dir=request.source.parent,
            output_dir=folder / "derivatives",
            work_dir=folder / "work",
        ),
        age=AgeOverride(months=options.age_months, fetal=options.fetal),
        processing=Processing(
            skull_strip=options.skull_strip,
            device=options.device,
            weights=weights,
            weights_dir=weights_dir,
        ),
        resources=Resources(
            nprocs=1,
            omp_nthreads=options.omp_nthreads or min(available_cpus(), MOST_THREADS),
        ),
        execution=Execution(verbosity=options.verbose),
    )


def plan_image(request: Request, config: Config) -> PlannedImage:
    """The image as the only one of a dataset that is its folder; UsageError for a wrong age."""
    from bmex_bids.inputs.collect import SourceImage
    from bmex_bids.inputs.plan import plan
    from bmex_bids.inputs.sidecars import read_json

    image = SourceImage(
        path=request.source,
        entities={"sub": _label(request.source)},
        suffix=request.contrast,
        metadata=read_json(sidecar_of(request.source)),
        root=request.source.parent,
    )
    (planned,) = plan(
        [image], image.root, override_months=config.age.months, fetal=config.age.fetal
    )
    if planned.skip_reason is not None:
        hint = "; if IN is one, add --contrast T2w" if planned.age is not None else ""
        raise UsageError(f"{request.source.name}: {planned.skip_reason}{hint}")
    said = re.search(r"(?:^|_)(T[12]w)$", stem_of(request.source))
    if said and said[1] != request.contrast:
        note = (
            f"the name of {request.source.name} says {said[1]}, but it was taken for a "
            f"{request.contrast}; if the name is right, add --contrast {said[1]}"
        )
        planned = dataclasses.replace(planned, warnings=(*planned.warnings, note))
    if request.mask is None:
        return planned
    return dataclasses.replace(planned, mask=request.mask, mask_source=request.mask.name)


def _label(source: Path) -> str:
    """A BIDS label for an image of any name.

    >>> (
    ...     _label(Path("sub-07_ses-A_T1w.nii.gz")),
    ...     _label(Path("head (2).nii")),
    ...     _label(Path("é.nii")),
    ... )
    ('07', 'head2', 'image')
    """
    found = re.match(r"sub-([0-9A-Za-z]+)(?:_|$)", stem_of(source))
    return found[1] if found else re.sub(r"[^0-9A-Za-z]", "", stem_of(source)) or "image"


def _enhance(request: Request, config: Config) -> int:
    """Plan, run, save, and tell how it went."""
    from bmex_bids.imaging.orientation import load_image
    from bmex_bids.running import address_space

    address_space.prepare()
    for path in (request.source, request.mask):  # before anything heavy is loaded
        if path is not None:
            load_image(path)
    (planned,) = preflight.look_at([plan_image(request, config)])
    task = Task(
        planned,
        weights=planning.weights_of(config, planned),
        strip_weights=planning.strip_weights_of(config, planned),
    )
    device = process.device_of(config)
    for line in _announcement(request, task, device):
        print(line, flush=True)
    _run(request, config, task, device)
    record = save(request, config, planned)
    passed = True
    for line, good in conclusion(request, record):
        passed = passed and good
        print(line, file=sys.stdout if good else sys.stderr, flush=True)
    return EXIT_DONE if passed else EXIT_FAILED


def _announcement(request: Request, task: Task, device: str) -> Iterator[str]:
    age, weights = task.planned.age, task.weights
    if age is None or weights is None:
        raise ValueError(f"expected an image with an age and weights, got {task.name} without")
    yield (
        f"{request.source.name}: {request.contrast}, age {age.months:g} months"
        f"{' of gestation' if age.fetal else ''}, model {task.planned.age_group}, weights "
        f"{weights.name}, {task.planned.spacing_mm:g} mm, on {device}"
    )
    for text in task.planned.warnings:
        yield f"  warning: {text}"


def _run(request: Request, config: Config, task: Task, device: str) -> None:
    """Run the image's workflow; StepError with the step and the reason where it fails."""
    from bmex_bids.running import engine, execution
    from bmex_bids.workflows import base

    crash_dir = config.paths.work_dir / "crash"
    crash_dir.mkdir(parents=True)
    verbosity = config.execution.verbosity
    engine.configure(crash_dir=crash_dir, verbosity=verbosity, stop_on_first_crash=True)
    workflow = process.image_workflow(config, task, device)
    if request.report is None:  # pictures take longer than some brains
        workflow.remove_nodes([workflow.get_node("report_wf")])
    whole = base.init_run_wf([workflow], work_dir=config.paths.work_dir)
    progress = Progress(
        {workflow.name: (request.source.name, execution.steps_of(workflow))}, say=say
    )
    execution.run(whole, listener=progress, verbosity=verbosity)
    progress.end()
    (track,) = progress.tracks.values()
    if track.status is not Status.DONE:
        if verbosity:
            for path in sorted(crash_dir.glob("crash-*")):
                print(path.read_text(encoding="utf-8", errors="replace"), file=sys.stderr)
        raise StepError(
            f"{request.source.name} failed in {track.step}: {track.reason}; nothing was written",
            track.failure.exit_code if track.failure else EXIT_FAILED,
        )


def save(request: Request, config: Config, planned: PlannedImage) -> dict[str, Any]:
    """Copy what was asked for out of the temporary folder, all of it or nothing.

    Returns
    -------
    dict
        what stands under ``BMEX`` in the sidecar of OUT
    """
    from bmex_bids.outputs.files import as_json, write_together
    from bmex_bids.outputs.sidecar import PRODUCTS, product_name
    from bmex_bids.workflows.outputs import plan_table

    table = plan_table(planned)
    folder = config.paths.output_dir / table["folder"]
    fills: dict[Path, Callable[[Path], object]] = {}
    records = {}
    for product in PRODUCTS:
        target = request.images.get(product.field)
        if target is None:
            continue
        image, sidecar = (
            folder
            / product_name(
                product,
                planned.image.bids_name,
                table["resolution"],
                extension,
                space=table["space"],
            )
            for extension in (".nii.gz", ".json")
        )
        if product.kind == "dseg" and not image.is_file():
            continue  # the contrast is wrong: the gate's verdict says so
        content = without_dataset(json.loads(sidecar.read_text(encoding="utf-8")))
        records[product.field] = content["BMEX"]
        fills[sidecar_of(target)] = partial(_write_text, text=as_json(content))
        fills[target] = partial(_copy_image, image, packed=target.name.endswith(".gz"))
    if request.report is not None:
        fills[request.report] = partial(_write_text, text=_page(config, planned))
    write_together(fills)
    return dict(records["enhanced_native"])


def without_dataset(sidecar: dict[str, Any]) -> dict[str, Any]:
    """A sidecar for an image that stands alone: its source is a file, not part of a dataset."""
    result = dict(sidecar)
    for key in ("Sources", "SpatialReference"):
        value = result.get(key)
        if isinstance(value, str):
            result[key] = value.removeprefix("bids:raw:")
        elif isinstance(value, list):
            result[key] = [str(item).removeprefix("bids:raw:") for item in value]
    # what a run of bmex goes by when it is started again
    bookkeeping = {"Fingerprint", "Outputs"}
    result["BMEX"] = {k: v for k, v in sidecar["BMEX"].items() if k not in bookkeeping}
    return result


def _write_text(path: Path, *, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _copy_image(source: Path, target: Path, *, packed: bool) -> None:
    """Copy a ``.nii.gz``, unpacked where a ``.nii`` is wanted."""
    with source.open("rb") if packed else gzip.open(source) as stream, target.open("wb") as file:
        shutil.copyfileobj(stream, file)


def _page(config: Config, planned: PlannedImage) -> str:
    from bmex_bids.reports.individual import Page, subject_page
    from bmex_bids.reports.methods import collect_facts, write_citation

    folder = config.paths.output_dir
    facts = collect_facts(folder)  # the page has the methods text, ready to copy
    versions = {name: version for name, version in facts.versions.items() if name != "pybids"}
    write_citation(folder, dataclasses.replace(facts, versions=versions), markdown_only=False)
    return subject_page(folder, Page(planned.image.subject), standalone=True)


def conclusion(request: Request, record: Mapping[str, Any]) -> Iterator[tuple[str, bool]]:
    """What is said at the end, line by line, and whether it is as the user hoped."""
    titles = {
        "enhanced_native": "enhanced",
        "enhanced_res": "fine grid",
        "preproc_native": "head",
        "mask_native": "mask",
        "dseg_native": "tissues",
    }
    for field, title in titles.items():
        if field in request.images:
            yield f"{title}: {request.images[field]}", True
    if request.report is not None:
        yield f"report: {request.report}", True
    quality = record["Quality"]
    yield (
        f"tissue contrast (TCT): {_figure(quality['tct_before'])} -> "
        f"{_figure(quality['tct_after'])}; quality index (QI, one over the other): "
        f"{_figure(quality['qi'])}",
        True,
    )
    for text in record["Warnings"]:
        yield f"warning: {text}", True
    gate = record["Gate"]
    for text in gate_reasons(gate):
        yield f"quality gate: {text}", True
    if gate["Verdict"] == "fail":
        yield f"{PROGRAM}: the result did NOT pass the quality gate; look at it before use", False


def _figure(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    sys.exit(main())
