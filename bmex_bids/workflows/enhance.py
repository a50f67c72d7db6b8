# SPDX-License-Identifier: Apache-2.0
"""The stages *enhance* and *quality*: the network, the figures, and back to the input's grid."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nipype.interfaces.utility import IdentityInterface
from nipype.pipeline.engine import Node, Workflow

from bmex_bids.interfaces.enhance import Enhance, Restore
from bmex_bids.interfaces.halve import Halve
from bmex_bids.interfaces.quality import MeasureLikeMriqc, MeasureQuality
from bmex_bids.interfaces.segment import Segment
from bmex_bids.network.weights.registry import bundled, bundled_of, select, tissue_finder
from bmex_bids.workflows.request import Machine, Networks, as_table

if TYPE_CHECKING:
    from bmex_bids.inputs.plan import PlannedImage
    from bmex_bids.network.weights.registry import WeightRecord

#: edge of a tile in voxels where memory is short
LOW_MEM_TILE = 64

#: what the labelling of structures takes for a large brain beside its images, 2^30 bytes
SEGMENT_GB = 1.0

INPUTS = [
    "matched",
    "mask",
    "mask_res",
    "mask_info",
    "stripped",
    "corrected",
    "conformed",
    "native",
    "field",
    "original",
    "intensity_json",
    "conformed_before",
    "corrected_before",
    "native_before",
    "matched_before",
    "refocus",
]
#: on the grid of the input
RESTORED = Restore.output_spec().copyable_trait_names()
OUTPUTS = [
    "enhanced_res",
    "dseg_res",
    "probseg_res",
    "structures_res",
    "structures_native",
    "enhanced_half",
    *RESTORED,
    "quality",
    "gate",
    "provenance",
    "deviation",
]


def init_enhance_wf(
    planned: PlannedImage,
    networks: Networks,
    machine: Machine,
    *,
    network_gb: float,
    halving_gb: float,
    mem_gb: float,
) -> Workflow:
    """Classify the tissues, enhance, measure, and go back to the input's grid and intensities.

    Parameters
    ----------
    network_gb : what the network takes for an image of this size when nothing limits it
    halving_gb : what halving the edges of voxels takes
    mem_gb : what a node needs for an image of this size

    Inputs
    ------
    the fields of :data:`INPUTS`, as ``init_preprocess_wf`` gives them

    Outputs
    -------
    enhanced_res : network grid, template units, zero outside the mask
    dseg_res : network grid, 0 background, 1 CSF, 2 GM, 3 WM
    probseg_res : network grid, [CSF, GM, WM]
    enhanced_native : input grid, template units
    preproc_native : input grid and intensities, the enhanced brain in its head
    mask_native : input grid, uint8
    dseg_native, dseg_before : input grid, 0 none, 1 GM, 2 WM, 3 CSF; of the image as it came
    probseg_native : input grid, [CSF, GM, WM]
    structures_res, structures_native : network grid, input grid, numbers of ``common.structures``;
        none where no network for them is given
    enhanced_half : half the edge of the network grid, template units; none where no network for it
        is given
    uncertainty_native : input grid, template units; none where the network has not learnt it
    quality : the score, tct_before …; None where it could not be measured
    gate : verdict and rules, as they go into a sidecar
    provenance : weights, device, precision, seconds
    """
    workflow = Workflow(name="enhance_wf")
    inputnode = Node(IdentityInterface(fields=INPUTS), name="inputnode")
    network = Node(
        Enhance(
            weights=as_table(networks.enhance),
            device=machine.device,
            use_gpu=machine.use_gpu,
            num_threads=machine.omp_nthreads,
            geometry=networks.geometry,
            mirroring=networks.mirroring,
            precision=networks.precision,
            max_change=networks.max_change,
        ),
        name="network",
        n_procs=machine.omp_nthreads,
        mem_gb=network_gb,
    )
    measuring = yardstick(networks.enhance)
    if measuring is not None:
        network.inputs.yardstick = as_table(measuring)
    finder = tissue_finder(networks.enhance, planned.age_group, planned.contrast)
    if finder is not None:
        network.inputs.tissue_weights = as_table(finder)
        network._mem_gb = max(network_gb, SEGMENT_GB + 2 * mem_gb)
    if machine.memory_limit_gb is not None:
        network.inputs.memory_mb = machine.memory_limit_gb * 1024
        network._mem_gb = min(network._mem_gb, machine.memory_limit_gb)
    if machine.low_mem:
        network.inputs.tile = LOW_MEM_TILE
    quality = Node(
        MeasureQuality(
            age_months=planned.age.months if planned.age else None,
            fetal=planned.age_group == "fetal",
            contrast=planned.contrast,
        ),
        name="quality",
        mem_gb=mem_gb,
    )
    scoring = bundled_of("score")
    if scoring is not None:
        quality.inputs.score_weights = as_table(scoring)
    restore = Node(
        Restore(max_change=networks.max_change),
        name="restore",
        mem_gb=2 * mem_gb,
    )
    mriqc = Node(MeasureLikeMriqc(), name="mriqc", mem_gb=2 * mem_gb)
    outputnode = Node(IdentityInterface(fields=OUTPUTS), name="outputnode")
    workflow.connect(
        [
            (
                inputnode,
                network,
                [
                    ("matched", "in_file"),
                    ("matched_before", "before"),
                    ("mask_res", "mask"),
                    ("original", "original"),
                ],
            ),
            (
                inputnode,
                quality,
                [
                    ("matched_before", "before"),
                    ("matched", "refocused"),
                    ("corrected_before", "corrected"),
                    *(
                        (field, field)
                        for field in (
                            "mask",
                            "mask_res",
                            "mask_info",
                            "intensity_json",
                            "refocus",
                        )
                    ),
                ],
            ),
            (
                network,
                quality,
                [
                    ("out_file", "after"),
                    ("labels", "labels"),
                    ("labels_before", "labels_before"),
                    ("labels_after", "labels_after"),
                    ("deviation", "deviation"),
                    ("litres_sd", "litres_sd"),
                    ("training_distance", "training_distance"),
                ],
            ),
            (
                inputnode,
                restore,
                [
                    (field, field)
                    for field in (
                        "original",
                        "conformed",
                        "native",
                        "field",
                        "mask",
                        "mask_res",
                        "matched",
                    )
                ],
            ),
            (
                inputnode,
                restore,
                [("intensity_json", "intensity_json"), ("native_before", "before")],
            ),
            (
                network,
                restore,
                [
                    ("out_file", "enhanced"),
                    ("probabilities", "probabilities"),
                    ("probabilities_before", "probabilities_before"),
                    ("deviation", "deviation"),
                ],
            ),
            (
                restore,
                quality,
                [("dseg_native", "dseg"), ("dseg_before", "dseg_before")],
            ),
            (
                network,
                outputnode,
                [
                    ("out_file", "enhanced_res"),
                    ("labels", "dseg_res"),
                    ("probabilities", "probseg_res"),
                    ("deviation", "deviation"),
                ],
            ),
            (
                inputnode,
                mriqc,
                [
                    ("conformed_before", "conformed"),
                    *((field, field) for field in ("field", "mask", "mask_res", "stripped")),
                ],
            ),
            (
                network,
                mriqc,
                [(name, name) for name in ("probabilities_before", "probabilities")],
            ),
            (restore, mriqc, [("preproc_native", "preproc")]),
            (quality, mriqc, [("quality", "quality")]),
            (quality, outputnode, [("gate", "gate")]),
            (
                restore,
                outputnode,
                [(field, field) for field in RESTORED],
            ),
        ]
    )
    if networks.halving is None:
        workflow.connect(network, "provenance", outputnode, "provenance")
    else:
        halve = Node(
            Halve(
                weights=as_table(networks.halving),
                device=machine.device,
                use_gpu=machine.use_gpu,
                num_threads=machine.omp_nthreads,
            ),
            name="halve",
            n_procs=machine.omp_nthreads,
            mem_gb=halving_gb,
        )
        made = [(name, name) for name in ("enhanced_half", "provenance")]
        workflow.connect(
            [
                (inputnode, halve, [("mask_res", "mask_res"), ("original", "original")]),
                (network, halve, [("out_file", "enhanced"), ("provenance", "provenance")]),
                (halve, outputnode, made),
            ]
        )
    if networks.structures is None:
        workflow.connect([(mriqc, outputnode, [("quality", "quality")])])
        return workflow
    segment = Node(
        Segment(
            weights=as_table(networks.structures),
            device=machine.device,
            use_gpu=machine.use_gpu,
            num_threads=machine.omp_nthreads,
        ),
        name="segment",
        n_procs=machine.omp_nthreads,
        mem_gb=SEGMENT_GB + 2 * mem_gb,
    )
    workflow.connect(
        [
            (
                inputnode,
                segment,
                [(field, field) for field in ("mask", "mask_res", "original")],
            ),
            (
                network,
                segment,
                [("out_file", "enhanced"), ("probabilities", "probabilities")],
            ),
            (mriqc, segment, [("quality", "quality")]),
            (
                segment,
                outputnode,
                [(name, name) for name in ("structures_res", "structures_native", "quality")],
            ),
        ]
    )
    return workflow


def yardstick(weights: WeightRecord) -> WeightRecord | None:
    """Which network the gate's tissues are found with, where it is not the enhancement's own.

    Finding tissues once more with a published network takes half as long as the enhancement; the
    bundled one also makes what the gate says of different weights comparable.
    """
    if weights.variant in {record.variant for record in bundled() if record.kind == "enhance"}:
        return None
    return select("enhance", weights="bundled")
