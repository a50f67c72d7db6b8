# SPDX-License-Identifier: Apache-2.0
"""Resampling between grids, by their affines alone (oblique and sheared grids included)."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from bmex_bids.imaging.orientation import voxel_sizes

Grid = tuple[tuple[int, ...], NDArray[np.float64]]


def grid_of_spacing(
    shape: tuple[int, ...], affine: NDArray[np.float64], spacing_mm: float
) -> Grid:
    """Shape and affine of an isotropic grid over the same field of view.

    ::

        old voxels   |  ·  |  ·  |  ·  |          n · z  mm, edge to edge
        new voxels   | · | · | · | · | · |        m = ceil(n · z / s); both have the same centre

    The number of voxels is rounded up, never down, so that no edge is lost, and the two grids
    share the centre of the field of view, so that nothing shifts.
    """
    old = np.array(voxel_sizes(affine))
    count = np.array(shape[:3])
    new = np.maximum(np.ceil(count * old / spacing_mm - 1e-3), 1).astype(int)
    result = affine.copy()
    result[:3, :3] = affine[:3, :3] / old * spacing_mm
    centre = affine @ np.append((count - 1) / 2, 1)
    result[:3, 3] = centre[:3] - result[:3, :3] @ ((new - 1) / 2)
    return tuple(int(n) for n in new), result


def resample_to_spacing(
    image: nib.Nifti1Image, spacing_mm: float, *, order: int = 1
) -> nib.Nifti1Image:
    """Resample to isotropic voxels, same axes, same field of view.

    An image whose voxels have that size already is returned as it is.  Axes that get coarser are
    smoothed first (unless ``order`` is 0) so that nothing aliases.
    """
    if np.allclose(voxel_sizes(image.affine), spacing_mm, atol=1e-3):
        return image
    return resample_like(
        image, grid_of_spacing(image.shape, image.affine, spacing_mm), order=order
    )


def resample_like(
    image: nib.Nifti1Image, reference: nib.Nifti1Image | Grid, *, order: int = 1
) -> nib.Nifti1Image:
    """Resample to another image's grid.

    Parameters
    ----------
    image : what is resampled
    reference : an image, or (shape, affine)
    order : 0 nearest (labels), 1 linear, 3 cubic spline; zero outside the field of view
    """
    if isinstance(reference, tuple):
        shape, affine = reference
    else:
        shape, affine = reference.shape[:3], reference.affine
    data = np.asarray(image.dataobj)
    if image.shape == tuple(shape) and np.allclose(image.affine, affine, atol=1e-5):
        return nib.Nifti1Image(data, affine)
    if order > 0:
        data = _antialias(data.astype(np.float32, copy=False), image.affine, affine)
    to_source = np.linalg.inv(image.affine) @ affine
    whole = np.round(to_source)
    if np.allclose(to_source, whole, rtol=0, atol=1e-5):
        to_source = whole  # voxel on voxel: values are copied, zero stays exactly zero
    to_source[np.abs(to_source) < 1e-9] = 0
    # a grid's edge voxels reach half a voxel beyond their centres: repeat them there, then zero
    result = scipy.ndimage.affine_transform(
        np.pad(data, 1, mode="edge"),
        to_source[:3, :3],
        offset=to_source[:3, 3] + 1,
        output_shape=tuple(shape),
        order=order,
        mode="constant",
        cval=0,
    )
    return nib.Nifti1Image(result.astype(data.dtype, copy=False), affine)


def _antialias(
    data: NDArray[np.float32], source: NDArray[np.float64], target: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Smooth along source axes that get coarser; widths add in quadrature to the new voxel."""
    step = np.linalg.inv(source[:3, :3]) @ target[:3, :3]  # one target voxel in source voxels
    coarser = np.sqrt((step**2).max(axis=1))
    sigma = np.sqrt(np.clip(coarser**2 - 1, 0, None)) / 2.355
    sigma[coarser < 1.1] = 0
    if not sigma.any():
        return data
    result: NDArray[np.float32] = scipy.ndimage.gaussian_filter(data, sigma, mode="nearest")
    return result
