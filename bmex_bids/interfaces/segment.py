# SPDX-License-Identifier: Apache-2.0
"""Node of the stage *enhance* that labels structures and measures their volumes."""

from __future__ import annotations

from typing import Any

import nibabel as nib
import numpy as np
from nipype.interfaces.base import BaseInterfaceInputSpec, File, TraitedSpec, traits

from bmex_bids.common.structures import STRUCTURES
from bmex_bids.imaging.orientation import voxel_sizes
from bmex_bids.interfaces.enhance import resampled_inside, to_axes_of
from bmex_bids.interfaces.files import data_of, on_original_grid, read, with_data, write
from bmex_bids.interfaces.step import Step
from bmex_bids.interfaces.weights import weight_record
from bmex_bids.network.inference.segment import segment


class SegmentInput(BaseInterfaceInputSpec):
    enhanced = File(exists=True, mandatory=True, desc="network grid, template units")
    probabilities = traits.List(File(exists=True), mandatory=True, desc="CSF, GM, WM")
    mask_res = File(exists=True, mandatory=True, desc="network grid")
    mask = File(exists=True, mandatory=True, desc="LPS native grid")
    original = File(exists=True, mandatory=True, desc="raw image")
    weights = traits.Dict(mandatory=True, desc="record of the segmentation network")
    quality = traits.Dict(mandatory=True, desc="figures that the volumes are added to")
    device = traits.Str("auto", usedefault=True)
    use_gpu = traits.Bool(False, usedefault=True, nohash=True)
    num_threads = traits.Int(1, usedefault=True, nohash=True)


class SegmentOutput(TraitedSpec):
    structures_res = File(exists=True, desc="network grid, numbers of common.structures")
    structures_native = File(exists=True, desc="input grid, the same numbers")
    quality = traits.Dict(desc="with a key Structures: weights, and volumes by name")


class Segment(Step):
    """Label the structures of the enhanced brain; to the input's grid goes the nearest label."""

    input_spec = SegmentInput
    output_spec = SegmentOutput

    def work(self, folder: str) -> None:
        record = weight_record(self.inputs.weights)
        enhanced, support = read(self.inputs.enhanced), read(self.inputs.mask_res, "uint8")
        labels = segment(
            data_of(enhanced),
            np.stack([data_of(read(path)) for path in self.inputs.probabilities]),
            data_of(support) > 0,
            record,
            device=self.inputs.device,
            threads=self.inputs.num_threads,
        )
        found = with_data(labels, enhanced)
        raw: Any = nib.load(self.inputs.original)
        grid = (tuple(raw.shape[:3]), raw.affine)
        mask = to_axes_of(read(self.inputs.mask, "uint8"), grid) > 0
        (native,) = resampled_inside([found], support, grid, mask, orders=(0,))
        native = on_original_grid(np.rint(native), self.inputs.original, np.uint8)
        self._results["structures_res"] = write(found, folder, "structures.nii.gz")
        self._results["structures_native"] = write(native, folder, "structures_native.nii.gz")
        table = {
            "weights": record.name,
            "weights_sha256": record.sha256,
            "weights_licence": record.licence,
            **volumes_ml(labels, float(np.prod(voxel_sizes(enhanced.affine)))),
        }
        self._results["quality"] = {**self.inputs.quality, "Structures": table}


def volumes_ml(labels: Any, voxel_mm3: float) -> dict[str, float]:
    """Volume of each structure, ``hippocampus_ml`` …"""
    counts = np.bincount(labels.ravel(), minlength=len(STRUCTURES) + 1)
    return {
        f"{structure.name}_ml": round(float(counts[structure.number]) * voxel_mm3 / 1000, 3)
        for structure in STRUCTURES
    }
