# SPDX-License-Identifier: Apache-2.0
"""Bring a changed image back into the file form of the image it came from."""

from __future__ import annotations

from typing import Any

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform
from numpy.typing import NDArray

from bmex_bids.exceptions import ImageError
from bmex_bids.imaging.orientation import WORKING_AXES


def store_like(values: NDArray[np.float32], source: Any) -> tuple[Any, int]:
    """An image in the axes, the geometry, the header and the number type of ``source``.

    Parameters
    ----------
    values : (X, Y, Z) in the working order of axes, as ``conform(source)`` has it
    source : a NIfTI image as nibabel loaded it from its file

    Returns
    -------
    image : of the same class; whole numbers are rounded where the source stores them unscaled, and
        scaled to their full range where it stores them scaled
    cut : how many voxels lay beyond what the number type can hold, and were cut off to it
    """
    stored = io_orientation(source.affine)
    change = ornt_transform(axcodes2ornt(WORKING_AXES), stored)
    data: NDArray[Any] = np.ascontiguousarray(apply_orientation(values, change))
    if data.shape != source.shape[:3]:
        raise ImageError(
            f"expected {source.shape[:3]} voxels in the order of the source, got {data.shape}"
        )
    kind = np.dtype(source.get_data_dtype())
    cut = 0
    if kind.kind in "iu" and not _is_scaled(source):
        limits = np.iinfo(kind)
        # float64: float32 cannot hold the ends of 32-bit numbers
        whole = np.rint(data.astype(np.float64))
        cut = int(np.count_nonzero((whole < limits.min) | (whole > limits.max)))
        data = np.clip(whole, limits.min, limits.max).astype(kind)
    elif kind.kind == "f":
        data = data.astype(kind)
    image = source.__class__(data, source.affine, source.header)
    image.header.set_data_dtype(kind)
    return image, cut


def _is_scaled(source: nib.spatialimages.SpatialImage) -> bool:
    """Whether the file's numbers are multiplied or shifted on reading."""
    proxy: Any = source.dataobj
    slope, inter = getattr(proxy, "slope", 1.0), getattr(proxy, "inter", 0.0)
    return not (slope == 1 and inter == 0)


def in_sixteen_bits(data: NDArray[np.float32], affine: NDArray[np.float64]) -> nib.Nifti1Image:
    """An image as scaled 16-bit whole numbers: half the size, zero stays zero.

    What is lost is at most half of 1/32767 of the largest magnitude.

    Parameters
    ----------
    data : (X, Y, Z), finite
    """
    largest = max(float(data.max()), -float(data.min()), 1e-6)
    slope = np.float32(largest / np.iinfo(np.int16).max)
    whole = np.empty(data.shape, dtype=np.int16)
    for source, target in zip(data, whole, strict=True):  # plane by plane: it may be large
        target[...] = np.rint(source / slope)
    image = nib.Nifti1Image(whole, affine)
    image.header.set_slope_inter(float(slope), 0)
    return image
