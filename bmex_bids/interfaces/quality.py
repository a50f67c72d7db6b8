# SPDX-License-Identifier: Apache-2.0
"""Nodes of the stage *quality*: figures before and after, and the gate's verdict on them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    TraitedSpec,
    isdefined,
    traits,
)
from numpy.typing import NDArray

from bmex_bids.common.contrasts import MEAN, SUFFIXES
from bmex_bids.common.tissues import TISSUES
from bmex_bids.imaging.intensity import HistogramMatch
from bmex_bids.imaging.likeness import TOWARDS, describe_turn
from bmex_bids.imaging.mask import plausible_litres
from bmex_bids.imaging.orientation import voxel_sizes
from bmex_bids.interfaces.enhance import resampled_inside, to_axes_of
from bmex_bids.interfaces.files import data_of, read
from bmex_bids.interfaces.step import Step
from bmex_bids.interfaces.weights import weight_record
from bmex_bids.metrics import mriqc
from bmex_bids.metrics.anatomy import brightness_order, flat_face, white_depth
from bmex_bids.metrics.change import (
    correlation,
    empty_share,
    estimated_error,
    mean_shift,
    tissue_litres,
)
from bmex_bids.metrics.contrast import fluid_contrast, may_be_clipping
from bmex_bids.metrics.gate import Measures, judge, largest_change
from bmex_bids.metrics.limits import FLUID_CONTRAST
from bmex_bids.metrics.tissue import quality_index, tct
from bmex_bids.network.inference.score import (
    Score,
    after_change,
    at_least,
    before_change,
    change_between,
    of_slices,
    rms_of,
    score,
)

#: what a sidecar says of the image's quality, besides the tissues' volumes; the figures of the
#: mask are under its key ``Mask``
FIGURES = (
    "tct_before",
    "tct_after",
    "qi",
    "correlation",
    "mean_shift",
    "empty_share",
    "fluid_contrast",
    "estimated_error_before",
    "estimated_error_after",
    "training_distance",
    "enhanced_tissue_change",
)


class MeasureQualityInput(BaseInterfaceInputSpec):
    before = File(exists=True, mandatory=True, desc="as it came, matched, template units")
    refocused = File(
        exists=True, desc="the network's input, motion undone; before where it is not given"
    )
    after = File(exists=True, mandatory=True, desc="enhanced image, template units")
    labels = File(exists=True, mandatory=True, desc="0 background, 1 CSF, 2 GM, 3 WM")
    labels_before = File(exists=True, mandatory=True, desc="of the network's input, to compare")
    labels_after = File(exists=True, mandatory=True, desc="of the enhanced image, found likewise")
    dseg = File(exists=True, mandatory=True, desc="tissues as they are written, input grid")
    dseg_before = File(exists=True, mandatory=True, desc="the same of the image as it came")
    mask_res = File(exists=True, mandatory=True, desc="network grid")
    deviation = File(exists=True, desc="expected error, template units; or none")
    litres_sd = traits.Dict(desc="tissue → standard deviation of its volume; may be empty")
    training_distance = traits.Either(
        None, traits.Float, usedefault=True, desc="from images that trained the network, usual: 1"
    )
    corrected = File(exists=True, mandatory=True, desc="the head, 0…1000")
    mask = File(exists=True, mandatory=True, desc="on the grid of corrected")
    mask_info = traits.Dict(mandatory=True, desc="volume, pieces, border contact")
    age_months = traits.Either(None, traits.Float, usedefault=True, desc="None: not known")
    fetal = traits.Bool(False, usedefault=True)
    contrast = traits.Enum(*SUFFIXES, usedefault=True, desc="that the image is said to have")
    score_weights = traits.Dict(desc="record of the network that scores; none: no score")
    intensity_json = File(exists=True, desc="how the histogram was matched, for the score")
    refocus = traits.Dict(
        desc="motion that was undone; slices: Thickness in mm; each may be empty"
    )


class MeasureQualityOutput(TraitedSpec):
    quality = traits.Dict(
        desc="numbers by name, None where it cannot be measured; tables of the score"
    )
    gate = traits.Dict(desc="verdict and rules, as they go into a sidecar")


class MeasureQuality(Step):
    """Tissue contrast before and after, the quality index, and the quality gate.

    The gate only labels: no verdict stops a node.
    """

    input_spec = MeasureQualityInput
    output_spec = MeasureQualityOutput

    def work(self, folder: str) -> None:
        scored = scores(self.inputs)
        motion: dict[str, Any] = {
            f"motion_{when}": (scored.get("Score", {}).get(when) or {}).get("motion")
            for when in ("before", "after")
        }
        measures = replace(measure(self.inputs), **motion)
        spread = {f"{k.lower()}_litres_sd": v for k, v in (self.inputs.litres_sd or {}).items()}
        self._results["quality"] = scored | figures(measures) | spread
        self._results["gate"] = judge(measures).as_table()


def measure(inputs: Any) -> Measures:
    """All that the gate judges, from a node's inputs; NaN where it cannot be measured."""
    image = read(inputs.before)
    before, after = data_of(image), data_of(read(inputs.after))
    labels, labels_before, labels_after, inside = (
        data_of(read(path, "uint8"))
        for path in (inputs.labels, inputs.labels_before, inputs.labels_after, inputs.mask_res)
    )
    # what the network was given: to undo motion may change much, and the network must not
    given = data_of(read(inputs.refocused)) if isdefined(inputs.refocused) else before
    info = inputs.mask_info
    errors: tuple[float | None, float | None] = (None, None)
    if isdefined(inputs.deviation):
        deviation = data_of(read(inputs.deviation))
        errors = estimated_error(before, after, deviation, inside > 0)
    corrected = read(inputs.corrected)
    head, mask = data_of(corrected), data_of(read(inputs.mask, "uint8")) > 0
    return Measures(
        contrast=inputs.contrast,
        fluid_contrast=_contrast(corrected, mask, inputs),
        volume_litres=info.get("volume_litres"),
        litres_for_age=plausible_litres(inputs.age_months, inputs.fetal),
        components=info.get("components"),
        turn=turn_in_words(info.get("turn")),
        turn_margin=info.get("turn_margin"),
        border_contact=info.get("border_contact"),
        empty_share=empty_share(head, mask),
        flat_face=flat_face(mask, voxel_sizes(corrected.affine)),
        white_depth=white_depth(labels, voxel_sizes(image.affine)),
        brightness_order=brightness_order(
            given, labels, inputs.contrast, inputs.age_months, inputs.fetal
        ),
        age_months=inputs.age_months,
        fetal=inputs.fetal,
        tissues_before=written_litres(inputs.dseg_before),
        tissues_after=written_litres(inputs.dseg),
        enhanced_tissue_change=largest_change(
            tissue_litres(labels_before, 1), tissue_litres(labels_after, 1)
        ),
        correlation=correlation(given, after, inside > 0),
        mean_shift=mean_shift(given, after, inside > 0),
        tct_before=tct(before, labels),
        tct_after=tct(after, labels),
        qi=quality_index(before, after, labels),
        estimated_error_before=errors[0],
        estimated_error_after=errors[1],
        training_distance=inputs.training_distance,
    )


