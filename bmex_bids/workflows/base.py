# SPDX-License-Identifier: Apache-2.0
"""One workflow per planned image, and the workflow that holds them all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nipype.pipeline.engine import Workflow

from bmex_bids import __version__
from bmex_bids.common.names import node_name
from bmex_bids.interfaces.files import voxel_count
from bmex_bids.network.variants import facts
from bmex_bids.workflows.enhance import init_enhance_wf
from bmex_bids.workflows.outputs import init_outputs_wf
from bmex_bids.workflows.preprocess import init_preprocess_wf
from bmex_bids.workflows.report import init_report_wf
from bmex_bids.workflows.request import Machine, Networks, Target
from bmex_bids.workflows.templates import init_templates_wf

if TYPE_CHECKING:
    from bmex_bids.inputs.plan import PlannedImage

#: the version is in it, so that intermediate files of another version are not taken for ours
RUN_WORKFLOW = f"bmex_{__version__}_wf".replace(".", "_")
#: arrays of float32 that a node holds at once, about
ARRAYS_AT_ONCE = 10
#: the brain's box as a share of an image's field of view, about; and what of a network takes no
#: voxels (torch, work arrays)
BRAIN_SHARE = 0.6
NETWORK_BASE_GB = 0.7
#: bytes that a voxel takes while its edges are halved: eight of float32, eight of 16 bits, the rest
HALVING_BYTES = 8 * (4 + 2) + 32
#: nodes without an image of known size
DEFAULT_MEM_GB = 1.0


def init_run_wf(workflows: Sequence[Workflow], *, work_dir: Path) -> Workflow:
    """All images side by side; nothing connects them, so none can stop another."""
    workflow = Workflow(name=RUN_WORKFLOW, base_dir=str(work_dir))
    workflow.add_nodes(list(workflows))
    return workflow


def init_image_wf(
    planned: PlannedImage,
    networks: Networks,
    target: Target,
    machine: Machine = Machine(),  # noqa: B008 - frozen
    *,
    skull_strip: str = "auto",
    reorient: bool = False,
    motion_correction: str = "auto",
) -> Workflow:
    """From one raw image to its derivatives and its pictures.

    Parameters
    ----------
    planned : a runnable image with its age group and spacing
    skull_strip : auto, skip or force
    reorient : correct a header that calls the axes wrongly
    motion_correction : auto, or off: no step for it
    """
    if planned.age_group is None or planned.spacing_mm is None:
        raise ValueError(f"expected an image with an age group, got {planned.name} without")
    mem_gb = memory_gb(planned.image.path, planned.spacing_mm)
    workflow = Workflow(name=workflow_name(planned.name))
    preprocess = init_preprocess_wf(
        planned,
        networks,
        machine,
        skull_strip=skull_strip,
        reorient=reorient,
        motion_correction=motion_correction,
        mem_gb=mem_gb,
    )
    enhance = init_enhance_wf(
        planned,
        networks,
        machine,
        network_gb=network_gb(planned.image.path, planned.spacing_mm, networks.enhance.variant),
        halving_gb=halving_gb(planned.image.path, planned.spacing_mm),
        mem_gb=mem_gb,
    )
    outputs = init_outputs_wf(planned, target)
    report = init_report_wf(planned, output_dir=target.output_dir)
    for name in report.list_node_names():
        report.get_node(name)._mem_gb = mem_gb  # Nipype has no public way to set it later
    connect_by_name(workflow, preprocess, enhance)
    for stage in (outputs, report):
        connect_by_name(workflow, preprocess, stage)
        connect_by_name(workflow, enhance, stage)
    if planned.templates and not target.qc_only:
        templates = init_templates_wf(planned, machine)
        connect_by_name(workflow, preprocess, templates)
        connect_by_name(workflow, enhance, templates)
        for stage in (outputs, report):
            connect_by_name(workflow, templates, stage)
    return workflow


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
    return f"{node_name(image)}_wf"


def network_gb(path: Path, spacing_mm: float, variant: str) -> float:
    """What the network takes for an image when it is not told to take less, in 2^30 bytes."""
    count = voxel_count(path, spacing_mm)
    if count is None:
        return DEFAULT_MEM_GB
    size = facts(variant).bytes_per_voxel
    return round(NETWORK_BASE_GB + count * BRAIN_SHARE * size / 2**30, 2)


def halving_gb(path: Path, spacing_mm: float) -> float:
    """What it takes to halve the edges of an image's voxels, in 2^30 bytes."""
    count = voxel_count(path, spacing_mm)
    if count is None:
        return DEFAULT_MEM_GB
    return round(NETWORK_BASE_GB + count * HALVING_BYTES / 2**30, 2)


def memory_gb(path: Path, spacing_mm: float) -> float:
    """What a node needs for an image, in 2^30 bytes, by the image's size."""
    count = voxel_count(path, spacing_mm)
    if count is None:
        return DEFAULT_MEM_GB
    return round(max(0.2, count * 4 * ARRAYS_AT_ONCE / 2**30), 2)
