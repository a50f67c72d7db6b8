# SPDX-License-Identifier: Apache-2.0
"""One image through the whole path of the app: its own workflow, without files of a dataset."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from bmex_bids.common.structures import STRUCTURES
from bmex_bids.evaluation.subjects import Subject
from bmex_bids.exceptions import StepError, UsageError
from bmex_bids.inputs.collect import SourceImage
from bmex_bids.inputs.plan import PlannedImage, plan
from bmex_bids.interfaces.files import data_of, read
from bmex_bids.interfaces.refocus import Refocus
from bmex_bids.network.weights.registry import WeightRecord, bundled_of
from bmex_bids.outputs.sidecar import VOLUME
from bmex_bids.running import engine
from bmex_bids.running.events import Event, tell
from bmex_bids.running.plugins import SerialPlugin
from bmex_bids.workflows import request
from bmex_bids.workflows.base import init_image_wf
from bmex_bids.workflows.preprocess import BUNDLED, init_preprocess_wf, refocus_weights

Array = NDArray[np.float32]
#: stages that write a dataset's files
LEFT_OUT = ("outputs_wf", "report_wf")
#: a structure that the app has labelled
STRUCTURE = np.dtype([("name", "U64"), ("litres", "f8")])


@dataclass(frozen=True)
class Networks:
    """What enhances and strips, and how.

    Attributes
    ----------
    enhance, strip : weights
    device, threads : where networks run
    mirroring : as ``bmex --no-mirroring`` says
    structures : weights that label structures where they serve an image; None: not wanted
    """

    enhance: WeightRecord
    strip: WeightRecord
    device: str = "auto"
    threads: int = 1
    mirroring: bool = True
    structures: WeightRecord | None = None

    @property
    def version(self) -> str:
        """What results hang on besides their input."""
        mirrored = "".join(self.enhance.mirrored) if self.mirroring else ""
        others = [self.structures, *map(bundled_of, (*BUNDLED, "segment"))]
        sums = [record.sha256 for record in others if record is not None]
        share = [] if self.enhance.share == 1 else [str(self.enhance.share)]
        return " ".join([self.enhance.sha256, self.strip.sha256, mirrored, *sums, *share])


@dataclass(frozen=True)
class Passed:
    """What the app made of an image.

    Attributes
    ----------
    corrected : network grid, bias-corrected, not matched, as it came
    matched, enhanced : network grid, template units, as it came and as the app made it
    mask_res : network grid
    preproc, mask : input grid; input intensities
    labels_before, labels_after : network grid, 0 background, 1 CSF, 2 GM, 3 WM: tissues of the
        image as it came, and as the app writes them
    affine : 4 × 4, of the network grid
    structures : (n,), of :data:`STRUCTURE`: volumes in the enhanced image, where the app
        labels them
    """

    corrected: Array
    matched: Array
    enhanced: Array
    mask_res: NDArray[np.bool_]
    preproc: Array
    mask: NDArray[np.bool_]
    labels_before: NDArray[np.uint8]
    labels_after: NDArray[np.uint8]
    affine: NDArray[np.float64]
    structures: NDArray[Any]


def through_app(
    image: Path, subject: Subject, networks: Networks, work: Path, mask: Path | None = None
) -> Passed:
    """Run the app's workflow for one image; parameters and errors are those of :func:`nodes_of`."""
    return passed(nodes_of(image, subject, networks, work, mask))


def nodes_of(
    image: Path, subject: Subject, networks: Networks, work: Path, mask: Path | None = None
) -> dict[str, Any]:
    """Node of the app's workflow for one image → its outputs.

    Parameters
    ----------
    image : NIfTI file, axes LPS
    subject : says age and contrast
    networks : to run
    work : folder for intermediate files, and for those that the outputs name
    mask : brain mask of an image that was stripped; without it the app strips

    Raises
    ------
    UsageError
        The image cannot be enhanced.
    StepError
        A step failed; the message names it.
    """
    engine.configure(crash_dir=work, stop_on_first_crash=True)
    planned = _planned(image, subject, mask)
    workflow = init_image_wf(
        planned,
        _networks(networks, mask, planned),
        request.Target(image.parent, work / "derivatives"),
        request.Machine(device=networks.device, omp_nthreads=networks.threads),
    )
    workflow.remove_nodes([workflow.get_node(name) for name in LEFT_OUT])
    return _run(workflow, work)


