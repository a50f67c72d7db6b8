# SPDX-License-Identifier: Apache-2.0
"""Loss of resolution: thick slices, smoothing, random phase of k-space lines."""

from __future__ import annotations

import numpy as np
import scipy.ndimage
import scipy.sparse
from numpy.typing import NDArray

from bmex_bids.common.splines import slab_weights, spline_weights
from bmex_bids.degrade.motion import Trajectory, apply_motion

Array = NDArray[np.float32]
#: shares of a slab in a voxel that are left out
NEGLIGIBLE = 1e-6


def thick_slices(image: Array, axis: int, factor: float, degree: int = 1) -> Array:
    """Average slabs of ``factor`` voxels along one axis, then interpolate back.

    This is what a scan with slices ``factor`` times as thick looks like after the resampling that
    every pipeline does first.  The slab profile is a box; its edges may cut voxels.

    Parameters
    ----------
    image : (X, Y, Z) array, kept unit
    axis : the through-plane axis
    factor : slice thickness in voxels, ≥ 1; 1 is the identity
    degree : of the spline that interpolates: 1 (linear) or 3 (cubic, as the application does)
    """
    if factor < 1:
        raise ValueError(f"expected a slice thickness of at least one voxel, got {factor}")
    n = image.shape[axis]
    matrix = spline_weights(n, slab_centres(n, factor), degree) @ _slab_matrix(n, factor)
    return mixed_along(np.where(np.abs(matrix) < NEGLIGIBLE, 0, matrix), image, axis)


def average_slabs(image: Array, axis: int, factor: float) -> Array:
    """The thick slices themselves, on their own grid; what an up-sampling method starts from.

    Parameters
    ----------
    image : (X, Y, Z) array, kept unit
    axis, factor : as for :func:`thick_slices`; the slices lie at :func:`slab_centres`

    Returns
    -------
    array with ceil(n / factor) slices along ``axis``
    """
    if factor < 1:
        raise ValueError(f"expected a slice thickness of at least one voxel, got {factor}")
    return mixed_along(_slab_matrix(image.shape[axis], factor), image, axis)


def mixed_along(matrix: NDArray[np.float64], image: Array, axis: int) -> Array:
    """Multiply each line along an axis by a matrix with few entries a row.

    Sparse, because the dense product (BLAS) rounds differently with another number of threads.
    """
    lines = np.moveaxis(np.asarray(image, dtype=np.float32), axis, 0)
    sparse = scipy.sparse.csr_array(matrix.astype(np.float32))
    mixed = sparse @ lines.reshape(len(lines), -1)
    result = np.moveaxis(mixed.reshape(-1, *lines.shape[1:]), 0, axis)
    return np.ascontiguousarray(result, dtype=np.float32)


def slab_centres(n: int, factor: float) -> NDArray[np.float64]:
    """Voxel coordinates of the slab centres; slabs tile n voxels, from the first voxel's lower
    edge."""
    count = max(int(np.ceil(n / factor - 1e-9)), 1)
    return np.asarray((np.arange(count) + 0.5) * factor - 0.5, dtype=np.float64)


def _slab_matrix(n: int, factor: float) -> NDArray[np.float64]:
    """(slabs, n): the share of each voxel in each slab."""
    return slab_weights(n, slab_centres(n, factor), factor)


def smooth(image: Array, spacing: tuple[float, float, float], fwhm_mm: float) -> Array:
    """Gaussian smoothing; ``fwhm_mm`` is the kernel's full width at half maximum."""
    sigma = [fwhm_mm / (2 * np.sqrt(2 * np.log(2)) * step) for step in spacing]
    result: Array = scipy.ndimage.gaussian_filter(image, sigma, mode="nearest", truncate=3.0)
    return result


def line_jitter(
    image: Array,
    shifts: NDArray[np.float64],
    *,
    phase_axis: int,
    readout_axis: int,
    workers: int = 1,
) -> Array:
    """Shift each k-space line by a random amount along the read-out axis.

    The result is blurred and faintly ghosted (NETWORK.md §7: "blur by random phase per line").

    Parameters
    ----------
    image : (X, Y, Z) array
    shifts : (image.shape[phase_axis],) voxels along ``readout_axis``
    workers : threads
    """
    translations = np.zeros((len(shifts), 3))
    translations[:, readout_axis] = shifts
    pose = Trajectory(translations, np.zeros_like(translations))
    return apply_motion(image, (1.0, 1.0, 1.0), pose, phase_axis=phase_axis, workers=workers)
