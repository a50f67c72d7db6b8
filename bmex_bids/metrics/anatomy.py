# SPDX-License-Identifier: Apache-2.0
"""Whether a mask and tissues look like a brain's: figures for the gate, none of them in its unit.

Labels are the network's: 0 background, 1 CSF, 2 GM, 3 WM.  What cannot be measured is NaN.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Labels = NDArray[np.integer[Any]]
CSF, GM, WM = 1, 2, 3
#: mm: voxels that are looked at, so that figures do not depend on the image's
GRID_MM = 1.6
#: ages in months from which white matter is brighter (T1w) or darker (T2w) than grey matter
SURE_MONTHS = {"T1w": 12.0, "T2w": 24.0}
#: voxels from the mask's surface within which fluid is not measured: dura and vessels are there too
RIM = 5
#: the least share of the fluid that is measured in its place: less may be labelled wrongly
DEEP_SHARE = 0.01
#: 1 where fluid is darker than tissue, -1 where it is brighter
FLUID_DARK = {"T1w": 1, "FLAIR": 1, "T2w": -1}


def thinned(
    array: NDArray[Any], spacing: tuple[float, ...]
) -> tuple[NDArray[Any], tuple[float, ...]]:
    """Every so many voxels, so that they are about :data:`GRID_MM` apart, and their sizes in mm."""
    step = [max(1, round(GRID_MM / size)) for size in spacing]
    part = array[tuple(slice(n // 2, None, n) for n in step)]
    return part, tuple(n * size for n, size in zip(step, spacing, strict=True))


def flat_face(mask: Mask, spacing: tuple[float, ...]) -> float:
    """The largest share of a mask's surface that lies in one plane across an axis, 0…1.

    A brain has none that is flat.  One that was cut, by the field of view or by an error, has.

    Parameters
    ----------
    mask : (X, Y, Z)
    spacing : mm
    """
    inside, sizes = thinned(mask, spacing)
    padded = np.pad(inside, 1)
    largest = total = 0.0
    for axis in range(3):
        area = math.prod(size for other, size in enumerate(sizes) if other != axis)
        steps = np.diff(padded.astype(np.int8), axis=axis)
        others = tuple(other for other in range(3) if other != axis)
        for side in (1, -1):
            faces = (steps == side).sum(axis=others) * area
            largest, total = max(largest, float(faces.max())), total + float(faces.sum())
    return largest / total if total > 0 else math.nan


def white_depth(labels: Labels, spacing: tuple[float, ...]) -> float:
    """How much deeper white matter lies than grey matter, over the brain's mean depth.

    Depth is the distance to the surface of the brain.  The cortex is outside at every age and in
    every contrast, so this is below 0 where the two were taken for each other.

    Parameters
    ----------
    labels : (X, Y, Z)
    spacing : mm
    """
    tissues, sizes = thinned(labels, spacing)
    inside = tissues > 0
    if not ((tissues == GM).any() and (tissues == WM).any()):
        return math.nan
    depth = scipy.ndimage.distance_transform_edt(np.pad(inside, 1), sampling=sizes)
    depth = depth[1:-1, 1:-1, 1:-1]
    white, grey = (float(depth[tissues == tissue].mean()) for tissue in (WM, GM))
    return (white - grey) / float(depth[inside].mean())


def brightness_order(
    image: NDArray[np.floating[Any]],
    labels: Labels,
    contrast: str,
    age_months: float | None,
    fetal: bool = False,
) -> float:
    """The smallest step in the order of brightness that tissues have, over the brain's mean.

    Fluid is the darkest tissue of a T1w or FLAIR image and the brightest of a T2w one at every age;
    from :data:`SURE_MONTHS` on, grey matter lies between fluid and white matter.  Below 0 where the
    order is another; NaN for other contrasts.  Fluid near the mask's surface is left out where there
    is enough other fluid.

    Parameters
    ----------
    image, labels : (X, Y, Z), any unit from zero on
    contrast : BIDS suffix
    age_months : None where it is not known: only fluid is looked at
    """
    levels = [image[labels == tissue] for tissue in (CSF, GM, WM)]
    deep = image[(labels == CSF) & scipy.ndimage.binary_erosion(labels > 0, iterations=RIM)]
    if deep.size > DEEP_SHARE * levels[0].size:
        levels[0] = deep
    mean = float(image[labels > 0].mean()) if (labels > 0).any() else 0.0
    sign = FLUID_DARK.get(contrast, 0)
    if not sign or not all(values.size for values in levels) or not mean > 0:
        return math.nan
    fluid, grey, white = (float(values.mean(dtype=np.float64)) for values in levels)
    steps = [grey - fluid, white - fluid]
    if not fetal and (age_months or 0.0) >= SURE_MONTHS.get(contrast, math.inf):
        steps.append(white - grey)
    return min(sign * step for step in steps) / mean