def _contrast(corrected: nib.Nifti1Image, mask: NDArray[np.bool_], inputs: Any) -> float:
    """Fluid against tissue; NaN where it contradicts the name and may come from clipping."""
    found = fluid_contrast(data_of(corrected), mask, voxel_sizes(corrected.affine))
    ends = [inputs.mask_info.get(end, 0.0) for end in ("at_lowest", "at_highest")]
    limits = FLUID_CONTRAST.get(inputs.contrast)
    if limits is None or limits.verdict(found) == "pass":
        return found
    return math.nan if may_be_clipping(found, *ends) else found


def written_litres(path: str) -> dict[str, float]:
    """Volumes of CSF, GM and WM in a file of tissues, litres."""
    image = read(path, "uint8")
    to_network = np.zeros(1 + max(tissue.bids for tissue in TISSUES), dtype=np.uint8)
    for tissue in TISSUES:
        to_network[tissue.bids] = tissue.number
    voxel_mm3 = abs(float(np.linalg.det(image.affine[:3, :3])))
    return tissue_litres(to_network[data_of(image)], voxel_mm3)


def scores(inputs: Any) -> dict[str, Any]:
    """The key ``Score``: the network's estimates before and after, None where it cannot tell.

    It gets images that are linear in the input's intensities, as in training: the histogram
    matching is undone.  Of the image as it came it says no less motion than was found and undone, and
    no finer resolution than its voxels and the slices that were found; of the enhanced image no less
    motion than the change leaves, and than the expected error is, up to the motion before.
    """
    if not isdefined(inputs.score_weights):
        return {}
    record = weight_record(inputs.score_weights)
    chain = json.loads(Path(inputs.intensity_json).read_text())["match"]
    match = HistogramMatch.of(chain)
    inside = data_of(read(inputs.mask_res, "uint8")) > 0
    image = read(inputs.before)
    spacing = float(np.mean(voxel_sizes(image.affine)))
    first = match.invert(data_of(image))

    def scored(image: NDArray[np.float32]) -> Score | None:
        return score(image, inside, record, spacing_mm=spacing)

    before = scored(first)
    if before is not None:
        before = of_slices(before, slices_of(inputs))
        if isdefined(inputs.refocus) and inputs.refocus.get("motion"):
            still = match.invert(data_of(read(inputs.refocused)))
            undone = scored(still)
            if undone is not None:
                before = before_change(before, undone, change_between(first, still, inside))
    enhanced = data_of(read(inputs.after))
    last = match.invert(enhanced)
    after = scored(last)
    if before is not None and after is not None:
        after = after_change(before, after, change_between(first, last, inside))
        if isdefined(inputs.deviation):
            expected = data_of(read(inputs.deviation))[inside] * (
                MEAN / float(enhanced[inside].mean())
            )
            error = float(np.sqrt((expected.astype(np.float64) ** 2).mean()))
            after = at_least(after, min(error, rms_of(before.motion.value)))
    table: dict[str, Any] = {"weights": record.name}
    for when, estimated in (("before", before), ("after", after)):
        table[when] = None if estimated is None else estimated.as_table()
    return {"Score": table}


