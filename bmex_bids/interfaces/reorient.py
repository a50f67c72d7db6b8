# SPDX-License-Identifier: Apache-2.0
"""Node that corrects a header which calls the axes wrongly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nipype.interfaces.base import File, TraitedSpec, isdefined, traits

from bmex_bids.imaging.likeness import TOWARDS
from bmex_bids.imaging.orientation import conform, load_image, turned
from bmex_bids.interfaces.files import write
from bmex_bids.interfaces.preprocess import BrainInput, correct_head, find_brain, limit_itk_threads
from bmex_bids.interfaces.step import Step

#: NIfTI's code of an image that is aligned to something not named
UNKNOWN_CODE = 2


class ReorientInput(BrainInput):
    in_file = File(exists=True, mandatory=True, desc="raw image")


class ReorientOutput(TraitedSpec):
    out_file = File(exists=True, desc="the raw image, with another affine where it looks turned")
    given_mask = File(exists=True, desc="the given mask, turned likewise")
    turn = traits.Str(desc="that was corrected; empty where the header is right")


class Reorient(Step):
    """Look at the brain as the header has it; where it looks turned, turn the header."""

    input_spec = ReorientInput
    output_spec = ReorientOutput

    def work(self, folder: str) -> None:
        limit_itk_threads(self.inputs.num_threads)
        source = Path(self.inputs.in_file).absolute()
        image = conform(load_image(source))
        corrected, _, _ = correct_head(image)
        like = find_brain(image, corrected, self.inputs).like
        turn = TOWARDS if like is None else like.turn
        mask = self.inputs.given_mask if isdefined(self.inputs.given_mask) else None
        self._results["turn"] = "" if turn == TOWARDS else turn
        if turn == TOWARDS:
            self._results["out_file"] = str(source)
            if mask is not None:
                self._results["given_mask"] = str(Path(mask).absolute())
            return
        centre = nib.affines.apply_affine(image.affine, (np.array(image.shape) - 1) / 2)
        self._results["out_file"] = write(
            _turned(source, turn, centre), folder, "reoriented.nii.gz"
        )
        if mask is not None:
            self._results["given_mask"] = write(
                _turned(Path(mask), turn, centre), folder, "given_mask.nii.gz"
            )


def _turned(path: Path, turn: str, centre: Any) -> nib.Nifti1Image:
    """An image as it is stored, with the affine turned, in the code that it had."""
    raw: Any = nib.load(path)
    affine = turned(raw.affine, turn, centre)
    data = np.asanyarray(raw.dataobj)
    header = nib.Nifti1Header.from_header(raw.header)
    header.set_data_dtype(np.float32 if data.dtype.kind == "f" else data.dtype)
    image = nib.Nifti1Image(data, affine, header)
    given = [int(raw.header[key]) for key in ("sform_code", "qform_code") if key in raw.header]
    code = next((code for code in given if code > 0), UNKNOWN_CODE)
    image.set_sform(affine, code)
    image.set_qform(affine, code)
    return image
