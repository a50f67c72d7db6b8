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
#: Percentiles between which no vessel, enhancing lesion or bleeding counts.  There, with noise up to
#: 6 % and with 0.7 to 1.5 % of the brain made very bright or dark, T1w and FLAIR images of all ages
#: have -0.72 to 0.06 and T2w images 0.13 to 1.27: the bound lies between.
MOST, BOUND = (5.0, 95.0), 0.1
#: Bright things that are added so reach 3 to 10 times as far as these percentiles (bright fluid: 1.3
#: to 3.2 times); how far dark ones reach ends at zero.  The image's own fluid, on the other side,
#: reaches 1.5 to 3.2 times as far.
ADDED, OWN = 3.3, 1.4
#: Clipping cuts the tail of the histogram that tells.  From 8 % of the brain at its highest value on
#: T2w images have the figure of a T1w image, and from 8 % at its lowest on T1w images that of a T2w
#: image; where half of a T1w image has the highest value, its figure changes its sign, too.
CLIPPED, MOSTLY_CLIPPED = 0.05, 0.3


def fluid_contrast(
    image: NDArray[np.floating[Any]], mask: NDArray[np.bool_], spacing: tuple[float, ...]
) -> float:
    """Whether fluid is brighter (above 0: T2w) or darker (below 0: T1w, FLAIR) than tissue.

    Fluid fills thin furrows and ventricles, and differs from tissue more than tissues do from each
    other at any age, so that it is the tail of the histogram of what differs from its
    surroundings: the figure is that histogram's skewness, its outermost values clipped, so that a
    spike does not decide.  Forty-two real T1w images of one month to 55 years have -1.6 to -0.3,
    seven T2w images of fetus to adult 0.25 to 2.2.  Vessels and lesions that a contrast agent makes
    bright, or bleeding that is dark, have a long tail of their own: where there is one, and
    the skewness of the middle 90 % contradicts, that is the figure.

    Parameters
    ----------
    image, mask : (X, Y, Z), zero where it shows nothing; the brain.  A mask that reaches over a
        stripped brain does no harm
    spacing : mm

    Returns
    -------
    NaN where the brain is too small or constant
    """
    step = [max(1, round(GRID_MM / size)) for size in spacing]
    thin = tuple(slice(None, None, n) for n in step)
    sizes = [n * size for n, size in zip(step, spacing, strict=True)]
    values, inside = np.asarray(image[thin], dtype=np.float32), np.asarray(mask[thin])
    inside = inside & ~_beside(values, inside)
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
    whole, middle = _skewness(differing, OUTERMOST), _skewness(differing, MOST) - BOUND
    down, up = _reach(differing)
    bright, dark = whole > 0 > middle, whole < 0 < middle
    added = (bright and up >= ADDED and down >= OWN) or (dark and up >= OWN)
    return middle if added else whole


def may_be_clipping(figure: float, lowest: float, highest: float) -> bool:
    """Whether the sign of :func:`fluid_contrast` may come from clipping, and not from fluid.

    ``lowest``, ``highest``: shares of the brain that have its lowest and its highest value.

    >>> may_be_clipping(-0.5, 0.0, 0.1), may_be_clipping(0.5, 0.0, 0.1)
    (True, False)
    """
    if figure < 0:
        return highest > CLIPPED
    return lowest > CLIPPED or highest > MOSTLY_CLIPPED


def _beside(values: NDArray[np.float32], inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Where a mask reaches over a stripped brain: zeros, from its surface inwards."""
    nothing = values == 0
    return np.asarray(scipy.ndimage.binary_propagation(~inside, mask=nothing | ~inside))


def _reach(values: NDArray[np.float64]) -> tuple[float, float]:
    """How far the outermost values reach down and up, over the 5th and the 95th percentile."""
    low, high = np.percentile(values, OUTERMOST)
    lower, upper = np.percentile(values, MOST)
    centre = np.median(values)
    least = 1e-12 * max(high - low, 1e-30)
    return (
        float((centre - low) / max(centre - lower, least)),
        float((high - centre) / max(upper - centre, least)),
    )


def _skewness(values: NDArray[np.float64], percentiles: tuple[float, float]) -> float:
    """Of values that are clipped at percentiles; NaN where no two differ."""
    clipped = np.clip(values, *np.percentile(values, percentiles))
    deviation = clipped.std()
    if deviation == 0:
        return math.nan
    return float(((clipped - clipped.mean()) ** 3).mean() / deviation**3)