def prepared_by_app(
    image: Path, subject: Subject, networks: Networks, work: Path, mask: Path | None = None
) -> tuple[nib.Nifti1Image, NDArray[np.bool_]]:
    """What the app gives its network, and the mask, both on the network's grid.

    The parameters are those of :func:`nodes_of`.
    """
    results = preparation_of(image, subject, networks, work, mask)
    return (
        read(results["match_histogram"].out_file),
        data_of(read(results["correct_brain"].mask_res)) > 0.5,
    )


def preparation_of(
    image: Path, subject: Subject, networks: Networks, work: Path, mask: Path | None = None
) -> dict[str, Any]:
    """Node of the app's first stage → its outputs, as :func:`nodes_of` has them."""
    engine.configure(crash_dir=work, stop_on_first_crash=True)
    workflow = init_preprocess_wf(
        _planned(image, subject, mask),
        _networks(networks, mask),
        request.Machine(device=networks.device, omp_nthreads=networks.threads),
        skull_strip="auto",
        motion_correction="off",  # what is prepared is clean; its damage comes later
        mem_gb=1.0,
    )
    return _run(workflow, work)


def refocused_by_app(
    image: Path, subject: Subject, networks: Networks, work: Path
) -> nib.Nifti1Image:
    """What the app's motion correction makes of an image, on the same grid.

    The parameters are those of :func:`nodes_of`.
    """
    weights = refocus_weights(_planned(image, subject, None))
    node = Refocus(in_file=str(image), num_threads=networks.threads, **weights)
    return read(node.run(cwd=str(work)).outputs.out_file)


def _planned(image: Path, subject: Subject, mask: Path | None) -> PlannedImage:
    source = SourceImage(image, {"sub": "benchmark"}, subject.contrast, {}, image.parent)
    (planned,) = plan([source], image.parent, override_months=subject.months, fetal=subject.fetal)
    if planned.skip_reason is not None:
        raise UsageError(f"expected an image that can be enhanced, got: {planned.skip_reason}")
    return planned if mask is None else replace(planned, mask=mask, mask_source="benchmark")


def _networks(
    networks: Networks, mask: Path | None, planned: PlannedImage | None = None
) -> request.Networks:
    labels = networks.structures
    if planned is None or (
        labels is not None
        and not labels.serves("segment", planned.age_group, planned.image.suffix)
    ):
        labels = None
    return request.Networks(
        networks.enhance,
        None if mask is not None else networks.strip,
        structures=labels,
        mirroring=networks.mirroring,
    )


def _run(workflow: Any, work: Path) -> dict[str, Any]:
    """Node → its outputs."""
    workflow.base_dir = str(work)
    plugin = SerialPlugin({"status_callback": partial(tell, stop_at_failure)})
    return {node.name: node.result.outputs for node in workflow.run(plugin=plugin).nodes()}


def stop_at_failure(event: Event) -> None:
    """Raise StepError for a step that failed."""
    if event.failure is not None:
        raise StepError(f"failed in {event.step}: {event.failure}", event.failure.exit_code)


def passed(results: Mapping[str, Any]) -> Passed:
    """Read the files of a finished workflow; ``results`` is node → outputs."""

    def data(node: str, field: str, kind: type = np.float32) -> NDArray[Any]:
        return np.asarray(data_of(read(getattr(results[node], field))), dtype=kind)

    inside = data("correct_brain", "mask_res") > 0.5
    shares = [data_of(read(path)) for path in results["network"].probabilities_before]
    return Passed(
        corrected=data("before", "brain"),
        matched=data("before", "matched"),
        enhanced=data("network", "out_file"),
        mask_res=inside,
        preproc=data("restore", "preproc_native"),
        mask=data("restore", "mask_native") > 0.5,
        labels_before=np.where(inside, np.argmax(shares, axis=0) + 1, 0).astype(np.uint8),
        labels_after=data("network", "labels", np.uint8),
        affine=read(results["network"].out_file).affine,
        structures=np.array(list(structures_in(results).items()), dtype=STRUCTURE),
    )


def structures_in(results: Mapping[str, Any]) -> dict[str, float]:
    """Structure → litres, of a finished workflow; empty where it labelled none."""
    if "segment" not in results:
        return {}
    table = results["segment"].quality["Structures"]
    return {
        part.name: table[key] / 1000
        for part in STRUCTURES
        if table.get(key := f"{part.name}_ml") is not None
    }


def volumes_in(path: Path) -> dict[str, float]:
    """Structure → litres, of the app's table of labels; empty for a table without volumes."""
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t")
        if not {"name", VOLUME} <= set(reader.fieldnames or ()):
            return {}
        return {row["name"]: float(row[VOLUME]) / 1e6 for row in reader if row[VOLUME] != "n/a"}
