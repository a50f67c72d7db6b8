# SPDX-License-Identifier: Apache-2.0
"""Nodes that mend faults of the read-out, and prepare the image as it came to compare with.

Where nothing was undone, both hand on the files that they were given.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    TraitedSpec,
    traits,
)

from bmex_bids.imaging.intensity import HistogramMatch, IntensityScale
from bmex_bids.imaging.orientation import voxel_sizes
from bmex_bids.imaging.stripped import without_offset
from bmex_bids.interfaces.files import data_of, read, with_data, write
from bmex_bids.interfaces.grid import on_network_grid
from bmex_bids.interfaces.preprocess import with_histogram
from bmex_bids.interfaces.step import Step
from bmex_bids.interfaces.weights import with_weights
from bmex_bids.network.inference.denoise import noise_of
from bmex_bids.network.inference.hints import brain_of, correction_of
from bmex_bids.network.inference.within import within_slices
from bmex_bids.refocus import refocus
from bmex_bids.refocus.jumps import Hints


class RefocusInput(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="conformed image")
    within_weights = traits.Dict(desc="WeightRecord as a dict, for thick slices; absent: none")
    denoise_weights = traits.Dict(desc="WeightRecord as a dict, for noise; absent: noise stays")
    hint_weights = traits.Dict(
        desc="WeightRecord as a dict, of a network over slices that hints at jumps of the head; "
        "absent: jumps stay"
    )
    strip_weights = traits.Dict(desc="WeightRecord as a dict; absent: jumps of heads stay")
    num_threads = traits.Int(1, usedefault=True, nohash=True)


class RefocusOutput(TraitedSpec):
    out_file = File(exists=True, desc="the same grid and units; in_file where nothing was undone")
    refocus = traits.Dict(
        desc="applied, reason, motion, lines, spikes, slices, noise; where they were measured, "
        "entropy_before, entropy_after"
    )


class Refocus(Step):
    """Undo thick slices, spikes, uneven lines, motion and noise, where the image shows any."""

    input_spec = RefocusInput
    output_spec = RefocusOutput

    def work(self, folder: str) -> None:
        image = read(self.inputs.in_file)
        self._results["out_file"] = self.inputs.in_file
        found = refocus.refocus(
            data_of(image),
            voxel_sizes(image.affine),
            num_threads=self.inputs.num_threads,
            within=with_weights(within_slices, self.inputs.within_weights),
            denoise=with_weights(noise_of, self.inputs.denoise_weights),
            hints=hints_of(self.inputs.hint_weights, self.inputs.strip_weights),
        )
        if found.applied:
            refocused = with_data(found.image, image)
            self._results["out_file"] = write(refocused, folder, "refocused.nii.gz")
        self._results["refocus"] = {
            "applied": bool(found.applied),
            "reason": found.reason,
            "motion": dict(found.motion),
            "lines": dict(found.lines),
            "spikes": int(found.spikes),
            "slices": dict(found.slices),
            "noise": _with_name(found.noise, self.inputs.denoise_weights),
        }
        if found.entropy_before > 0:  # else no motion was worth undoing, and nothing was measured
            self._results["refocus"] |= {
                "entropy_before": float(found.entropy_before),
                "entropy_after": float(found.entropy_after),
            }


def hints_of(weights: dict[str, Any], strip: dict[str, Any]) -> Hints | None:
    """The networks that hint at jumps of the head; None without weights."""
    correction = with_weights(correction_of, weights)
    return Hints(correction, with_weights(brain_of, strip)) if correction else None


def _with_name(facts: dict[str, Any], weights: dict[str, Any]) -> dict[str, Any]:
    """Facts with the weights behind them; empty as they were."""
    if not facts:
        return {}
    return facts | {"Weights": {"Name": weights["name"], "SHA256": weights["sha256"]}}


class BeforeInput(BaseInterfaceInputSpec):
    refocus = traits.Dict(mandatory=True, desc="applied …")
    conformed = File(exists=True, mandatory=True, desc="the image as it came, LPS")
    corrected = File(exists=True, mandatory=True, desc="refocused, 0…1000, N4 over the head")
    head_scale = File(exists=True, mandatory=True, desc="input intensities → those of corrected")
    head_field = File(exists=True, mandatory=True, desc="what the head was divided by")
    native = File(exists=True, mandatory=True, desc="refocused, 0…1000, N4 within the brain too")
    field = File(exists=True, mandatory=True, desc="what the head was divided by in all")
    brain = File(exists=True, mandatory=True, desc="refocused, network grid, 0…1000")
    matched = File(exists=True, mandatory=True, desc="refocused, network grid, template units")
    mask_res = File(exists=True, mandatory=True, desc="network grid")
    intensity_json = File(exists=True, mandatory=True, desc="input → 0…1000 → template units")
    spacing_mm = traits.Float(mandatory=True, desc="of the network's grid")
    order = traits.Enum(3, 1, usedefault=True, desc="of interpolation")
    within_weights = traits.Dict(desc="as CorrectBrain has them")


class BeforeOutput(TraitedSpec):
    corrected = File(exists=True)
    native = File(exists=True)
    brain = File(exists=True)
    matched = File(exists=True)


class Before(Step):
    """The image as it came, with field, mask and intensities of the refocused one."""

    input_spec = BeforeInput
    output_spec = BeforeOutput

    def work(self, folder: str) -> None:
        images: dict[str, Any] = {}
        if self.inputs.refocus["applied"]:
            images = self._prepared()
        for name in self.output_spec().copyable_trait_names():
            path = getattr(self.inputs, name)
            if name in images:
                path = write(images[name], folder, f"{name}.nii.gz")
            self._results[name] = path

    def _prepared(self) -> dict[str, Any]:
        inputs = self.inputs
        head = without_offset(read(inputs.conformed))
        first = IntensityScale(**json.loads(Path(inputs.head_scale).read_text()))
        chain = json.loads(Path(inputs.intensity_json).read_text())
        scale = IntensityScale(**chain["scale"])
        field, head_field = (data_of(read(path)) for path in (inputs.field, inputs.head_field))
        corrected = first.apply(data_of(head)) / head_field
        # the working range may have been widened for the brain, after the head's field
        native = corrected if scale == first else scale.apply(first.invert(corrected))
        native = with_data(native * (head_field / field), head)
        brain = on_network_grid(native, inputs.spacing_mm, inputs.order, inputs.within_weights)
        mask = data_of(read(inputs.mask_res, "uint8")) > 0
        matched = with_histogram(HistogramMatch.of(chain["match"]), data_of(brain), mask)
        return {
            "corrected": with_data(corrected, head),
            "native": native,
            "brain": brain,
            "matched": with_data(matched, brain),
        }
