# SPDX-License-Identifier: Apache-2.0
"""Node of the stage *enhance* that halves the edges of the enhanced image's voxels."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from nibabel.affines import from_matvec
from nipype.interfaces.base import BaseInterfaceInputSpec, File, TraitedSpec, traits

from bmex_bids.imaging.orientation import voxel_sizes
from bmex_bids.imaging.storing import in_sixteen_bits
from bmex_bids.interfaces.files import data_of, read, with_codes_of, write
from bmex_bids.interfaces.step import Step
from bmex_bids.interfaces.weights import provenance_of, weight_record
from bmex_bids.network.inference.halve import halve


class HalveInput(BaseInterfaceInputSpec):
    enhanced = File(exists=True, mandatory=True, desc="network grid, template units")
    mask_res = File(exists=True, mandatory=True, desc="network grid")
    original = File(exists=True, mandatory=True, desc="raw image, whose form code it gets")
    weights = traits.Dict(mandatory=True, desc="record of the network")
    provenance = traits.Dict(mandatory=True, desc="of the enhancement, which is added to")
    device = traits.Str("auto", usedefault=True)
    use_gpu = traits.Bool(False, usedefault=True, nohash=True)
    num_threads = traits.Int(1, usedefault=True, nohash=True)


class HalveOutput(TraitedSpec):
    enhanced_half = File(exists=True, desc="half the edge, template units, 16 bits, scaled")
    provenance = traits.Dict(desc="with a key super: weights, spacing_mm, seconds")


class Halve(Step):
    """Super-resolve the enhanced brain: eight voxels of each one."""

    input_spec = HalveInput
    output_spec = HalveOutput

    def work(self, folder: str) -> None:
        record = weight_record(self.inputs.weights)
        enhanced = read(self.inputs.enhanced)
        begun = time.monotonic()
        fine = halve(
            data_of(enhanced),
            data_of(read(self.inputs.mask_res, "uint8")) > 0,
            record,
            device=self.inputs.device,
            threads=self.inputs.num_threads,
        )
        seconds = time.monotonic() - begun
        stored = in_sixteen_bits(fine, halved_affine(enhanced.affine))
        del fine
        made = with_codes_of(stored, self.inputs.original)
        self._results["enhanced_half"] = write(made, folder, "enhanced_half.nii.gz")
        self._results["provenance"] = {
            **self.inputs.provenance,
            "super": {
                **provenance_of(record),
                "spacing_mm": round(float(min(voxel_sizes(stored.affine))), 4),
                "seconds": round(seconds, 2),
            },
        }


def halved_affine(affine: Any) -> Any:
    """The affine of a grid of half the edge over the same field of view."""
    linear = affine[:3, :3] / 2
    return from_matvec(linear, affine[:3, 3] - linear @ np.full(3, 0.5))
