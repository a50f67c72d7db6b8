# SPDX-License-Identifier: Apache-2.0
"""Slices along an axis: their means, and interpolation between them, as matrices."""

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


def slab_weights(n: int, centres: NDArray[np.float64], thickness: float) -> NDArray[np.float64]:
    """(slabs, n): the share of each voxel in each slab; rows sum to 1, or to 0 off the axis.

    Parameters
    ----------
    centres : of the slabs, in voxels along the axis
    thickness : voxels; the profile is a box, whose edges may cut voxels
    """
    voxels = np.arange(n)[np.newaxis]
    middle = np.asarray(centres)[:, np.newaxis]
    lower = np.maximum(voxels - 0.5, middle - thickness / 2)
    upper = np.minimum(voxels + 0.5, middle + thickness / 2)
    overlap = np.clip(upper - lower, 0, None)
    total = overlap.sum(axis=1, keepdims=True)
    return np.asarray(overlap / np.where(total > 0, total, 1))


def halving_weights(n: int) -> NDArray[np.float64]:
    """(2n, n): the share of each voxel of an axis in each of its halves, by a cubic spline.

    The mean of a voxel's halves is the voxel.  Beyond the ends the voxels are mirrored.
    """
    near, far = np.arange(n)[:, np.newaxis] + np.array([-0.25, 0.25]), np.arange(-3, n + 3)
    basis = scipy.interpolate.BSpline.basis_element(np.arange(-2, 3), extrapolate=False)
    shares = np.nan_to_num(basis(near[:, :, np.newaxis] - far))
    mirrored = np.where(far < 0, -1 - far, np.where(far >= n, 2 * n - 1 - far, far))
    halves = np.zeros((n, 2, n))
    for column, voxel in enumerate(np.clip(mirrored, 0, n - 1)):
        halves[:, :, voxel] += shares[:, :, column]
    return np.asarray(halves.reshape(2 * n, n) @ np.linalg.inv(halves.mean(1)))
