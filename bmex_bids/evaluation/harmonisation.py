# SPDX-License-Identifier: Apache-2.0
"""One head, several scanners: do their histograms come closer?

A synthetic scanner is a fixed recipe: its coil's bias, its contrast, its slices, its noise.  Each
clean brain is seen by all of them, then brought to common intensities in three ways: scaled
robustly (what raw images would be), bias-corrected and matched to the age's histogram (the
application without its network), and enhanced.  The distance of a pair of scanners is the
Jensen-Shannon distance of their histograms inside the brain.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from bmex_bids.degrade.recipe import Recipe
from bmex_bids.imaging.intensity import load_histogram, match_histogram, n4, rescale_robust
from bmex_bids.metrics.statistics import histogram_distance
from bmex_bids.training.images import CleanImage

Array = NDArray[np.float32]
SPAN = (0.0, 1000.0)


def _bias(seed: int, strength: float) -> list[list[list[float]]]:
    control = np.random.default_rng(seed).normal(0, strength, (3, 3, 3))
    return np.round(control, 4).tolist()  # type: ignore[no-any-return]


#: name → what the scanner does; intensities in template units
SCANNERS: Mapping[str, Recipe] = {
    "A": Recipe(({"kind": "rician-noise", "sigma": 8.0, "seed": 1},)),
    "B": Recipe(
        (
            {"kind": "gamma", "exponent": 1.25, "reference": 500.0},
            {"kind": "bias-field", "control": _bias(2, 0.1)},
            {"kind": "rician-noise", "sigma": 20.0, "seed": 2},
        )
    ),
    "C": Recipe(
        (
            {"kind": "gamma", "exponent": 0.8, "reference": 500.0},
            {"kind": "low-resolution", "axis": 2, "thickness_mm": 1.6},
            {"kind": "rician-noise", "sigma": 30.0, "seed": 3},
        )
    ),
    "D": Recipe(
        (
            {"kind": "smoothing", "fwhm_mm": 1.6},
            {"kind": "bias-field", "control": _bias(4, 0.15)},
            {"kind": "rician-noise", "sigma": 12.0, "seed": 4},
        )
    ),
}


def distances(
    clean: CleanImage, mend: Callable[[Array], Array]
) -> Iterator[tuple[str, str, float]]:
    """(pair of scanners, stage, distance), stages ``degraded``, ``matched`` and ``enhanced``.

    Parameters
    ----------
    clean : the brain that all scanners see
    mend : matched image → enhanced image, both in template units
    """
    stages: dict[str, dict[str, Array]] = {"degraded": {}, "matched": {}, "enhanced": {}}
    reference = load_histogram(clean.age_group, clean.contrast)
    affine = np.diag([*clean.spacing, 1.0])
    mask = nib.Nifti1Image(clean.mask.astype(np.uint8), affine)
    for name, recipe in SCANNERS.items():
        seen = recipe.apply(clean.data, clean.spacing)
        seen = np.where(clean.mask, np.clip(seen, 0, None), 0).astype(np.float32)
        scaled, _ = rescale_robust(seen, clean.mask)
        corrected, _ = n4(nib.Nifti1Image(seen, affine), mask)
        matched, _ = match_histogram(
            np.asarray(corrected.dataobj, dtype=np.float32), reference, clean.mask
        )
        for stage, image in (
            ("degraded", scaled), ("matched", matched), ("enhanced", mend(matched)),
        ):  # fmt: skip
            stages[stage][name] = image[clean.mask]
    for first, second in itertools.combinations(SCANNERS, 2):
        for stage, seen_by in stages.items():
            yield (
                f"{first}-{second}",
                stage,
                histogram_distance(seen_by[first], seen_by[second], span=SPAN),
            )
