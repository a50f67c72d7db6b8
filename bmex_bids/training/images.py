# SPDX-License-Identifier: Apache-2.0
"""Clean images as the app would bring them to the network, and which of them train or validate.

They are conformed, bias-corrected, resampled and histogram-matched.  Images with much noise of their
own do not train.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from bmex_bids.common.boxes import bounding_box
from bmex_bids.common.noise import noise_sigma
from bmex_bids.exceptions import UsageError
from bmex_bids.imaging.intensity import load_histogram, match_histogram, n4, rescale_robust
from bmex_bids.imaging.noise import non_local_means
from bmex_bids.imaging.orientation import conform, load_image
from bmex_bids.imaging.resampling import resample_to_spacing
from bmex_bids.training.labels import contrast_is_sure, tissue_labels

LOGGER = logging.getLogger(__name__)
Array = NDArray[np.float32]
UNKNOWN = 255

#: the real brains of the shared development data: (file, age group, contrast); 0003 and 0007
#: validate
REAL_IMAGES: tuple[tuple[str, str, str], ...] = (
    ("lifespan-bids/sub-0001/ses-V01/anat/sub-0001_ses-V01_T1w.nii.gz", "month24", "T1w"),
    ("lifespan-bids/sub-0001/ses-V02/anat/sub-0001_ses-V02_T1w.nii.gz", "month6", "T1w"),
    ("lifespan-bids/sub-0002/ses-V01/anat/sub-0002_ses-V01_T1w.nii.gz", "month24", "T1w"),
    ("lifespan-bids/sub-0004/ses-V01/anat/sub-0004_ses-V01_T1w.nii.gz", "month12", "T1w"),
    ("lifespan-bids/sub-0005/ses-V01/anat/sub-0005_ses-V01_T1w.nii.gz", "month9", "T1w"),
    ("lifespan-bids/sub-0006/ses-V01/anat/sub-0006_ses-V01_T1w.nii.gz", "month6", "T1w"),
    ("lifespan-bids/sub-0008/ses-V01/anat/sub-0008_ses-V01_T1w.nii.gz", "month0", "T1w"),
    ("lifespan-bids/sub-0009/ses-V01/anat/sub-0009_ses-V01_T2w.nii.gz", "fetal", "T2w"),
)
TEMPLATES: tuple[tuple[str, str, str], ...] = (
    ("histogram-templates/Template-Month0-T1w.nii.gz", "month0", "T1w"),
    ("histogram-templates/Template-Month6-T1w.nii.gz", "month6", "T1w"),
    ("histogram-templates/Template-Month9-T1w.nii.gz", "month9", "T1w"),
    ("histogram-templates/Template-Month12-T1w.nii.gz", "month12", "T1w"),
    ("histogram-templates/Template-Month24-T1w.nii.gz", "month24", "T1w"),
    ("histogram-templates/Template-Month0-T2w.nii.gz", "month0", "T2w"),
    ("histogram-templates/Template-Month6-T2w.nii.gz", "month6", "T2w"),
    ("histogram-templates/Template-Month9-T2w.nii.gz", "month9", "T2w"),
    ("histogram-templates/Template-Month12-T2w.nii.gz", "month12", "T2w"),
    ("histogram-templates/Template-Month24-T2w.nii.gz", "month24", "T2w"),
    ("histogram-templates/Template-Fetal-T2w.nii.gz", "fetal", "T2w"),
)
VALIDATION_IMAGES: tuple[tuple[str, str, str], ...] = (
    ("lifespan-bids/sub-0003/ses-V01/anat/sub-0003_ses-V01_T1w.nii.gz", "month18", "T1w"),
    ("lifespan-bids/sub-0007/ses-V01/anat/sub-0007_ses-V01_T1w.nii.gz", "month3", "T1w"),
)
#: label maps 1–16 train, 17–20 validate
TRAINING_MAPS = tuple(f"label-maps/training_seg_{k:02d}.nii.gz" for k in range(1, 17))
VALIDATION_MAPS = tuple(f"label-maps/training_seg_{k:02d}.nii.gz" for k in range(17, 21))


@dataclass(frozen=True)
class CleanImage:
    """A brain as the network sees it: LPS axes, template units, zero outside the mask."""

    name: str
    data: Array  # (X, Y, Z)
    mask: NDArray[np.bool_]
    labels: NDArray[np.uint8]  # 255 where not known
    spacing: tuple[float, float, float]
    age_group: str
    contrast: str


def corrected_brain(path: Path, spacing_mm: float) -> tuple[Array, NDArray[np.bool_]]:
    """A stripped brain without its bias field, and its mask: LPS, linear in the file's unit."""
    image = conform(load_image(path))
    data = np.asarray(image.dataobj, dtype=np.float32)
    brain = data > 0
    scaled, _ = rescale_robust(data, brain)
    scaled = np.where(brain, scaled, 0).astype(np.float32)
    mask_image = nib.Nifti1Image(brain.astype(np.uint8), image.affine)
    corrected, _ = n4(nib.Nifti1Image(scaled, image.affine), mask_image)
    box = bounding_box(brain, 4)
    cut = corrected.slicer[box]
    resampled = resample_to_spacing(
        nib.Nifti1Image(np.asarray(cut.dataobj, dtype=np.float32) * brain[box], cut.affine),
        spacing_mm,
    )
    inside = resample_to_spacing(
        nib.Nifti1Image(brain[box].astype(np.float32), cut.affine), spacing_mm
    )
    mask = np.asarray(inside.dataobj) > 0.5
    return np.asarray(resampled.dataobj, dtype=np.float32) * mask, mask


