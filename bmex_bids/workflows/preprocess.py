# SPDX-License-Identifier: Apache-2.0
"""The stage *preprocess*: from a raw image to what the network is fed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nipype.interfaces.utility import IdentityInterface
from nipype.pipeline.engine import Node, Workflow

from bmex_bids.interfaces.preprocess import (
    Conform,
    CorrectBrain,
    CorrectHead,
    MaskBrain,
    MatchHistogram,
)

OUTPUTS = [
    "conformed",
    "corrected",
    "native",
    "field",
    "mask",
    "matched",
    "mask_res",
    "original",
    "intensity_json",
    "mask_info",
    "stripped",
]


def init_preprocess_wf(
    source: Path,
    *,
    contrast: str,
    age_group: str,
    spacing_mm: float,
    age_months: float | None = None,
    fetal: bool = False,
    skull_strip: str = "auto",
    strip_weights: dict[str, Any] | None = None,
    mask: Path | None = None,
    mask_source: str = "",
    histogram_method: str = "brain",
    order: int = 3,
    device: str = "auto",
    use_gpu: bool = False,
    omp_nthreads: int = 1,
    mem_gb: float = 1.0,
    name: str = "preprocess_wf",
) -> Workflow:
    """Conform, correct the bias field, find the brain, resample, match the histogram.

    Parameters
    ----------
    source : raw image
    contrast, age_group : choose the histogram reference
    spacing_mm : of the network's grid
    age_months, fetal : what volume of brain is plausible
    skull_strip : auto, skip or force
    strip_weights : record of the stripping network as a dict; None where it is not needed
    mask, mask_source : a brain mask made elsewhere, used instead of ours, and whose it is
    histogram_method : ``"brain"`` or ``"published"`` (see ``imaging.intensity.match_histogram``),
        or ``"levels"`` (see ``imaging.levels.match_levels``)
    order : of interpolation to the network's grid
    device, use_gpu : for the stripping network
    mem_gb : what a node needs for an image of this size

    Outputs
    -------
    conformed : LPS+, input intensities
    corrected : the same grid, 0…1000 and above, N4 over the head
    native : the same grid, 0…1000, N4 over the head and again within the brain
    field : the same grid, what the raw image was divided by
    mask : the same grid, uint8
    matched : network grid, template units, zero outside the mask
    mask_res : network grid, uint8
    original : the raw image
    intensity_json : input intensities → 0…1000 → template units
    mask_info : how the mask was made, its volume, pieces, border contact, warnings
    stripped : whether the image came without a skull
    """
    workflow = Workflow(name=name)
    conform = Node(Conform(in_file=str(source)), name="conform", mem_gb=mem_gb)
    correct_head = Node(
        CorrectHead(num_threads=omp_nthreads),
        name="correct_head",
        n_procs=omp_nthreads,
        mem_gb=mem_gb,
    )
    find_brain = Node(
        MaskBrain(
            skull_strip=skull_strip,
            device=device,
            use_gpu=use_gpu,
            age_months=age_months,
            fetal=fetal,
            num_threads=omp_nthreads,
        ),
        name="find_brain",
        n_procs=omp_nthreads,
        mem_gb=2 * mem_gb,
    )
    if strip_weights is not None:
        find_brain.inputs.weights = strip_weights
    if mask is not None:
        find_brain.inputs.given_mask = str(mask)
        find_brain.inputs.given_source = mask_source
    correct_brain = Node(
        CorrectBrain(spacing_mm=spacing_mm, order=order, num_threads=omp_nthreads),
        name="correct_brain",
        n_procs=omp_nthreads,
        mem_gb=mem_gb,
    )
    match = Node(
        MatchHistogram(
            age_group=age_group,
            contrast=contrast,
            method=histogram_method,
            age_months=age_months,
        ),
        name="match_histogram",
        mem_gb=mem_gb,
    )
    outputnode = Node(IdentityInterface(fields=OUTPUTS), name="outputnode")
    workflow.connect(
        [
            (conform, correct_head, [("out_file", "in_file")]),
            (conform, find_brain, [("out_file", "in_file")]),
            (correct_head, find_brain, [("corrected", "corrected")]),
            (
                correct_head,
                correct_brain,
                [("corrected", "in_file"), ("scale_file", "scale_file")],
            ),
            (find_brain, correct_brain, [("out_file", "mask")]),
            (
                correct_brain,
                match,
                [("out_file", "in_file"), ("mask_res", "mask"), ("scale_file", "scale_file")],
            ),
            (conform, outputnode, [("out_file", "conformed"), ("original", "original")]),
            (correct_head, outputnode, [("corrected", "corrected")]),
            (correct_head, correct_brain, [("field", "field")]),
            (correct_brain, outputnode, [("native", "native"), ("field", "field")]),
            (
                find_brain,
                outputnode,
                [("out_file", "mask"), ("mask_info", "mask_info"), ("stripped", "stripped")],
            ),
            (correct_brain, outputnode, [("mask_res", "mask_res")]),
            (
                match,
                outputnode,
                [("out_file", "matched"), ("intensity_json", "intensity_json")],
            ),
        ]
    )
    return workflow
