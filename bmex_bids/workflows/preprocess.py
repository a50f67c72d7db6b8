# SPDX-License-Identifier: Apache-2.0
"""The stage *preprocess*: from a raw image to what the network is fed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nipype.interfaces.utility import IdentityInterface
from nipype.pipeline.engine import Node, Workflow

from bmex_bids.common.contrasts import CONTRASTS
from bmex_bids.interfaces.preprocess import (
    Conform,
    CorrectBrain,
    CorrectHead,
    MaskBrain,
    MatchHistogram,
)
from bmex_bids.interfaces.refocus import Before, Refocus
from bmex_bids.interfaces.reorient import Reorient
from bmex_bids.network.variants import facts
from bmex_bids.network.weights.registry import bundled_of, select
from bmex_bids.workflows.request import Machine, Networks, as_table

if TYPE_CHECKING:
    from bmex_bids.inputs.plan import PlannedImage

#: kinds of bundled networks: what lies within thick slices, and noise
BUNDLED = ("within", "denoise")
#: arrays of the image that the motion correction holds at once, over those of ``mem_gb``
REFOCUS_SHARE = 1.2
#: what the networks that hint at jumps take besides, 2^30 bytes
HINTS_GB = 0.7

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
    "refocus",
    "split_slices",
    "conformed_before",
    "corrected_before",
    "native_before",
    "matched_before",
]


def init_preprocess_wf(
    planned: PlannedImage,
    networks: Networks,
    machine: Machine,
    *,
    skull_strip: str,
    reorient: bool = False,
    motion_correction: str = "auto",
    mem_gb: float,
) -> Workflow:
    """Conform, undo motion, correct the bias field, find the brain, resample, match the histogram.

    Parameters
    ----------
    skull_strip : auto, skip or force
    reorient : correct a header that calls the axes wrongly
    motion_correction : auto, or off: no step for it; there is none either for a ratio of images
    mem_gb : what a node needs for an image of this size

    Outputs
    -------
    conformed : LPS+, input intensities, motion undone
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
    refocus : what the motion correction did; none with ``off``
    split_slices : thick slices of the scan that were split; empty for none
    conformed_before, corrected_before, native_before, matched_before : the image as it came, with
        field, mask and intensities of the one whose motion was undone; the same files where none was
    """
    variant = facts(networks.enhance.variant)
    age_months = planned.age.months if planned.age else None
    threads = machine.omp_nthreads
    workflow = Workflow(name="preprocess_wf")
    ratio = CONTRASTS[planned.image.suffix].ratio
    conform = Node(
        Conform(in_file=str(planned.image.path), noisy_background=ratio),
        name="conform",
        mem_gb=mem_gb,
    )
    correct_head = Node(
        CorrectHead(num_threads=threads), name="correct_head", n_procs=threads, mem_gb=mem_gb
    )
    how: dict[str, Any] = {
        "skull_strip": skull_strip,
        "device": machine.device,
        "use_gpu": machine.use_gpu and skull_strip != "skip" and planned.mask is None,
        "num_threads": threads,
    }
    if networks.strip is not None:
        how["weights"] = as_table(networks.strip)
    if planned.mask is not None:
        how |= {"given_mask": str(planned.mask), "given_source": planned.mask_source}
    find_brain = Node(
        MaskBrain(age_months=age_months, fetal=planned.age_group == "fetal", **how),
        name="find_brain",
        n_procs=threads,
        mem_gb=2 * mem_gb,
    )
    within = _bundled_table("within")
    correct_brain = Node(
        CorrectBrain(
            spacing_mm=planned.spacing_mm,
            order=variant.order,
            within_weights=within,
            num_threads=threads,
        ),
        name="correct_brain",
        n_procs=threads,
        mem_gb=mem_gb,
    )
    match = Node(
        MatchHistogram(
            age_group=planned.age_group,
            contrast=planned.contrast,
            method=variant.histogram_method,
            age_months=age_months,
        ),
        name="match_histogram",
        mem_gb=mem_gb,
    )
    if planned.histogram is not None:
        match.inputs.template = [str(path) for path in planned.histogram.files]
    outputnode = Node(IdentityInterface(fields=OUTPUTS), name="outputnode")
    if reorient:
        turn = Node(
            Reorient(in_file=str(planned.image.path), **how),
            name="reorient",
            n_procs=threads,
            mem_gb=2 * mem_gb,
        )
        workflow.connect(turn, "out_file", conform, "in_file")
        workflow.connect(turn, "turn", find_brain, "reoriented")
        if planned.mask is not None:
            workflow.connect(turn, "given_mask", find_brain, "given_mask")
    workflow.connect(
        [
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
            (conform, outputnode, [("out_file", "conformed_before"), ("original", "original")]),
            (correct_head, outputnode, [("corrected", "corrected")]),
            (correct_head, correct_brain, [("field", "field")]),
            (
                correct_brain,
                outputnode,
                [(name, name) for name in ("native", "field", "split_slices")],
            ),
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
    head = conform
    if motion_correction == "off" or ratio:
        workflow.connect(
            [
                (correct_head, outputnode, [("corrected", "corrected_before")]),
                (correct_brain, outputnode, [("native", "native_before")]),
                (match, outputnode, [("out_file", "matched_before")]),
            ]
        )
    else:
        weights = refocus_weights(planned)
        head = Node(
            Refocus(**weights, num_threads=threads),
            name="refocus",
            n_procs=threads,
            mem_gb=REFOCUS_SHARE * mem_gb + (HINTS_GB if "hint_weights" in weights else 0),
        )
        before = Node(
            Before(spacing_mm=planned.spacing_mm, order=variant.order, within_weights=within),
            name="before",
            mem_gb=mem_gb,
        )
        workflow.connect(
            [
                (conform, head, [("out_file", "in_file")]),
                (head, outputnode, [("refocus", "refocus")]),
                (head, before, [("refocus", "refocus")]),
                (conform, before, [("out_file", "conformed")]),
                (
                    correct_head,
                    before,
                    [
                        ("corrected", "corrected"),
                        ("scale_file", "head_scale"),
                        ("field", "head_field"),
                    ],
                ),
                (
                    correct_brain,
                    before,
                    [
                        ("native", "native"),
                        ("field", "field"),
                        ("out_file", "brain"),
                        ("mask_res", "mask_res"),
                    ],
                ),
                (
                    match,
                    before,
                    [("out_file", "matched"), ("intensity_json", "intensity_json")],
                ),
                (
                    before,
                    outputnode,
                    [(name, f"{name}_before") for name in ("corrected", "native", "matched")],
                ),
            ]
        )
    workflow.connect(
        [
            (head, correct_head, [("out_file", "in_file")]),
            (head, find_brain, [("out_file", "in_file")]),
            (head, outputnode, [("out_file", "conformed")]),
        ]
    )
    return workflow


def refocus_weights(planned: PlannedImage) -> dict[str, Any]:
    """The weights that ``Refocus`` gets for an image: its inputs, by their names."""
    tables = {f"{kind}_weights": _bundled_table(kind) for kind in BUNDLED}
    return tables | _hint_weights(planned)


def _bundled_table(kind: str) -> dict[str, Any]:
    record = bundled_of(kind)
    return {} if record is None else as_table(record)


def _hint_weights(planned: PlannedImage) -> dict[str, Any]:
    """Inputs of ``Refocus``: the networks that hint at jumps of the head, where one is for this image.

    It is the bundled one, whichever network enhances the image.
    """
    record = select(
        "enhance",
        age_group=planned.age_group,
        contrast=planned.contrast,
        age_months=planned.age.months if planned.age else None,
        weights="bundled",
    )
    strip = bundled_of("strip")
    if not facts(record.variant).slices or strip is None:
        return {}
    return {"hint_weights": as_table(record), "strip_weights": as_table(strip)}
