# SPDX-License-Identifier: Apache-2.0
"""Node of the stage *templates*: an enhanced image, its mask and its tissues in a standard space."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    TraitedSpec,
    traits,
)

from bmex_bids.imaging.registration import (
    LEAST_OVERLAP,
    bring,
    inverse_of,
    points_of,
    register,
    write_transform,
)
from bmex_bids.interfaces.files import data_of, read, with_data, write
from bmex_bids.interfaces.preprocess import limit_itk_threads
from bmex_bids.interfaces.step import Step
from bmex_bids.outputs.resume import checksum

#: fields of the workflow → order of the interpolation; the enhanced image comes from the
#: network's grid, the finest there is
ORDERS = {
    "enhanced_native": 3,
    "preproc_native": 3,
    "mask_native": 1,
    "dseg_native": 0,
    "probseg_native": 1,
}
#: of the sform of an image in a template's space (NIfTI: MNI 152, another standard space)
MNI, OTHER = 4, 5


class ToTemplateInput(BaseInterfaceInputSpec):
    template = traits.Dict(mandatory=True, desc="inputs.templates.Template as plain values")
    contrast = traits.Str(mandatory=True, desc="of the image: T1w, T2w …")
    enhanced_res = File(exists=True, mandatory=True, desc="network grid, zero outside the mask")
    mask_res = File(exists=True, mandatory=True, desc="network grid")
    preproc_native = File(exists=True, mandatory=True)
    mask_native = File(exists=True, mandatory=True)
    dseg_native = File(exists=True, mandatory=True)
    probseg_native = traits.List(File(exists=True), mandatory=True)
    num_threads = traits.Int(1, usedefault=True, nohash=True)


class ToTemplateOutput(TraitedSpec):
    result = traits.Dict(
        desc="label, contrast, overlap, folded, transform, inverse, grids with their files"
    )


class ToTemplate(Step):
    """Register to a template, and bring image, mask and tissues onto its grids."""

    input_spec = ToTemplateInput
    output_spec = ToTemplateOutput

    def work(self, folder: str) -> None:
        limit_itk_threads(self.inputs.num_threads)
        template = self.inputs.template
        first = template["grids"][0]
        fixed, fixed_mask = brain_of(first)
        found = register(
            fixed,
            fixed_mask,
            read(self.inputs.enhanced_res),
            read(self.inputs.mask_res),
            same_contrast=template["contrast"] == self.inputs.contrast,
        )
        self._results["result"] = {
            "label": template["label"],
            "contrast": template["contrast"],
            "reference": template["reference"],
            "overlap": round(found.overlap, 4),
            "folded": round(found.folded, 6),
            "warnings": warnings_of(template["label"], found.overlap),
            "transform": write_transform(found.transform, Path(folder).absolute() / "to.h5"),
            "inverse": write_transform(
                inverse_of(found.transform), Path(folder).absolute() / "from.h5"
            ),
            "grids": [
                self._on_grid(found.transform, grid, folder, str(number))
                for number, grid in enumerate(template["grids"])
            ],
        }

    def _on_grid(
        self, transform: Any, grid: Mapping[str, Any], folder: str, name: str
    ) -> dict[str, Any]:
        """All files on one grid of the template."""
        target: Any = nib.load(grid["image"])
        points = points_of(transform, target)
        code = MNI if "MNI152" in self.inputs.template["label"] else OTHER
        inside = bring(read(self.inputs.mask_native), target, points, order=1) > 0.5
        files: dict[str, Any] = {}
        for field, order in ORDERS.items():
            value = getattr(self.inputs, "enhanced_res" if field == "enhanced_native" else field)
            written = []
            for number, path in enumerate(value if isinstance(value, list) else [value]):
                if field == "mask_native":
                    data: Any = inside.astype(np.uint8)
                else:
                    data = bring(read(path), target, points, order=order)
                if field == "dseg_native":
                    data = np.where(inside, data, 0).astype(np.uint8)
                elif field in {"enhanced_native", "probseg_native"}:
                    data = np.where(inside, np.clip(data, 0, None), 0).astype(np.float32)
                image = with_data(data, target)
                image.set_sform(target.affine, code)
                image.set_qform(target.affine, code)
                written.append(write(image, folder, f"{field}-{name}-{number}.nii.gz"))
            files[field] = written if isinstance(value, list) else written[0]
        return {
            **grid,
            "files": files,
            "zooms": [round(float(size), 4) for size in nib.affines.voxel_sizes(target.affine)],
            "sha256": checksum(Path(grid["image"])),
        }


def brain_of(grid: Mapping[str, Any]) -> tuple[nib.Nifti1Image, nib.Nifti1Image]:
    """A template's image, and the mask of its brain on the same grid."""
    image = read(grid["image"])
    if not grid["mask"]:
        return image, with_data((data_of(image) > 0).astype(np.uint8), image)
    return image, with_data(data_of(read(grid["mask"])), image)


def warnings_of(label: str, overlap: float) -> list[str]:
    """What is odd about a registration."""
    if overlap >= LEAST_OVERLAP:
        return []
    return [
        f"the brain does not fit {label} (Dice {overlap:.2f} of the masks); look at the picture "
        "of the registration before using the images in that space"
    ]
