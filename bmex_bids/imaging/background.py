# SPDX-License-Identifier: Apache-2.0
"""The noise around the head in an image that is a ratio of two, such as MP2RAGE's UNI.

Where there is no signal, the ratio of two inversions is uniform noise over the whole range (Marques
et al., NeuroImage 2010).  With both inversions at hand a constant in the ratio suppresses it
(O'Brien et al., PLoS One 2014).  The ratio alone shows where that noise is, and nothing of what lies
below it: so the head is found, and all around it is set to the lowest intensity.  What is noisy
within the head (bone, sinuses) stays.
"""

from __future__ import annotations

import nibabel as nib
import numpy as np
import scipy.ndimage
import SimpleITK as sitk
from numpy.typing import NDArray

from bmex_bids.imaging.mask import Array, Mask, close_gaps
from bmex_bids.imaging.orientation import voxel_sizes

#: width of the neighbourhood in which noise is measured, and of the grid on which the head is found
WINDOW_MM, GRID_MM = 6.0, 2.0
#: mean difference of neighbours over the range: of uniform noise it is a third, a fifth where the
#: image was interpolated; over that of the head; and how much of the image's faces is so noisy
LEAST_NOISE, LEAST_RATIO, LEAST_SHARE = 0.15, 1.7, 0.5
#: noisy gaps in the head that are closed (bone below a thin scalp), and how far the scalp reaches
#: beyond what was measured
GAP_MM, RIM_MM = 12.0, 2.5


#: of the surroundings that are brighter than the head: share of a face that is so bright, on how
#: many faces, how far they are alike over their distance from the head; half of the thickness of a
#: cord that may join them to the brain, voxels of their seam, and litres that are left at least
FULL_FACE, BRIGHT_FACES, ALIKE, CORD_MM, SEAM, SMALLEST_HEAD = 0.9, 4, 0.25, 6.0, 2, 0.05


def without_noise(image: nib.Nifti1Image) -> nib.Nifti1Image:
    """The image with all around the head at its lowest intensity.

    Parameters
    ----------
    image : (X, Y, Z), LPS, any unit

    Returns
    -------
    the image itself where its background is not noisy: it was suppressed, or cut off with the skull
    """
    data = np.asarray(image.dataobj, dtype=np.float32)
    head = head_in_noise(data, voxel_sizes(image.affine))
    if head is None:
        return image
    lowest = np.percentile(data, 0.5).astype(np.float32)
    return nib.Nifti1Image(np.where(head, data, lowest), image.affine)


def without_brightness(data: Array, spacing: tuple[float, ...]) -> Array:
    """A head in surroundings that are brighter than it, with these at the image's lowest intensity.

    The surroundings lie on most of the image's faces, in one piece that no cord joins to the
    brain, and differ less from their own level than from the head.

    Parameters
    ----------
    data : (X, Y, Z), any unit
    spacing : mm

    Returns
    -------
    the array itself where the surroundings are not bright
    """
    smooth = scipy.ndimage.uniform_filter(np.asarray(data, dtype=np.float32), 3)
    limit = _between(smooth)
    faces = [np.take(smooth, end, axis=axis) for axis in range(3) for end in (0, -1)]
    if sum((face > limit).mean() >= FULL_FACE for face in faces) < BRIGHT_FACES:
        return data
    level = float(np.median([np.median(face) for face in faces]))
    reach = ALIKE * (level - float(np.median(smooth[smooth <= limit])))
    alike = np.abs(smooth - level) <= reach
    deep = scipy.ndimage.distance_transform_edt(alike, sampling=spacing) > CORD_MM
    pieces, count = scipy.ndimage.label(deep)
    if count == 0:
        return data
    counts = np.bincount(pieces.ravel())
    counts[0] = 0
    away = scipy.ndimage.distance_transform_edt(pieces != counts.argmax(), sampling=spacing)
    around = (away <= CORD_MM + SEAM * max(spacing)) & (smooth > limit)
    if (~around).sum() * float(np.prod(spacing)) < 1e6 * SMALLEST_HEAD:
        return data
    return np.where(around, data.min(), data)


def head_in_noise(data: Array, spacing: tuple[float, ...]) -> Mask | None:
    """What is not uniform noise, in one piece without holes; None where nothing around is noisy."""
    step = [max(1, round(GRID_MM / size)) for size in spacing]
    thin = tuple(slice(n // 2, None, n) for n in step)
    roughness = _roughness(data, spacing)[thin]
    sizes = tuple(n * size for n, size in zip(step, spacing, strict=True))
    smooth = roughness <= _between(roughness)
    if not smooth.any() or smooth.all():
        return None
    noise, signal = float(np.median(roughness[~smooth])), float(np.median(roughness[smooth]))
    faces = [np.take(~smooth, end, axis=axis).mean() for axis in range(3) for end in (0, -1)]
    noisy = noise >= max(LEAST_NOISE, LEAST_RATIO * signal)
    if not noisy or float(np.median(faces)) < LEAST_SHARE:
        return None
    pieces, _ = scipy.ndimage.label(smooth)
    counts = np.bincount(pieces.ravel())
    counts[0] = 0
    head = close_gaps(pieces == counts.argmax(), sizes, GAP_MM)
    for plane in range(head.shape[2]):  # the neck is open below
        head[:, :, plane] = scipy.ndimage.binary_fill_holes(head[:, :, plane])
    depth = scipy.ndimage.distance_transform_edt(head, sampling=sizes)
    depth -= scipy.ndimage.distance_transform_edt(~head, sampling=sizes)
    # to the full grid, whose voxel 0 lies before the thin one's
    places = [(np.arange(n) - s // 2) / s for n, s in zip(data.shape, step, strict=True)]
    for axis, place in enumerate(places):
        low = np.clip(np.floor(place).astype(int), 0, depth.shape[axis] - 1)
        high = np.minimum(low + 1, depth.shape[axis] - 1)
        share = np.clip(place - low, 0, 1).reshape([-1 if k == axis else 1 for k in range(3)])
        depth = depth.take(low, axis) * (1 - share) + depth.take(high, axis) * share
    return np.asarray(depth > -RIM_MM)


def _roughness(data: Array, spacing: tuple[float, ...]) -> NDArray[np.float32]:
    """Mean difference of neighbours around each voxel, over the image's range."""
    low, high = np.percentile(data, (0.5, 99.5))
    found = np.zeros_like(data)
    for axis in range(3):
        steps = np.abs(np.diff(data, axis=axis, append=data.take([-1], axis=axis)))
        found += steps / np.float32(3 * max(float(high - low), 1e-30))
    size = [max(1, round(WINDOW_MM / step)) for step in spacing]
    return np.asarray(scipy.ndimage.uniform_filter(found, size))


def _between(values: NDArray[np.float32]) -> float:
    """Otsu's threshold."""
    otsu = sitk.OtsuThresholdImageFilter()
    otsu.Execute(sitk.GetImageFromArray(values))
    return float(otsu.GetThreshold())
