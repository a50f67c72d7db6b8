# SPDX-License-Identifier: Apache-2.0
"""From the scan's grid to the network's, with thick slices split."""

from __future__ import annotations

from typing import Any

import nibabel as nib
import numpy as np

from bmex_bids.imaging.orientation import voxel_sizes
from bmex_bids.imaging.resampling import resample_to_spacing
from bmex_bids.interfaces.files import data_of, with_data
from bmex_bids.interfaces.weights import with_weights
from bmex_bids.network.inference.within import within_slices
from bmex_bids.refocus.thick import Within, parts_of, split_slices


def on_network_grid(
    image: nib.Nifti1Image, spacing_mm: float, order: int, within_weights: dict[str, Any]
) -> nib.Nifti1Image:
    """A head, 0…1000, at the network's spacing; not negative, though a spline may undershoot.

    Before networks that learnt from splines, slices thicker than the voxels' other edges are cut
    into parts first, whose values are estimated.
    """
    if slices_to_split(image, spacing_mm, order):
        image = with_slices_split(image, spacing_mm, with_weights(within_slices, within_weights))
    fine = resample_to_spacing(image, spacing_mm, order=order)
    return with_data(np.clip(data_of(fine), 0, None), fine)


def slices_to_split(image: nib.Nifti1Image, spacing_mm: float, order: int) -> dict[str, Any]:
    """Which slices :func:`on_network_grid` splits; empty for none.

    Returns
    -------
    ready for JSON: ``Axis`` (0 to 2, of the LPS array), ``Thickness`` (mm), ``Parts`` of each
    """
    steps = voxel_sizes(image.affine)
    found = parts_of(image.shape, steps, spacing_mm) if order == 3 else None
    if found is None:
        return {}
    axis, parts = found
    return {"Axis": axis, "Thickness": round(float(steps[axis]), 2), "Parts": parts}


def with_slices_split(
    image: nib.Nifti1Image, spacing_mm: float, within: Within | None
) -> nib.Nifti1Image:
    """An image, its thick slices in parts of at most about ``spacing_mm``; see ``refocus.thick``."""
    data = np.clip(data_of(image), 0, None)
    found = split_slices(data, voxel_sizes(image.affine), spacing_mm, within)
    if found is None:
        return image
    fine, axis, parts = found
    smaller = np.eye(4)
    smaller[axis, axis] = 1 / parts
    smaller[axis, 3] = (1 / parts - 1) / 2  # the first part's centre, in voxels of the image
    return nib.Nifti1Image(fine, image.affine @ smaller)
