# SPDX-License-Identifier: Apache-2.0
"""Which contrast an image shows, seen from the image alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

#: mm: voxels that are looked at; how far the mean around a voxel reaches; and how much of the rim is
#: left out, where a mask may hold skull
GRID_MM, AROUND_MM, RIM_MM = 1.6, 4.0, 4.0
#: percentiles at which intensities, and their differences, are clipped
OUTERMOST = (0.2, 99.8)


def fluid_contrast(
    image: NDArray[np.floating[Any]], mask: NDArray[np.bool_], spacing: tuple[float, ...]
) -> float:
    """Whether fluid is brighter (above 0: T2w) or darker (below 0: T1w, FLAIR) than tissue.

    Fluid fills thin furrows and ventricles, and differs from tissue more than tissues do from each
    other at any age, so that it is the tail of the histogram of what differs from its
    surroundings: the figure is that histogram's skewness, its outermost values clipped, so that a
    spike or a bright vessel does not decide.  Forty-two real T1w images of one month
    to 55 years have -1.6 to -0.3, seven T2w images of fetus to adult 0.25 to 2.2.

    Parameters
    ----------
    image, mask : (X, Y, Z), any unit; the brain
    spacing : mm

    Returns
    -------
    NaN where the brain is too small or constant
    """
    step = [max(1, round(GRID_MM / size)) for size in spacing]
    thin = tuple(slice(None, None, n) for n in step)
    sizes = [n * size for n, size in zip(step, spacing, strict=True)]
    values, inside = np.asarray(image[thin], dtype=np.float32), np.asarray(mask[thin])
    if not inside.any() or not np.isfinite(values[inside]).all():
        return math.nan
    values = np.clip(values, *np.percentile(values[inside], OUTERMOST))
    deep = scipy.ndimage.distance_transform_edt(np.pad(inside, 1), sampling=sizes) > RIM_MM
    deep = deep[1:-1, 1:-1, 1:-1]
    sigma = [AROUND_MM / size for size in sizes]
    weight = scipy.ndimage.gaussian_filter(inside.astype(np.float32), sigma)
    mean = scipy.ndimage.gaussian_filter(np.where(inside, values, 0), sigma)
    differing = (values - mean / np.maximum(weight, 1e-3))[deep].astype(np.float64)
    if differing.size < 100 or differing.std() == 0:
        return math.nan
    differing = np.clip(differing, *np.percentile(differing, OUTERMOST))
    differing -= differing.mean()
    return float((differing**3).mean() / differing.std() ** 3)
