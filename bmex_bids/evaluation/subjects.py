# SPDX-License-Identifier: Apache-2.0
"""The validation images: real brains, whole heads, fetal averages, and heads painted from label maps.

None of them trains a network; :data:`TRAINED` has some that did.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from bmex_bids.exceptions import UsageError
from bmex_bids.imaging.orientation import conform, load_image, voxel_sizes
from bmex_bids.training.painting import paint_head
from bmex_bids.training.synthesis import read_labels

Array = NDArray[np.float32]
WEEK_MONTHS = 7 / 30.44
#: gestation counts from two weeks before conception
GESTATION_WEEKS = 2
ADULT_MONTHS = 300.0


@dataclass(frozen=True)
class Subject:
    """One validation image.

    Attributes
    ----------
    path : below the data folder
    months : age at the scan; of a fetus since conception
    group : a row of the table by age: ``adult``, ``child``, ``infant``, ``fetus``, ``painted``
    seed : of everything that is drawn for it
    kind : ``brain`` (stripped), ``head``, or ``map`` (a label map to paint)
    contrast : ``T1w`` or ``T2w``
    """

    path: str
    months: float
    group: str
    seed: int
    kind: str = "brain"
    contrast: str = "T1w"

    @property
    def fetal(self) -> bool:
        """Whether the image is of a fetus."""
        return self.group == "fetus"


def _gestation(weeks: float) -> float:
    return (weeks - GESTATION_WEEKS) * WEEK_MONTHS


_LIFESPAN = "lifespan-bids/sub-{0}/ses-V01/anat/sub-{0}_ses-V01_T1w.nii.gz"
_ATLAS = "fetal-atlas/GA{0}_operated_T2w.nii.gz"
_MAP = "label-maps/training_seg_{0}.nii.gz"
#: name in the tables → image
SUBJECTS: Mapping[str, Subject] = {
    "adult-31": Subject("adult-brains/sub-31_T1w.nii.gz", 228, "adult", 31),
    "adult-68": Subject("adult-brains/sub-68_T1w.nii.gz", 624, "adult", 68),
    "head-14": Subject("heads-open/ds000011_sub-14_T1w.nii.gz", 360, "adult", 14, "head"),
    "head-stroke": Subject(
        "heads-open/adult_stroke_M2265_T2w.nii.gz", 600, "adult", 65, "head", "T2w"
    ),
    "head-child10": Subject("heads-open/child10_T1w.nii.gz", 126, "child", 10, "head"),
    "sub-0003": Subject(_LIFESPAN.format("0003"), 18, "infant", 0),
    "sub-0007": Subject(_LIFESPAN.format("0007"), 3, "infant", 1),
    "fetus-31w": Subject(_ATLAS.format(31), _gestation(31), "fetus", 131, contrast="T2w"),
    "fetus-34w": Subject(_ATLAS.format(34), _gestation(34), "fetus", 134, contrast="T2w"),
    "map-17": Subject(_MAP.format(17), ADULT_MONTHS, "painted", 17, "map"),
    "map-18": Subject(_MAP.format(18), ADULT_MONTHS, "painted", 18, "map"),
    "map-20": Subject(_MAP.format(20), ADULT_MONTHS, "painted", 20, "map", "T2w"),
}

#: images that have trained the weights: with their own faults, drawn anew, a factor can be fitted
TRAINED: Mapping[str, Subject] = {
    "adult-02": Subject("adult-brains/sub-02_T1w.nii.gz", 600, "adult", 202),
    "adult-10": Subject("adult-brains/sub-10_T1w.nii.gz", 288, "adult", 210),
    "adult-33": Subject("adult-brains/sub-33_T1w.nii.gz", 252, "adult", 233),
    "head-09": Subject("heads-open/ds000011_sub-09_T1w.nii.gz", 252, "adult", 209, "head"),
    "sub-0004": Subject(_LIFESPAN.format("0004"), 12, "infant", 204),
    "fetus-28w": Subject(_ATLAS.format(28), _gestation(28), "fetus", 228, contrast="T2w"),
}

#: heads of known anatomy: each label map that trained nothing, in contrasts drawn for it
PAINTED: Mapping[str, Subject] = {
    f"painted-{number}-{draw}": Subject(
        _MAP.format(number), ADULT_MONTHS, "painted", 100 * draw + number, "map"
    )
    for number in (17, 18, 19, 20)
    for draw in (1, 2, 3)
}

#: a patient whose lesions were marked: image → mask
REAL_LESIONS: Mapping[str, Subject] = {
    "ms-patient07": Subject("lesions/ms-patient07/patient07_T1w.nii.gz", 480, "adult", 307),
}
MARKED = "lesions/ms-patient07/patient07_lesions.nii.gz"


def subject_of(name: str) -> Subject:
    """An image of any of the tables; UsageError for a name of none."""
    known = {**SUBJECTS, **PAINTED, **TRAINED, **REAL_LESIONS}
    if name not in known:
        raise UsageError(f"expected images of {', '.join(known)}; got {name}")
    return known[name]


def require_data(path: Path, what: str = "the image") -> None:
    """A UsageError where a file of the data folder is not there."""
    if not path.is_file():
        raise UsageError(f"expected {what} {path}, found none; give its folder with --data")


@dataclass(frozen=True)
class Clean:
    """A validation image as a scanner would store it, axes LPS.

    Attributes
    ----------
    data : (X, Y, Z), the file's intensities; not negative
    affine : 4 × 4
    mask : (X, Y, Z) of a stripped brain; None for a head
    """

    data: Array
    affine: NDArray[np.float64]
    mask: NDArray[np.bool_] | None

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel sizes, mm."""
        return voxel_sizes(self.affine)

    def image(self, data: NDArray[Any]) -> nib.Nifti1Image:
        """Voxels on this grid as an image."""
        return nib.Nifti1Image(data, self.affine)


def load_clean(data_dir: Path, subject: Subject) -> Clean:
    """Read, or paint, one image; a file that is absent is a UsageError."""
    path = data_dir / subject.path
    if not path.exists():
        raise UsageError(
            f"expected the validation data at {path}, found none; give its folder with --data"
        )
    if subject.kind == "map":
        head = paint_head(read_labels(path), subject.contrast, subject.seed)
        return Clean(head, np.eye(4) * [-1, -1, 1, 1], None)
    image = conform(load_image(path))
    data = np.clip(np.asarray(image.dataobj, dtype=np.float32), 0, None)
    return Clean(data, image.affine, data > 0 if subject.kind == "brain" else None)
