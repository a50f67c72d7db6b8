# SPDX-License-Identifier: Apache-2.0
"""A small TemplateFlow home, made from the MNI 152 brain that comes with nilearn."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import nibabel as nib
import nilearn
import numpy as np

BRAIN = (
    Path(nilearn.__file__).parent
    / "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
)
COHORTS = {
    "1": {"age": [0.0, 2.0], "units": "months"},
    "2": {"age": [2.0, 5.0], "units": "months"},
    "3": {"age": [5.0, 8.0], "units": "months"},
}


@functools.cache
def shrunk(factor: int, size: float = 1.0) -> nib.Nifti1Image:
    """The MNI brain on voxels of ``factor`` mm, the means of its own; ``size`` scales the head."""
    image = nib.load(BRAIN)
    data = np.asarray(image.dataobj, dtype=np.float32)
    n = [m // factor for m in data.shape]
    data = data[tuple(slice(m * factor) for m in n)]
    data = data.reshape(n[0], factor, n[1], factor, n[2], factor).mean(axis=(1, 3, 5))
    affine = np.array(image.affine)
    affine[:3, 3] += (factor - 1) / 2
    affine[:3] *= size
    affine[:3, :3] *= factor
    return nib.Nifti1Image(np.rint(data).astype(np.uint8), affine)


def put(root: Path, stem: str, image: nib.Nifti1Image, contrast: str = "T1w") -> None:
    """An image and the mask of its brain into the home, as TemplateFlow names them."""
    template, _, rest = stem.removeprefix("tpl-").partition("_")
    cohort = next((part for part in rest.split("_") if part.startswith("cohort-")), "")
    folder = root / f"tpl-{template}" / cohort
    folder.mkdir(parents=True, exist_ok=True)
    data = np.asarray(image.dataobj)
    shown = np.where(data > 0, 255 - data, 0) if contrast == "T2w" else data
    nib.save(nib.Nifti1Image(shown, image.affine), folder / f"{stem}_{contrast}.nii.gz")
    mask = nib.Nifti1Image((data > 20).astype(np.uint8), image.affine)
    nib.save(mask, folder / f"{stem}_desc-brain_mask.nii.gz")


def make(root: Path) -> Path:
    """``MNI152NLin2009cAsym`` at res-01 (4 mm) and res-02 (6 mm), three cohorts of ``MNIInfant``.

    The cohorts have 55 % of the size of an adult's brain, as a newborn; the third has no files
    yet, only the empty ones of TemplateFlow's skeleton.
    """
    adult = "tpl-MNI152NLin2009cAsym"
    put(root, f"{adult}_res-01", shrunk(4))
    put(root, f"{adult}_res-02", shrunk(6))
    (root / adult / "template_description.json").write_text('{"res": {}}')
    for cohort in ("1", "2"):
        for contrast in ("T1w", "T2w"):
            put(root, f"tpl-MNIInfant_cohort-{cohort}_res-1", shrunk(4, 0.55), contrast)
    empty = root / "tpl-MNIInfant/cohort-3"
    empty.mkdir()
    (empty / "tpl-MNIInfant_cohort-3_res-1_T1w.nii.gz").touch()
    description = root / "tpl-MNIInfant" / "template_description.json"
    description.write_text(json.dumps({"cohort": COHORTS}))
    return root
