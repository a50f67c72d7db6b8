# SPDX-License-Identifier: Apache-2.0
"""A slab through a brain is told from one through a neck."""

import numpy as np
import pytest
from scipy import ndimage

from bmex_bids.imaging.likeness import likeness, no_brain
from bmex_bids.imaging.orientation import conform, load_image, voxel_sizes
from bmex_bids.imaging.slab import part_score
from bmex_bids.imaging.stripped import brain_voxels

#: fat, muscle, bone, disc, fluid, cord, air, skin
NECKS = {
    "T1w": (800, 350, 550, 300, 100, 400, 10, 700),
    "T2w": (600, 200, 350, 450, 1000, 400, 10, 500),
    "STIR": (200, 400, 150, 500, 1000, 500, 5, 200),
}


def neck(contrast, size_mm, mm=2.0):
    """A cervical spine with muscles, fat and skin, axes LPS; and all but the skin as a mask."""
    fat, muscle, bone, disc, fluid, cord, air, skin = NECKS[contrast]
    axes = [(np.arange(n) - (n - 1) / 2) * mm for n in (round(size / mm) for size in size_mm)]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    image = np.where((x / 62) ** 2 + (y / 68) ** 2 < 1, skin, 0).astype(np.float32)
    inside = (x / 56) ** 2 + (y / 62) ** 2 < 1
    image[inside] = muscle
    image[inside & (np.abs(np.sin(4 * np.arctan2(y, x))) < 0.12)] = fat
    y = y - 15 - 8 * np.sin(z / 70)
    vertebra = np.mod(z, 32)
    column = (x / 16) ** 2 + (y / 13) ** 2 < 1
    image[column] = np.where(vertebra < 24, bone, disc)[column]
    image[(x / 11) ** 2 + ((y - 20) / 8) ** 2 < 1] = fluid
    image[(x / 6.5) ** 2 + ((y - 20) / 4) ** 2 < 1] = cord
    image[(np.abs(x) < 5) & (y > 28) & (y < 52) & (vertebra < 20)] = bone
    image[(x / 9) ** 2 + ((y + 30) / 8) ** 2 < 1] = air
    image = ndimage.gaussian_filter(image, 0.6) * (1 + 0.1 * z / 110)
    image += np.random.default_rng(0).normal(0, 15, image.shape)
    return np.abs(image), inside, (mm,) * 3


@pytest.mark.parametrize("contrast", NECKS)
@pytest.mark.parametrize("size_mm", [(180, 180, 60), (160, 200, 220), (120, 160, 160)])
def test_a_neck_is_no_part_of_a_brain(contrast, size_mm):
    image, mask, spacing = neck(contrast, size_mm)
    assert no_brain(likeness(image, mask, spacing), lambda: part_score(image, mask, spacing))


@pytest.mark.parametrize(
    "name",
    [
        "adult-brains/sub-31_T1w",
        "lifespan-bids/sub-0007/ses-V01/anat/sub-0007_ses-V01_T1w",  # stored turned
    ],
)
@pytest.mark.parametrize("part", [(0.3, 0.6), (0.0, 0.6)], ids=["slab", "top cut off"])
def test_a_part_of_a_brain_is_one(shared_data, name, part):
    image = conform(load_image(shared_data / f"{name}.nii.gz"))
    mask = brain_voxels(image)
    planes = np.flatnonzero(mask.any(axis=(0, 1)))
    low, high = (round(planes[0] + share * planes.size) for share in part)
    data, mask = (a[:, :, low:high] for a in (np.asarray(image.dataobj), mask))
    spacing = voxel_sizes(image.affine)
    reason = no_brain(likeness(data, mask, spacing), lambda: part_score(data, mask, spacing))
    assert reason is None


def test_nothing_is_no_part():
    shape = (20, 20, 20)
    assert part_score(np.ones(shape), np.zeros(shape, bool), (3.0,) * 3) == 0
