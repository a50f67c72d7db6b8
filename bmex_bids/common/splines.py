# SPDX-License-Identifier: Apache-2.0
"""Interpolation along an axis as a matrix."""

from __future__ import annotations

import numpy as np
import scipy.interpolate
from numpy.typing import NDArray


def spline_weights(n: int, centres: NDArray[np.float64], degree: int) -> NDArray[np.float64]:
    """(n, slabs): the share of each slab in each voxel, by a spline, constant beyond the ends.

    Parameters
    ----------
    centres : of the slabs, increasing, in voxels along the axis
    degree : 0 (the nearest), 1 (linear) or 3 (cubic)
    """
    if degree not in (0, 1, 3):
        raise ValueError(f"expected an interpolation of degree 0, 1 or 3, got {degree}")
    identity = np.eye(len(centres))
    places = np.clip(np.arange(n), centres[0], centres[-1])
    if degree == 0:
        return identity[np.abs(places[:, np.newaxis] - centres).argmin(1)]
    if degree == 3 and len(centres) > 1:
        return np.asarray(scipy.interpolate.CubicSpline(centres, identity)(places))
    return np.stack([np.interp(places, centres, row) for row in identity], axis=1)
