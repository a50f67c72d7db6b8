# SPDX-License-Identifier: Apache-2.0
"""Lesions in volumes that train: which, how often, and whether they have a label of their own.

Masks of multiple sclerosis and of strokes that judge the weights
(:mod:`bmex_bids.evaluation.lesions`) are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from bmex_bids.exceptions import UsageError
from bmex_bids.training.images import UNKNOWN, CleanImage
from bmex_bids.training.lesions import (
    GAP_MM,
    Part,
    draw,
    place_parts,
    put_in,
    read_parts,
    read_strokes,
    stroke_names,
)

#: label of a lesion, after the tissues
LESION = 4
WHITE_MATTER = 3
#: what ``[campaign] lesions`` may be: none; in the images, without a label; with one
MODES = ("none", "data", "label")
#: masks of multiple sclerosis that train; of strokes those that are not every tenth
MS_MASKS = tuple(f"lesions/ms-masks/patient{k:02d}_lesions.nii.gz" for k in range(1, 26))
STROKES, EVERY = "lesions/stroke_soop_mni_1mm.npz", 10
#: real lesions that are larger do not fit between others
LARGEST_MM3, MOST_STROKES = 15000, 300
#: of a volume: real lesions, drawn ones; diameters in mm; contrasts
MOST_REAL, MOST_DRAWN = 4, 10
SIZES_MM = (2.0, 25.0)
CONTRASTS = (0.06, 0.45)
#: white matter that a volume must have, voxels
LEAST_TISSUE = 20000


@dataclass(frozen=True)
class Patients:
    """What is drawn from.

    Attributes
    ----------
    labelled : lesions are :data:`LESION`; else their tissue is not known
    share : of the volumes that have lesions
    parts : real lesions by name
    """

    labelled: bool
    share: float = 0.3
    parts: Mapping[str, Part] = field(default_factory=dict)


def read_patients(data_dir: Path, mode: str, share: float = 0.3) -> Patients | None:
    """The masks that train; None for ``"none"``.

    Raises UsageError where the masks are not there, or there is no such mode.
    """
    if mode not in MODES:
        raise UsageError(f"expected lesions of {', '.join(MODES)}, got {mode!r}")
    if mode == "none":
        return None
    missing = [name for name in (*MS_MASKS, STROKES) if not (data_dir / name).is_file()]
    if missing:
        raise UsageError(
            f"expected masks of lesions in {data_dir}, found no {missing[0]}; give their folder "
            "with --data, or train without lesions"
        )
    parts: dict[str, Part] = {}
    for name in MS_MASKS:
        parts |= read_parts(data_dir / name)
    names = [n for k, n in enumerate(stroke_names(data_dir / STROKES)) if k % EVERY]
    parts |= read_strokes(data_dir / STROKES, names[:MOST_STROKES])
    small = {name: part for name, part in parts.items() if part.shape.sum() <= LARGEST_MM3}
    return Patients(mode == "label", share, small)


def with_lesions(clean: CleanImage, patients: Patients, rng: np.random.Generator) -> CleanImage:
    """A clean image with lesions in its white matter; as it is where that is not known.

    Lesions are darker in a T1w image and brighter in a T2w image.
    """
    tissue = np.asarray(clean.labels == WHITE_MATTER) & clean.mask
    if rng.random() >= patients.share or np.count_nonzero(tissue) < LEAST_TISSUE:
        return clean
    sign = -1.0 if clean.contrast == "T1w" else 1.0

    def contrast() -> float:
        return sign * float(rng.uniform(*CONTRASTS))

    names = list(patients.parts)
    count = min(int(rng.integers(0, MOST_REAL + 1)), len(names))
    chosen = [names[k] for k in rng.choice(len(names), count, replace=False)] if count else []
    found, shapes = place_parts(
        rng,
        {name: patients.parts[name] for name in chosen},
        (clean.mask, tissue),
        clean.spacing,
        [contrast() for _ in range(3)],
    )
    _, taken = put_in(clean.data, clean.mask, clean.spacing, found, shapes)
    near = round(GAP_MM / min(clean.spacing))
    free = tissue & ~scipy.ndimage.binary_dilation(taken > 0, iterations=near)
    low, high = np.log(SIZES_MM)
    wanted = [
        (float(np.exp(rng.uniform(low, high))), contrast())
        for _ in range(int(rng.integers(1, MOST_DRAWN + 1)))
    ]
    found += draw(rng, free, clean.spacing, wanted)
    image, where = put_in(clean.data, clean.mask, clean.spacing, found, shapes)
    labels: NDArray[np.uint8] = clean.labels.copy()
    labels[where > 0] = LESION if patients.labelled else UNKNOWN
    return CleanImage(
        clean.name, image, clean.mask, labels, clean.spacing, clean.age_group, clean.contrast
    )
