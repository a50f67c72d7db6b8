# SPDX-License-Identifier: Apache-2.0
"""Fluid is darker than tissue in a T1w image and brighter in a T2w image, at every age."""

from __future__ import annotations

import math

import nibabel as nib
import numpy as np
import pytest

from bmex_bids.imaging.orientation import voxel_sizes
from bmex_bids.metrics.contrast import fluid_contrast

REAL = [
    *(("lifespan-bids", n, "T1w") for n in (1, 3, 7)),
    ("lifespan-bids", 9, "T2w"),
    ("adult-brains", 31, "T1w"),
    ("adult-brains", 5, "T1w"),
]


@pytest.mark.parametrize("noise", [5.0, 60.0])
@pytest.mark.parametrize("size", [0.55, 1.0])
def test_a_phantom_and_its_inverse(head_phantom, size, noise):
    head = head_phantom(spacing=3.0, size=size, noise=noise)
    image = np.asarray(head.image.dataobj)
    spacing = voxel_sizes(head.image.affine)
    assert fluid_contrast(image, head.mask, spacing) < -0.3
    assert fluid_contrast(1000 - image, head.mask, spacing) > 0.3
    # any linear unit
    assert fluid_contrast(7 * image + 3, head.mask, spacing) == pytest.approx(
        fluid_contrast(image, head.mask, spacing), rel=1e-3
    )


@pytest.mark.parametrize(("folder", "number", "contrast"), REAL)
def test_real_brains_of_all_ages(shared_data, folder, number, contrast):
    pattern = f"**/sub-*{number:02d}_*{contrast}.nii.gz"
    image = nib.load(sorted((shared_data / folder).glob(pattern))[0])
    data = np.asarray(image.dataobj, dtype=np.float32)
    found = fluid_contrast(data, data > 0, voxel_sizes(image.affine))
    assert (found > 0.3) is (contrast == "T2w")
    assert abs(found) > 0.3


def test_what_cannot_be_measured_is_not_a_number():
    flat = np.ones((20, 20, 20), np.float32)
    everything = np.ones(flat.shape, bool)
    assert math.isnan(fluid_contrast(flat, ~everything, (2, 2, 2)))
    assert math.isnan(fluid_contrast(flat * np.nan, everything, (2, 2, 2)))


def test_a_spike_or_bright_vessels_do_not_make_a_t1w_a_t2w(head_phantom):
    """One hot voxel gave +101, and no tissue maps were written."""
    head = head_phantom(spacing=3.0)
    image = np.asarray(head.image.dataobj).copy()
    spacing = voxel_sizes(head.image.affine)
    usual = fluid_contrast(image, head.mask, spacing)
    middle = tuple(n // 2 for n in image.shape)
    for value in (1e6, -1e6):
        image[middle[0] + 3, middle[1] + 4, middle[2]] = value
        assert fluid_contrast(image, head.mask, spacing) == pytest.approx(usual, abs=0.1)
    vessel = np.asarray(head.image.dataobj).copy()
    vessel[middle[0] + 4, middle[1] - 12 : middle[1] + 12, middle[2]] = 3000
    assert fluid_contrast(vessel, head.mask, spacing) < -0.3