def slices_of(inputs: Any) -> float:
    """The longest edge of the image's voxels, or the thickness of slices found in it, mm."""
    edge = max(voxel_sizes(read(inputs.corrected).affine))
    known = inputs.refocus.get("slices") or {} if isdefined(inputs.refocus) else {}
    return float(max(edge, known.get("Thickness", 0.0)))


def turn_in_words(turn: str | None) -> str | None:
    """What the header says and the image shows; None where they agree or nothing is known."""
    return None if turn in (None, TOWARDS) else describe_turn(str(turn))


def figures(measures: Measures) -> dict[str, float | None]:
    """The key ``Quality`` of a sidecar: plain numbers, None for what could not be measured."""
    values = {name: getattr(measures, name) for name in FIGURES}
    for when in ("before", "after"):
        tissues = getattr(measures, f"tissues_{when}") or {}
        values |= {f"{tissue.lower()}_litres_{when}": size for tissue, size in tissues.items()}
    return {
        name: float(value) if value is not None and math.isfinite(value) else None
        for name, value in values.items()
    }


class MeasureLikeMriqcInput(BaseInterfaceInputSpec):
    conformed = File(exists=True, mandatory=True, desc="LPS native grid, input intensities")
    preproc = File(exists=True, mandatory=True, desc="input grid, input intensities, enhanced")
    field = File(exists=True, mandatory=True, desc="LPS native grid, the bias field")
    mask = File(exists=True, mandatory=True, desc="LPS native grid")
    mask_res = File(exists=True, mandatory=True, desc="network grid")
    probabilities_before = traits.List(
        File(exists=True), mandatory=True, desc="CSF, GM, WM, network grid"
    )
    probabilities = traits.List(File(exists=True), mandatory=True, desc="as they are written")
    stripped = traits.Bool(mandatory=True, desc="the image came without a skull")
    quality = traits.Dict(mandatory=True, desc="figures that these are added to")


class MeasureLikeMriqcOutput(TraitedSpec):
    quality = traits.Dict(desc="with a key MRIQC: before and after, name → number")


class MeasureLikeMriqc(Step):
    """MRIQC's measures of the input and of the enhanced head, on the input's grid.

    The bias field and the masks of head and air are those of the input for both.
    """

    input_spec = MeasureLikeMriqcInput
    output_spec = MeasureLikeMriqcOutput

    def work(self, folder: str) -> None:
        image = read(self.inputs.conformed)
        grid = (image.shape, image.affine)
        scans = {
            "before": data_of(image),
            "after": to_axes_of(read(self.inputs.preproc), grid),
        }
        brain = data_of(read(self.inputs.mask, "uint8")) > 0
        field = data_of(read(self.inputs.field))
        head = None
        if not self.inputs.stripped:
            head = mriqc.head_mask(scans["before"], brain, voxel_sizes(image.affine))
        found = {}
        paths = {"before": self.inputs.probabilities_before, "after": self.inputs.probabilities}
        for when, data in scans.items():
            maps = resampled_inside(
                [read(path) for path in paths[when]],
                read(self.inputs.mask_res),
                grid,
                brain,
                orders=(1, 1, 1),
            )
            found[when] = mriqc.measures(mriqc.Scan(data, field, np.stack(maps), brain, head))
        self._results["quality"] = {**self.inputs.quality, "MRIQC": found}
