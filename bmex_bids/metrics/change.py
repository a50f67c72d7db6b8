# SPDX-License-Identifier: Apache-2.0
"""Figures of what an enhancement changed, and of whether a mask lies on the brain.

They need no reference.  What cannot be measured is NaN, never an error: these figures go to the
gate (:mod:`bmex_bids.metrics.gate`), which has its own answer to a figure that is missing.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bmex_bids.common.tissues import TISSUES

Array = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]

#: below this share of the brain's bright end, a voxel shows nothing: air, or an image's padding.
#: Fluid in a T1w image is at 15 to 30 %, noise of air at 1 to 3 %.
EMPTY_BELOW = 0.05
#: what stands for the brain's bright end, percentile inside the mask; with it, a mask that lies
#: mostly in air still finds the brain's brightness
BRIGHT_PERCENTILE = 95.0


def correlation(before: Array, after: Array, mask: Mask) -> float:
    """Pearson's correlation of two images inside a mask, −1…1.

    NaN where either is constant or not finite, or the mask has fewer than two voxels.
    """
    a, b = (image[mask].astype(np.float64) for image in (before, after))
    if a.size < 2 or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return math.nan
    a, b = a - a.mean(), b - b.mean()
    norm = math.sqrt(float(a @ a)) * math.sqrt(float(b @ b))
    return float(np.clip(float(a @ b) / norm, -1, 1)) if norm > 0 else math.nan


def mean_shift(before: Array, after: Array, mask: Mask) -> float:
    """Change of the mean inside a mask, relative to the mean before: 0.1 is 10 % brighter.

    NaN for an empty mask, a mean before of zero or less, or values that are not finite.
    """
    if not mask.any():
        return math.nan
    first, second = (float(image[mask].astype(np.float64).mean()) for image in (before, after))
    if not (math.isfinite(first) and math.isfinite(second)) or first <= 0:
        return math.nan
    return second / first - 1


def empty_share(image: Array, mask: Mask) -> float:
    """Share of a mask's voxels in which the image shows nothing, 0…1.

    Nothing is up to :data:`EMPTY_BELOW` of the 95th percentile inside the mask.  A mask on the
    brain has next to none of them; one that was shifted, flipped or made for another image lies
    partly in air.  ``image`` is non-negative, zero in air.  NaN for an empty mask, for values that
    are not finite, and where even the bright end is zero.
    """
    values = image[mask]
    if not values.size or not np.isfinite(values).all():
        return math.nan
    bright = float(np.percentile(values, BRIGHT_PERCENTILE))
    return float((values <= EMPTY_BELOW * bright).mean()) if bright > 0 else math.nan


def tissue_litres(labels: NDArray[np.integer[Any]], voxel_mm3: float) -> dict[str, float]:
    """Volumes of CSF, GM and WM in litres; labels are the network's (1 CSF, 2 GM, 3 WM)."""
    counts = np.bincount(labels.ravel(), minlength=4)
    return {tissue.label: float(counts[tissue.number]) * voxel_mm3 / 1e6 for tissue in TISSUES}


def estimated_error(
    before: Array, after: Array, deviation: Array, mask: Mask
) -> tuple[float, float]:
    """How far an image and its enhancement are from one without faults, as the network sees it.

    The enhanced image is the mean of what the network holds possible, ``deviation`` its standard
    deviation.  So the mean squared error is expected to be the mean of ``deviation²`` after, and of
    ``(after − before)² + deviation²`` before.  Roots of both, over the brain's mean intensity:
    0 is free of faults.

    Parameters
    ----------
    before, after, deviation : (X, Y, Z), one unit
    mask : (X, Y, Z), the brain

    Returns
    -------
    before, after : NaN where the mask is empty or its mean is not above zero
    """
    inside = np.asarray(mask, dtype=bool)
    if not inside.any() or float(before[inside].mean()) <= 0:
        return math.nan, math.nan
    first, second, spread = (
        np.asarray(v[inside], dtype=np.float64) for v in (before, after, deviation)
    )
    left = float((spread**2).mean())
    start = float(((second - first) ** 2).mean()) + left
    return math.sqrt(start) / float(first.mean()), math.sqrt(left) / float(first.mean())
