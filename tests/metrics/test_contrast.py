# SPDX-License-Identifier: Apache-2.0
"""Fluid is darker than tissue in a T1w image and brighter in a T2w image, at every age."""

from __future__ import annotations

import math

import nibabel as nib
import numpy as np
import pytest
import scipy.ndimage
from tiny import brain

from bmex_bids.imaging.intensity import shares_at_ends
from bmex_bids.imaging.orientation import voxel_sizes
from bmex_bids.metrics.contrast import fluid_contrast, may_be_clipping
from bmex_bids.metrics.limits import FLUID_CONTRAST

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


@pytest.mark.parametrize("dilation", [2, 5, 20])
def test_a_mask_that_reaches_over_a_stripped_brain_does_no_harm(shared_data, dilation):
    """Zeros of the surroundings counted as dark, what they met as bright: an infant's T1w failed."""
    image = nib.load(sorted((shared_data / "lifespan-bids").glob("**/sub-*01_*T1w.nii.gz"))[0])
    data, spacing = np.asarray(image.dataobj, dtype=np.float32), voxel_sizes(image.affine)
    inside = data > 0
    wide = scipy.ndimage.binary_dilation(inside, iterations=dilation)
    found = fluid_contrast(data, wide, spacing)
    assert found == pytest.approx(fluid_contrast(data, inside, spacing), abs=0.03)


def tubes(image, mask, share, value, *, width):
    """An image with winding tubes of one value through so large a share of its brain."""
    rng = np.random.default_rng(0)
    deep = np.argwhere(scipy.ndimage.binary_erosion(mask, iterations=4))
    inside = np.zeros(mask.shape, bool)
    while inside.sum() < share * mask.sum():
        place, way = deep[rng.integers(len(deep))].astype(float), rng.normal(size=3)
        for _ in range(40):
            at = np.rint(place).astype(int)
            if (at < 0).any() or (at >= mask.shape).any() or not mask[tuple(at)]:
                break
            inside[tuple(slice(k, k + width) for k in at)] = True
            way += rng.normal(size=3) * 0.15
            place += way / np.linalg.norm(way)
    return np.where(inside & mask, np.float32(value), image)


ENHANCED = {"veins": 2, "lesions": 7}  # voxels across


@pytest.mark.parametrize("share", [0.007, 0.015])
@pytest.mark.parametrize("kind", ENHANCED)
@pytest.mark.parametrize(("folder", "number", "contrast"), REAL)
def test_a_contrast_agent_or_bleeding_does_not_change_the_contrast(
    shared_data, folder, number, contrast, kind, share
):
    """Veins of 0.7 % of an adult's brain made its T1w image a T2w, and no maps were written."""
    pattern = f"**/sub-*{number:02d}_*{contrast}.nii.gz"
    image = nib.load(sorted((shared_data / folder).glob(pattern))[0])
    data, spacing = np.asarray(image.dataobj, dtype=np.float32), voxel_sizes(image.affine)
    inside = data > 0
    if contrast == "T1w":
        value = 1.7 * np.percentile(data[inside], 85)
    else:
        value = 0.3 * np.percentile(data[inside], 1)
    changed = tubes(data, inside, share, value, width=ENHANCED[kind])
    found = fluid_contrast(changed, inside, spacing)
    assert FLUID_CONTRAST[contrast].verdict(found) == "pass"
    other = "T1w" if contrast == "T2w" else "T2w"  # nor does it hide a wrong name
    assert FLUID_CONTRAST[other].verdict(found) != "pass"


def test_nor_does_what_is_added_to_a_phantom(head_phantom):
    head = head_phantom(spacing=2.0, noise=5.0)
    image, spacing = np.asarray(head.image.dataobj), voxel_sizes(head.image.affine)
    assert fluid_contrast(image, head.mask, spacing) < -0.3
    for width in ENHANCED.values():
        bright = tubes(image, head.mask, 0.02, 1300, width=width)
        assert fluid_contrast(bright, head.mask, spacing) < 0
    # and bleeding to its inverse
    assert fluid_contrast(1000 - image, head.mask, spacing) > 0.3
    assert fluid_contrast(1000 - bright, head.mask, spacing) > 0


@pytest.mark.parametrize(
    ("folder", "number", "contrast"),
    [REAL[0], *(pytest.param(*case, marks=pytest.mark.slow) for case in REAL[1:])],
)
def test_where_clipping_turns_the_figure_it_may_be_clipping(shared_data, folder, number, contrast):
    """Whatever is clipped, the wrong contrast is never sure."""
    pattern = f"**/sub-*{number:02d}_*{contrast}.nii.gz"
    image = nib.load(sorted((shared_data / folder).glob(pattern))[0])
    data, spacing = np.asarray(image.dataobj, dtype=np.float32), voxel_sizes(image.affine)
    inside = data > 0
    for low, high in ((0, 98), (0, 90), (0, 80), (0, 50), (0, 20), (2, 100), (10, 100), (30, 100)):
        clipped = np.clip(data, *np.percentile(data[inside], (low, high)))
        found = fluid_contrast(clipped, inside, spacing)
        sure = not may_be_clipping(found, *shares_at_ends(clipped, inside))
        assert not sure or FLUID_CONTRAST[contrast].verdict(found) != "fail"
        if (low, high) in {(0, 98), (2, 100)}:  # a usual window
            assert sure


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


def test_the_brain_of_the_fault_campaigns_is_a_t2w_image():
    """Its fluid was dark, so every undisturbed run failed the gate, and with it each campaign."""
    image = brain()
    data = np.asarray(image.dataobj)
    found = fluid_contrast(data, data > 0, voxel_sizes(image.affine))
    assert FLUID_CONTRAST["T2w"].verdict(found) == "pass"