def prepare(path: Path, age_group: str, contrast: str, *, with_labels: bool = True) -> CleanImage:
    """Bring one already stripped brain to the network's grid and units, as the app does."""
    spacing_mm = 0.75 if age_group == "fetal" else 0.8
    data, mask = corrected_brain(path, spacing_mm)
    matched, _ = match_histogram(data, load_histogram(age_group, contrast), mask)
    labels = np.full(mask.shape, UNKNOWN, dtype=np.uint8)
    if with_labels and contrast_is_sure(age_group, contrast):
        labels = tissue_labels(np.asarray(matched, dtype=np.float32), mask, contrast)
    pad = [(8, 8)] * 3
    return CleanImage(
        name=path.name.split(".")[0],
        data=np.pad(np.where(mask, matched, 0).astype(np.float32), pad),
        mask=np.pad(mask, pad),
        labels=np.pad(labels, pad, constant_values=UNKNOWN),
        spacing=(spacing_mm,) * 3,
        age_group=age_group,
        contrast=contrast,
    )


#: noise of a "clean" image, standard deviation in template units: above the first it is denoised
#: before it trains, above the second it does not train
NOISY, TOO_NOISY = 4.0, 9.0


def quiet(clean: CleanImage, noise: float) -> CleanImage:
    """The image without most of its own noise, by non-local means.

    What a network shall take for anatomy must not be noise: of a target with noise of its own it
    learns to keep whatever looks like noise, the ripples of motion included.
    """
    found = non_local_means(clean.data, noise, strength=0.7, search=3)
    return replace(clean, data=np.where(clean.mask, np.clip(found, 0, None), 0).astype(np.float32))


def fit_to_train(images: Sequence[CleanImage]) -> list[CleanImage]:
    """The images that are clean, or can be made so."""
    chosen = []
    for image in images:
        noise = noise_sigma(image.data, image.mask)
        if noise > TOO_NOISY:
            LOGGER.info("%s: noise of %.1f units, left out", image.name, noise)
        elif noise > NOISY:
            LOGGER.info("%s: noise of %.1f units, denoised", image.name, noise)
            chosen.append(quiet(image, noise))
        else:
            chosen.append(image)
    return chosen


def require(data_dir: Path, names: Sequence[str]) -> None:
    """UsageError, which names the first absent one, unless all files are in the folder."""
    missing = [name for name in names if not (data_dir / name).exists()]
    if missing:
        raise UsageError(
            f"expected the development data in {data_dir}, but {len(missing)} files are missing "
            f"(first: {missing[0]}); give their folder with --data"
        )
