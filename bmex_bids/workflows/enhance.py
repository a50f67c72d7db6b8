# SPDX-License-Identifier: Apache-2.0
"""The stages *enhance* and *quality*: the network, the figures, and back to the input's grid."""

from __future__ import annotations

from typing import Any

from nipype.interfaces.utility import IdentityInterface
from nipype.pipeline.engine import Node, Workflow

from bmex_bids.interfaces.enhance import Enhance, Restore
from bmex_bids.interfaces.quality import MeasureQuality

INPUTS = [
    "matched",
    "mask",
    "mask_res",
    "mask_info",
    "corrected",
    "conformed",
    "native",
    "field",
    "original",
    "intensity_json",
]
#: on the grid of the input
RESTORED = Restore.output_spec().copyable_trait_names()
OUTPUTS = [
    "enhanced_res",
    "dseg_res",
    "probseg_res",
    *RESTORED,
    "quality",
    "gate",
    "provenance",
]


def init_enhance_wf(
    *,
    weights: dict[str, Any],
    yardstick: dict[str, Any] | None = None,
    age_months: float | None = None,
    fetal: bool = False,
    contrast: str = "T1w",
    device: str = "auto",
    use_gpu: bool = False,
    tile: int | None = None,
    geometry: str = "fast",
    mirroring: bool = True,
    precision: str = "auto",
    memory_limit_gb: float | None = None,
    network_gb: float | None = None,
    omp_nthreads: int = 1,
    mem_gb: float = 1.0,
    name: str = "enhance_wf",
) -> Workflow:
    """Classify the tissues, enhance, measure, and go back to the input's grid and intensities.

    Parameters
    ----------
    weights : record of the enhancement network as a dict
    yardstick : record of the network that finds the tissues which the gate compares; None is the
        enhancement network
    age_months, fetal : what volume of brain is plausible
    contrast : that the image is said to have
    device, use_gpu : for the network
    tile : largest edge of a tile in voxels; None is as large as memory allows
    geometry : ``"fast"`` or ``"reference"``, see ``network.predict``
    mirroring : average over mirror images of the brain, where the weights know them
    precision : of the network's features, see ``network.predict``
    memory_limit_gb : what a run may take, 2^30 bytes; tiles become smaller for it
    network_gb : what the network takes for an image of this size; None is ``2 * mem_gb``
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
    dseg_native : input grid, 0 none, 1 GM, 2 WM, 3 CSF
    probseg_native : input grid, [CSF, GM, WM]
    quality : tct_before, tct_after, qi, what else was measured; None where it could not be
    gate : verdict and rules, as they go into a sidecar
    provenance : weights, device, precision, seconds
    """
    workflow = Workflow(name=name)
    inputnode = Node(IdentityInterface(fields=INPUTS), name="inputnode")
    network = Node(
        Enhance(
            weights=weights,
            device=device,
            use_gpu=use_gpu,
            num_threads=omp_nthreads,
            geometry=geometry,
            mirroring=mirroring,
            precision=precision,
        ),
        name="network",
        n_procs=omp_nthreads,
        mem_gb=2 * mem_gb if network_gb is None else network_gb,
    )
    if yardstick is not None:
        network.inputs.yardstick = yardstick
    if memory_limit_gb is not None:
        network.inputs.memory_mb = memory_limit_gb * 1024
        network._mem_gb = min(network._mem_gb, memory_limit_gb)
    if tile is not None:
        network.inputs.tile = tile
    quality = Node(
        MeasureQuality(age_months=age_months, fetal=fetal, contrast=contrast),
        name="quality",
        mem_gb=mem_gb,
    )
    restore = Node(Restore(), name="restore", mem_gb=2 * mem_gb)
    outputnode = Node(IdentityInterface(fields=OUTPUTS), name="outputnode")
    workflow.connect(
        [
            (
                inputnode,
                network,
                [("matched", "in_file"), ("mask_res", "mask"), ("original", "original")],
            ),
            (
                inputnode,
                quality,
                [
                    ("matched", "before"),
                    *((field, field) for field in ("corrected", "mask", "mask_res", "mask_info")),
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
            (inputnode, restore, [("intensity_json", "intensity_json")]),
            (network, restore, [("out_file", "enhanced"), ("probabilities", "probabilities")]),
            (
                network,
                outputnode,
                [
                    ("out_file", "enhanced_res"),
                    ("labels", "dseg_res"),
                    ("probabilities", "probseg_res"),
                    ("provenance", "provenance"),
                ],
            ),
            (quality, outputnode, [("quality", "quality"), ("gate", "gate")]),
            (
                restore,
                outputnode,
                [(field, field) for field in RESTORED],
            ),
        ]
    )
    return workflow
