# SPDX-License-Identifier: Apache-2.0
"""One workflow per planned image, and the workflow that holds them all."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nipype.pipeline.engine import Workflow

from bmex_bids import __version__
from bmex_bids.interfaces.files import voxel_count
from bmex_bids.network.variants import facts
from bmex_bids.network.weights.registry import bundled, select
from bmex_bids.workflows.enhance import init_enhance_wf
from bmex_bids.workflows.outputs import init_outputs_wf
from bmex_bids.workflows.preprocess import init_preprocess_wf
from bmex_bids.workflows.report import init_report_wf

if TYPE_CHECKING:
    from bmex_bids.inputs.plan import PlannedImage
    from bmex_bids.network.weights.registry import WeightRecord

#: the version is in it, so that intermediate files of another version are not taken for ours
RUN_WORKFLOW = f"bmex_{__version__}_wf".replace(".", "_")
#: arrays of float32 that a node holds at once, about
ARRAYS_AT_ONCE = 10
#: edge of a tile in voxels where memory is short
LOW_MEM_TILE = 64
#: the brain's box as a share of an image's field of view, about; and what of a network takes no
#: voxels (torch, work arrays)
BRAIN_SHARE = 0.6
NETWORK_BASE_GB = 0.7
#: nodes without an image of known size
DEFAULT_MEM_GB = 1.0


def init_run_wf(workflows: Sequence[Workflow], *, work_dir: Path) -> Workflow:
    """All images side by side; nothing connects them, so none can stop another."""
    workflow = Workflow(name=RUN_WORKFLOW, base_dir=str(work_dir))
    workflow.add_nodes(list(workflows))
    return workflow


def init_image_wf(
    planned: PlannedImage,
    *,
    bids_dir: Path,
    output_dir: Path,
    weights: WeightRecord,
    strip_weights: WeightRecord | None = None,
    skull_strip: str = "auto",
    output_res: Sequence[str] = ("native", "0p8"),
    qc_only: bool = False,
    fingerprint: Mapping[str, str] | None = None,
    device: str = "auto",
    use_gpu: bool = False,
    low_mem: bool = False,
    geometry: str = "fast",
    mirroring: bool = True,
    precision: str = "auto",
    memory_limit_gb: float | None = None,
    omp_nthreads: int = 1,
) -> Workflow:
    """From one raw image to its derivatives and its pictures.

    Parameters
    ----------
    planned : a runnable image with its age group and spacing
    bids_dir, output_dir : the two datasets
    weights : of the enhancement network
    strip_weights : of the stripping network; None where ``skull_strip`` is ``"skip"``
        or ``planned`` has a given mask
    skull_strip : auto, skip or force
    output_res, qc_only : what is written; see ``outputs.sidecar.chosen_products``
    fingerprint : what the products are made from; see ``outputs.resume``
    device, use_gpu : for the networks; nodes with ``use_gpu`` wait for a GPU slot
    low_mem : small tiles
    omp_nthreads : threads of one node
    """
    if planned.age_group is None or planned.spacing_mm is None:
        raise ValueError(f"expected an image with an age group, got {planned.name} without")
    mem_gb = memory_gb(planned.image.path, planned.spacing_mm)
    workflow = Workflow(name=workflow_name(planned.name))
    preprocess = init_preprocess_wf(
        planned.image.path,
        contrast=planned.image.suffix,
        age_group=planned.age_group,
        spacing_mm=planned.spacing_mm,
        age_months=planned.age.months if planned.age else None,
        fetal=planned.age_group == "fetal",
        skull_strip=skull_strip,
        strip_weights=None if strip_weights is None else as_table(strip_weights),
        mask=planned.mask,
        mask_source=planned.mask_source,
        **input_preparation(weights),
        device=device,
        use_gpu=use_gpu and skull_strip != "skip" and planned.mask is None,
        omp_nthreads=omp_nthreads,
        mem_gb=mem_gb,
    )
    enhance = init_enhance_wf(
        weights=as_table(weights),
        yardstick=yardstick(weights),
        age_months=planned.age.months if planned.age else None,
        fetal=planned.age_group == "fetal",
        contrast=planned.image.suffix,
        device=device,
        use_gpu=use_gpu,
        tile=LOW_MEM_TILE if low_mem else None,
        geometry=geometry,
        mirroring=mirroring,
        precision=precision,
        memory_limit_gb=memory_limit_gb,
        network_gb=network_gb(planned.image.path, planned.spacing_mm, weights.variant),
        omp_nthreads=omp_nthreads,
        mem_gb=mem_gb,
    )
    outputs = init_outputs_wf(
        planned,
        bids_dir=bids_dir,
        output_dir=output_dir,
        output_res=output_res,
        qc_only=qc_only,
        fingerprint=fingerprint,
    )
    report = init_report_wf(planned, output_dir=output_dir)
    for name in report.list_node_names():
        report.get_node(name)._mem_gb = mem_gb  # Nipype has no public way to set it later
    connect_by_name(workflow, preprocess, enhance)
    for target in (outputs, report):
        connect_by_name(workflow, preprocess, target)
        connect_by_name(workflow, enhance, target)
    return workflow


def yardstick(weights: WeightRecord) -> dict[str, Any] | None:
    """Which network the gate's tissues are found with, where it is not the enhancement's own.

    Finding tissues once more with a published network takes half as long as the enhancement; the
    bundled one also makes what the gate says of different weights comparable.
    """
    if weights.variant in {record.variant for record in bundled() if record.kind == "enhance"}:
        return None
    return as_table(select("enhance", weights="bundled"))


def connect_by_name(workflow: Workflow, source: Workflow, target: Workflow) -> None:
    """Connect each output of ``source`` to the input of ``target`` that has its name."""
    offered = source.get_node("outputnode").interface._fields
    wanted = target.get_node("inputnode").interface._fields
    workflow.connect(
        [
            (source, target, [(f"outputnode.{field}", f"inputnode.{field}")])
            for field in offered
            if field in wanted
        ]
    )


def workflow_name(image: str) -> str:
    """A Nipype name for an image.

    >>> workflow_name("sub-0001_ses-V01_T1w")
    'sub_0001_ses_V01_T1w_wf'
    """
    return re.sub(r"\W", "_", image) + "_wf"


def input_preparation(weights: WeightRecord) -> dict[str, Any]:
    """How a network's input is resampled and matched: as in its training.

    The published weights know linear interpolation and the published histogram matching (see
    ``imaging.intensity.match_histogram``); ours know a sharper image, matched inside the brain, and
    the network over slices one whose tissues have the levels of its age.
    """
    variant = facts(weights.variant)
    return {"histogram_method": variant.histogram_method, "order": variant.order}


def as_table(record: WeightRecord) -> dict[str, Any]:
    """A weight record as plain values, so that Nipype can hash and store it."""
    table = dataclasses.asdict(record)
    return {
        key: str(value)
        if isinstance(value, Path)
        else list(value)
        if isinstance(value, tuple)
        else value
        for key, value in table.items()
    }


def network_gb(path: Path, spacing_mm: float, variant: str) -> float:
    """What the network takes for an image when it is not told to take less, in 2^30 bytes."""
    count = voxel_count(path, spacing_mm)
    if count is None:
        return DEFAULT_MEM_GB
    size = facts(variant).bytes_per_voxel
    return round(NETWORK_BASE_GB + count * BRAIN_SHARE * size / 2**30, 2)


def memory_gb(path: Path, spacing_mm: float) -> float:
    """What a node needs for an image, in 2^30 bytes, by the image's size."""
    count = voxel_count(path, spacing_mm)
    if count is None:
        return DEFAULT_MEM_GB
    return round(max(0.2, count * 4 * ARRAYS_AT_ONCE / 2**30), 2)
