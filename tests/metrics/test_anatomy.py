# SPDX-License-Identifier: Apache-2.0
"""Figures of a mask and tissues: of a phantom, of parts of it, and of tissues that were swapped."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from bmex_bids.metrics.anatomy import brightness_order, flat_face, white_depth

SPACING = (3.0, 3.0, 3.0)


@pytest.fixture
def phantom(head_phantom):
    return head_phantom(spacing=SPACING[0])


def test_the_surface_of_a_cube_is_six_planes_and_that_of_a_brain_is_not(phantom):
    cube = np.zeros((12, 12, 12), bool)
    cube[2:10, 2:10, 2:10] = True
    assert flat_face(cube, (1.6,) * 3) == pytest.approx(1 / 6)
    assert flat_face(cube, (1.6, 1.6, 3.2)) == pytest.approx(128 / 640)  # 2 of 8 x 8, 4 of 8 x 16
    assert flat_face(phantom.mask, SPACING) < 0.03
    assert math.isnan(flat_face(np.zeros((4, 4, 4), bool), SPACING))


@pytest.mark.parametrize(("axis", "side"), [*itertools.product(range(3), range(2))])
def test_half_a_brain_has_a_flat_face(phantom, axis, side):
    half = phantom.mask.copy()
    middle = half.shape[axis] // 2
    part = [slice(None)] * 3
    part[axis] = slice(0, middle) if side else slice(middle, None)
    half[tuple(part)] = False
    assert flat_face(half, SPACING) > 0.15


def test_the_finer_grid_has_the_same_face(phantom):
    fine = phantom.mask.repeat(3, 0).repeat(3, 1).repeat(3, 2)
    assert flat_face(fine, (1.0,) * 3) == pytest.approx(flat_face(phantom.mask, SPACING), rel=0.5)


def test_white_matter_lies_deeper_than_grey_matter(phantom):
    assert white_depth(phantom.tissues, SPACING) > 0.3
    swapped = np.array([0, 1, 3, 2], np.uint8)[phantom.tissues]
    assert white_depth(swapped, SPACING) < -0.3
    assert math.isnan(white_depth(np.minimum(phantom.tissues, 2), SPACING))


@pytest.mark.parametrize(
    ("order", "sure"),
    [((2, 1, 3), True), ((3, 2, 1), True), ((1, 3, 2), False)],
)
@pytest.mark.parametrize(("contrast", "months"), [("T1w", 300.0), ("T2w", 300.0), ("T1w", 3.0)])
def test_swapped_tissues_are_in_another_order(phantom, contrast, months, order, sure):
    image = np.asarray(phantom.image.dataobj)
    if contrast == "T2w":
        image = 1000 - image
    assert brightness_order(image, phantom.tissues, contrast, months) > 0.2
    swapped = np.array([0, *order], np.uint8)[phantom.tissues]
    found = brightness_order(image, swapped, contrast, months)
    # in the first year grey and white matter have no order that is sure
    assert (found < 0) is (sure or months > 12)


def test_dark_dura_in_the_rim_of_a_t2w_mask_is_no_dark_fluid():
    distance = np.linalg.norm((np.indices((40, 40, 40)).T - 20).T, axis=0)
    labels = np.select([distance < 4, distance < 8, distance < 14, distance < 18], [1, 3, 2, 1], 0)
    image = np.select(
        [distance < 4, distance < 8, distance < 14, distance < 18], [900, 300, 400, 90], 0
    )
    assert brightness_order(image, labels, "T2w", 300.0) > 0.2
    image[distance < 4] = 90
    assert brightness_order(image, labels, "T2w", 300.0) < 0
    rim_alone = np.where(distance < 4, 3, labels)  # no other fluid: what there is
    assert brightness_order(image, rim_alone, "T2w", 300.0) < 0


def test_a_few_deep_voxels_taken_for_fluid_do_not_decide():
    distance = np.linalg.norm((np.indices((40, 40, 40)).T - 20).T, axis=0)
    labels = np.select([distance < 8, distance < 16, distance < 18], [3, 2, 1], 0)
    image = np.select([distance < 8, distance < 16, distance < 18], [300.0, 400, 900], 0)
    assert brightness_order(image, labels, "T2w", 300.0) > 0.1
    labels[20, 20, 18:22] = 1  # as dark as the white matter that they are
    assert brightness_order(image, labels, "T2w", 300.0) > 0.1


def test_fluid_is_dark_in_flair_and_anything_in_other_contrasts(phantom):
    image = np.asarray(phantom.image.dataobj)
    white_is_darker = np.where(phantom.tissues == 3, 300.0, image)
    assert brightness_order(white_is_darker, phantom.tissues, "FLAIR", 300.0) > 0.1
    assert brightness_order(white_is_darker, phantom.tissues, "T1w", 300.0) < 0
    assert math.isnan(brightness_order(image, phantom.tissues, "PDw", 300.0))


def test_without_a_tissue_there_is_no_order(phantom):
    image = np.asarray(phantom.image.dataobj)
    assert math.isnan(brightness_order(image, np.minimum(phantom.tissues, 2), "T1w", 300.0))
    assert math.isnan(brightness_order(image * 0, phantom.tissues, "T1w", 300.0))
