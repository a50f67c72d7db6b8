# SPDX-License-Identifier: Apache-2.0
"""One image without a dataset around it, through the same nodes as a dataset's.

The image is planned as the only one of a dataset, and its workflow runs in a temporary folder.
``bmex-enhance`` and :func:`bmex_bids.enhance` take from there what was asked for.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import logging
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bmex_bids import __version__
from bmex_bids.common.contrasts import SUFFIXES
from bmex_bids.common.names import sidecar_of, stem_of
from bmex_bids.config import (
    ENTRIES,
    MOST_THREADS,
    AgeOverride,
    Config,
    Execution,
    Paths,
    Processing,
    Resources,
)
from bmex_bids.exceptions import OutputError, StepError, UsageError
from bmex_bids.inputs.on_disk import EXTENSIONS
from bmex_bids.outputs.status import Status
from bmex_bids.running import planning, preflight, process
from bmex_bids.running.plan_view import Task
from bmex_bids.running.progress import Progress
from bmex_bids.running.resources import available_cpus
from bmex_bids.running.status import EXIT_FAILED

if TYPE_CHECKING:
    from bmex_bids.inputs.plan import PlannedImage
    from bmex_bids.outputs.sidecar import Product

LOGGER = logging.getLogger(__name__)
#: the settings of ``bmex`` that one image takes too, by their names in ``config``
SETTINGS = (
    "skull_strip",
    "brain_extraction",
    "reorient",
    "motion_correction",
    "device",
    "weights",
    "weights_dir",
    "geometry",
    "mirroring",
    "precision",
    "max_change",
    "omp_nthreads",
)
#: the same, that decide which images there are
OUTPUTS = ("segment", "output_res")


@dataclass(frozen=True)
class Request:
    """One image and what is asked about it; all paths absolute.

    Attributes
    ----------
    source : the image, a NIfTI file
    contrast : suffix of the image
    age_months : at the scan; from conception where ``fetal``
    mask : a brain mask made elsewhere, or None
    report : whether the pictures of the report are drawn
    settings : names of :data:`SETTINGS` and :data:`OUTPUTS` → values, as ``config.Processing`` has
        them
    verbosity : as ``-v`` counts
    """

    source: Path
    contrast: str
    age_months: float
    fetal: bool = False
    mask: Path | None = None
    report: bool = False
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    verbosity: int = 0


@dataclass(frozen=True)
class Result:
    """What the workflow left in the temporary folder."""

    folder: Path
    planned: PlannedImage

    def files(self) -> Iterator[tuple[Product, Path, Path]]:
        """Each product with its image and its sidecar.

        The tissues are missing where the network found none: the contrast is wrong then, as the
        verdict of the quality gate says.
        """
        from bmex_bids.outputs.sidecar import PRODUCTS, product_name
        from bmex_bids.workflows.outputs import plan_table

        table = plan_table(self.planned)
        for product in PRODUCTS:
            image, sidecar = (
                self.folder
                / table["folder"]
                / product_name(
                    product,
                    self.planned.image.bids_name,
                    table["resolution"],
                    extension,
                    space=table["space"],
                )
                for extension in (".nii.gz", ".json")
            )
            if image.is_file():
                yield product, image, sidecar

    def page(self) -> str:
        """The report as one HTML file, with the methods text."""
        from bmex_bids.reports.individual import Page, subject_page
        from bmex_bids.reports.methods import collect_facts, write_citation

        facts = collect_facts(self.folder)
        versions = {name: text for name, text in facts.versions.items() if name != "pybids"}
        facts = dataclasses.replace(facts, versions=versions)
        write_citation(self.folder, facts, markdown_only=False)
        return subject_page(self.folder, Page(self.planned.image.subject), standalone=True)


def check_source(name: str, path: Path) -> None:
    """Refuse what is not there or by its name no NIfTI image (UsageError)."""
    if not path.is_symlink() and not path.is_file():
        what = "a folder" if path.is_dir() else "nothing"
        raise UsageError(
            f"expected an image for {name} at {path}, found {what}; check the path, and inside a "
            "container whether it is mounted"
        )
    if not path.name.endswith(EXTENSIONS) or path.name in EXTENSIONS:
        raise UsageError(
            f"expected a NIfTI image whose name ends in .nii.gz or .nii for {name}, got "
            f"{path.name}; convert it first (DICOM: dcm2niix; FreeSurfer: mri_convert)"
        )


def temporary_folder(program: str) -> tempfile.TemporaryDirectory[str]:
    """A folder for intermediate files; OutputError where none can be made."""
    try:
        return tempfile.TemporaryDirectory(prefix=f"{program}-")
    except OSError as error:
        raise OutputError(
            f"expected a folder for temporary files, got: {error.strerror or error}; set TMPDIR "
            "to a folder that can be written"
        ) from error


def configuration(request: Request, folder: str | Path) -> Config:
    """The same request as ``bmex`` would have it, in a temporary folder."""
    folder = Path(folder).resolve()
    given = {n: _settled(n, value) for n, value in request.settings.items() if value is not None}
    threads = min(given.pop("omp_nthreads", None) or MOST_THREADS, available_cpus())
    given["weights"], given["weights_dir"] = planning.given_weights(
        given.get("weights", "auto"), given.get("weights_dir")
    )
    return Config(
        run_id=planning.new_run_id(),
        version=__version__,
        paths=Paths(
            bids_dir=request.source.parent,
            output_dir=folder / "derivatives",
            work_dir=folder / "work",
        ),
        age=AgeOverride(months=request.age_months, fetal=request.fetal),
        processing=Processing(**given),
        resources=Resources(nprocs=1, omp_nthreads=threads),
        execution=Execution(verbosity=request.verbosity),
    )


def _settled(name: str, value: Any) -> Any:
    """A setting of one image as the configuration has it (UsageError)."""
    known = (*SETTINGS, *OUTPUTS)
    setting = next((e.setting for e in ENTRIES if e.name == name and name in known), None)
    if setting is None:
        near = difflib.get_close_matches(name, known, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UsageError(f"expected a setting of {', '.join(known)}, got {name}{hint}")
    if setting.several:
        value = tuple(value)
    for each in value if setting.several else (value,):
        if setting.choices is not None and each not in setting.choices:
            raise UsageError(f"expected {name} of {', '.join(setting.choices)}, got {each!r}")
    try:
        if setting.read is not None:
            value = setting.read(str(value))
    except ValueError as error:
        raise UsageError(f"{name}: {error}") from error
    return setting.settle(Path(value) if setting.is_path else value)


def run(request: Request, folder: str | Path, *, say: Callable[[str], None]) -> Result:
    """Enhance one image in a folder for intermediate files.

    Parameters
    ----------
    say : takes the lines that tell what is done

    Raises
    ------
    UsageError
        The age is none for this contrast.
    ImageError
        The image cannot be read.
    StepError
        A step failed; the message names it.
    WeightsError, DeviceError
    """
    from bmex_bids.imaging.orientation import load_image
    from bmex_bids.running import address_space

    config = configuration(request, folder)
    with process.surroundings(config):
        address_space.prepare()
        for path in (request.source, request.mask):  # before anything heavy is loaded
            if path is not None:
                load_image(path)
        (planned,) = preflight.look_at([plan_image(request, config)])
        segmenting = planning.segment_weights_of(config, planned)
        if segmenting is None and config.processing.segment == "rois":
            warnings = (*planned.warnings, planning.NO_STRUCTURES)
            planned = dataclasses.replace(planned, warnings=warnings)
        task = Task(
            planned,
            weights=planning.weights_of(config, planned),
            strip_weights=planning.strip_weights_of(config, planned),
            segment_weights=segmenting,
            super_weights=planning.super_weights_of(config),
        )
        device = process.device_of(config)
        for line in _announcement(request, task, device):
            say(line)
        _run_workflow(request, config, task, device, say)
    return Result(config.paths.output_dir, planned)


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
    said = contrast_in(request.source)
    if said and said != request.contrast:
        note = (
            f"the name of {request.source.name} says {said}, but it was taken for a "
            f"{request.contrast}; if the name is right, add --contrast {said}"
        )
        planned = dataclasses.replace(planned, warnings=(*planned.warnings, note))
    if request.mask is None:
        return planned
    return dataclasses.replace(planned, mask=request.mask, mask_source=request.mask.name)


def contrast_in(source: Path) -> str | None:
    """The contrast that the name of a file ends in, if any.

    >>> contrast_in(Path("sub-1_T2w.nii.gz")), contrast_in(Path("head.nii"))
    ('T2w', None)
    """
    said = stem_of(source).rpartition("_")[2]
    return said if said in SUFFIXES else None


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


def _run_workflow(
    request: Request, config: Config, task: Task, device: str, say: Callable[[str], None]
) -> None:
    """Run the image's workflow; StepError with the step and the reason where it fails."""
    from bmex_bids.running import engine, execution
    from bmex_bids.workflows import base

    crash_dir = config.paths.work_dir / "crash"
    crash_dir.mkdir(parents=True)
    verbosity = config.execution.verbosity
    engine.configure(crash_dir=crash_dir, verbosity=verbosity, stop_on_first_crash=True)
    workflow = process.image_workflow(config, task, device)
    if not request.report:  # pictures take longer than some brains
        workflow.remove_nodes([workflow.get_node("report_wf")])
    whole = base.init_run_wf([workflow], work_dir=config.paths.work_dir)
    progress = Progress(
        {workflow.name: (request.source.name, execution.steps_of(workflow))}, say=say
    )
    execution.run(whole, listener=progress, verbosity=verbosity)
    progress.end()
    (track,) = progress.tracks.values()
    if track.status is not Status.DONE:
        for path in sorted(crash_dir.glob("crash-*")):
            LOGGER.info("%s", path.read_text(encoding="utf-8", errors="replace"))
        raise StepError(
            f"{request.source.name} failed in {track.step}: {track.reason}; nothing was written",
            track.failure.exit_code if track.failure else EXIT_FAILED,
        )


def read_sidecar(path: Path) -> dict[str, Any]:
    """A sidecar for an image that stands alone: its source is a file, not part of a dataset."""
    sidecar: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    for key in ("Sources", "SpatialReference"):
        value = sidecar.get(key)
        if isinstance(value, str):
            sidecar[key] = value.removeprefix("bids:raw:")
        elif isinstance(value, list):
            sidecar[key] = [str(item).removeprefix("bids:raw:") for item in value]
    for key in ("GeneratedBy", "Digest"):  # of the file in its dataset
        sidecar.pop(key, None)
    # what a run of bmex goes by when it is started again
    bookkeeping = {"Fingerprint", "Outputs"}
    sidecar["BMEX"] = {k: v for k, v in sidecar["BMEX"].items() if k not in bookkeeping}
    return sidecar
