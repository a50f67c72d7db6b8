# SPDX-License-Identifier: Apache-2.0
"""What looks like a brain and what does not, and which way up it lies."""

from importlib import resources

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from bmex_bids.imaging.likeness import (
    STORED_LEVELS,
    STORED_MM,
    Fit,
    Likeness,
    likeness,
    no_brain,
)
from bmex_bids.imaging.orientation import conform, load_image, voxel_sizes
from bmex_bids.imaging.stripped import brain_voxels

#: brightness of outer fluid, ventricles, cortex, deep grey, white matter, cerebellum, stem
T1W, T2W = (100, 80, 500, 600, 800, 550, 750), (950, 1000, 500, 400, 350, 500, 400)


@pytest.fixture(scope="module")
def drawn():
    """A function that draws the average brain in a contrast: image, mask, spacing."""
    with resources.files("bmex_bids.data").joinpath("average_brain.npz").open("rb") as stream:
        half = np.load(stream)["shares"].astype(np.float32) / STORED_LEVELS
    shares = np.concatenate([half, half[:, ::-1]], axis=1)

    def draw(levels=T1W):
        noise = np.random.default_rng(0).normal(0, 60, shares.shape[1:])
        image = np.tensordot(levels, shares[:-1], 1) + noise
        return image, shares[-1] > 0.5, (STORED_MM,) * 3

    return draw


def ball(radius, side=40):
    x = np.indices((side,) * 3) - (side - 1) / 2
    return np.sqrt((x**2).sum(axis=0)) < radius


@pytest.mark.parametrize("levels", [T1W, T2W], ids=["T1w", "T2w"])
@pytest.mark.parametrize(
    ("turned", "name"),
    [
        (lambda a: a, "LPS"),
        (lambda a: a[::-1, ::-1], "RAS"),
        (lambda a: a[:, ::-1], "RAS"),  # a mirror image: left and right cannot be told
        (lambda a: a[:, ::-1, ::-1], "LAI"),
        (lambda a: a.transpose(1, 2, 0), "PSL"),
    ],
    ids=["as it is", "turned about the body's axis", "front and back", "upside down", "sagittal"],
)
def test_the_turn_of_a_brain_is_seen(drawn, turned, name, levels):
    image, mask, spacing = drawn(levels)
    found = likeness(turned(image), turned(mask), spacing)
    assert found.turn == name
    assert (found.margin == 0) is (name == "LPS")
    assert no_brain(found, None) is None


def test_of_half_a_brain_no_turn_is_told(drawn):
    image, mask, spacing = drawn()
    mask = mask.copy()
    mask[: len(mask) // 2] = False
    found = likeness(image, mask, spacing)
    assert (found.turn, found.margin) == ("LPS", 0)
    assert no_brain(found, None) is None


def noise(shape):
    return np.abs(np.random.default_rng(1).normal(100, 30, shape))


@pytest.mark.parametrize("radius", [9, 15])
@pytest.mark.parametrize(
    "content",
    [noise, lambda shape: np.ones(shape), lambda shape: 1000 + noise(shape) / 10],
    ids=["noise", "one value", "one value with noise"],
)
def test_what_has_no_tissues_is_no_brain(content, radius):
    mask = ball(radius)
    found = likeness(content(mask.shape) * mask, mask, (4.0, 4.0, 4.0))
    assert "no tissues" in no_brain(found, None)


def test_one_value_in_a_brains_outline_is_no_brain(drawn):
    image, mask, spacing = drawn()
    assert no_brain(likeness(image * 0 + 500, mask, spacing), None)


@pytest.mark.parametrize(
    ("explained", "overlap", "part", "brain"),
    [
        (0.27, 0.77, 0.4, False),  # a neck
        (0.27, 0.77, None, True),  # the same within the image: who knows
        (0.25, 0.65, 0.7, True),  # a slab through a brain
        (0.25, 0.87, 0.2, True),  # a brain of which a fifth is cut off
    ],
    ids=["neck", "not at the top", "slab", "cut at the top"],
)
def test_what_reaches_the_top_must_look_like_a_part_of_a_brain(explained, overlap, part, brain):
    """What a network marks in a neck or a spine ends at the top of the image."""
    like = Likeness((Fit("RAS", explained, 0.6), Fit("LPS", 0.1, overlap)), 0.4)
    found = no_brain(like, None if part is None else lambda: part)
    assert (found is None) is brain


def test_an_empty_mask_cannot_be_compared():
    assert likeness(np.ones((9, 9, 9)), np.zeros((9, 9, 9), bool), (1.0, 1.0, 1.0)) is None


@pytest.mark.parametrize(
    ("name", "turn"),
    [
        # stored turned by half a turn about the body's axis, as all its T1w images
        ("lifespan-bids/sub-0003/ses-V01/anat/sub-0003_ses-V01_T1w", "RAS"),
        ("lifespan-bids/sub-0009/ses-V01/anat/sub-0009_ses-V01_T2w", "LPS"),
        ("adult-brains/sub-31_T1w", "LPS"),
    ],
)
def test_real_brains(shared_data, name, turn):
    image = conform(load_image(shared_data / f"{name}.nii.gz"))
    mask = brain_voxels(image)
    found = likeness(np.asarray(image.dataobj), mask, voxel_sizes(image.affine))
    assert found.turn == turn
    assert no_brain(found, None) is None


@pytest.mark.parametrize("axes", ["LAI", "LSA", "IPL"])
@pytest.mark.parametrize("turn", ["LPS", "RAS", "LAI", "SLP"])
def test_a_turn_seen_in_an_image_held_otherwise_is_that_of_the_image(drawn, axes, turn):
    image, mask, spacing = drawn()
    codes = nib.orientations.axcodes2ornt
    stored = nib.orientations.ornt_transform(codes("LPS"), codes(turn))
    held = nib.orientations.ornt_transform(codes("LPS"), codes(axes))
    for change in (stored, held):
        image, mask = (nib.orientations.apply_orientation(a, change) for a in (image, mask))
    found = likeness(image, mask, spacing).held(axes)
    assert (found.turn, found.is_clear) == (turn, True)
    assert (found.margin == 0) is (turn == "LPS")


def test_a_resampled_grid_changes_little(drawn):
    image, mask, spacing = drawn()
    fine = [ndimage.zoom(a.astype(float), 2, order=1) for a in (image, mask)]
    found = likeness(fine[0], fine[1] > 0.5, nib.affines.voxel_sizes(np.diag([2.5] * 3 + [1])))
    assert found.turn == "LPS"
    assert found.fits[0].overlap == pytest.approx(
        likeness(image, mask, spacing).fits[0].overlap, abs=0.03
    )
