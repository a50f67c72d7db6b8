# SPDX-License-Identifier: Apache-2.0
"""Resampling between grids, by their affines alone (oblique and sheared grids included).

Grids that are made here have axes at right angles, as ITK demands of the images that it reads.
"""

from __future__ import annotations

import nibabel as nib
import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from bmex_bids.imaging.orientation import voxel_sizes

Grid = tuple[tuple[int, ...], NDArray[np.float64]]


#: cosine of the angle between two axes up to which they count as orthonormal; the rounding of an
#: affine to 32 bits makes 1e-7
ORTHONORMAL = 1e-6
#: voxels by which the corners of a grid may move without a resampling of its image
UNMOVED = 0.05


def orthonormal_axes(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """The directions of an affine's axes, (3, 3), at right angles: the nearest such matrix.

    The orthogonal factor of the polar decomposition (Higham, SIAM J. Sci. Stat. Comput. 1986) of
    the axes' unit vectors.  Axes that are orthonormal are returned as they are.
    """
    axes = np.asarray(affine[:3, :3] / np.array(voxel_sizes(affine)), dtype=np.float64)
    if np.abs(axes.T @ axes - np.eye(3)).max() <= ORTHONORMAL:
        return axes
    left, _, right = np.linalg.svd(axes)
    return np.asarray(left @ right)


def grid_of_spacing(
    shape: tuple[int, ...], affine: NDArray[np.float64], spacing_mm: float
) -> Grid:
    """Shape and affine of an isotropic grid over the same field of view.

    ::

        old voxels   |  ·  |  ·  |  ·  |          n · z  mm, edge to edge
        new voxels   | · | · | · | · | · |        m = ceil(n · z / s); both have the same centre

    The number of voxels is rounded up, never down, so that no edge is lost, and the two grids
    share the centre of the field of view, so that nothing shifts.  The new axes are at right
    angles; where the old ones are sheared, the new grid is the box around them.
    """
    old = np.array(voxel_sizes(affine))
    count = np.array(shape[:3])
    axes = orthonormal_axes(affine)
    straight = count * old
    box = np.abs(axes.T @ affine[:3, :3]) @ count
    extent = np.where(box - straight > UNMOVED * spacing_mm, box, straight)
    new = np.maximum(np.ceil(extent / spacing_mm - 1e-3), 1).astype(int)
    return tuple(int(n) for n in new), _about_centre(new, axes * spacing_mm, shape, affine)


def rigid_affine(shape: tuple[int, ...], affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """An affine without shear, of the same voxel sizes and the same centre of the field of view."""
    steps = orthonormal_axes(affine) * np.array(voxel_sizes(affine))
    return _about_centre(np.array(shape[:3]), steps, shape, affine)


def _about_centre(
    new_shape: NDArray[np.int64],
    steps: NDArray[np.float64],
    shape: tuple[int, ...],
    affine: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Affine of a grid of the given steps (3, 3) that has the centre of another grid."""
    result = np.eye(4)
    result[:3, :3] = steps
    centre = affine @ np.append((np.array(shape[:3]) - 1) / 2, 1)
    result[:3, 3] = centre[:3] - steps @ ((np.asarray(new_shape) - 1) / 2)
    return result


def resample_to_spacing(
    image: nib.Nifti1Image, spacing_mm: float, *, order: int = 1
) -> nib.Nifti1Image:
    """Resample to isotropic voxels, same field of view, axes at right angles.

    An image whose voxels have that size already keeps its voxels, unless its axes are sheared.
    Axes that get coarser are smoothed first (unless ``order`` is 0) so that nothing aliases.
    """
    sizes = voxel_sizes(image.affine)
    if np.allclose(sizes, spacing_mm, atol=1e-3):
        axes = orthonormal_axes(image.affine)
        moved = np.abs(axes.T @ image.affine[:3, :3] - np.diag(sizes)) @ np.array(image.shape[:3])
        if moved.max() / 2 <= UNMOVED * spacing_mm:
            straight = rigid_affine(image.shape, image.affine)
            if np.allclose(straight[:3, :3], image.affine[:3, :3], rtol=0, atol=ORTHONORMAL):
                return image
            return nib.Nifti1Image(image.dataobj, straight)
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
