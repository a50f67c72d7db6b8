# SPDX-License-Identifier: Apache-2.0
"""Interpolated thick slices are found and sharpened; what has none stays as it is."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, zoom

from bmex_bids.common.splines import spline_weights
from bmex_bids.degrade.blur import average_slabs, slab_centres, thick_slices
from bmex_bids.refocus import refocus as module
from bmex_bids.refocus.refocus import refocus
from bmex_bids.refocus.thick import (
    ThickSlices,
    find_thick_slices,
    linear_estimate,
    slice_means,
    split_slices,
)

SPACING = (1.0, 1.0, 1.0)


@pytest.fixture(scope="module")
def brain():
    """(64, 60, 72) folded ball, 1 mm, in air without noise; and where it is."""
    rng = np.random.default_rng(3)
    shape = (64, 60, 72)
    x, y, z = np.indices(shape) - (np.array(shape) / 2).reshape(3, 1, 1, 1)
    folds = gaussian_filter(rng.normal(size=shape), 2.0)
    depth = np.sqrt((x / 27) ** 2 + (y / 26) ** 2 + (z / 31) ** 2) + 0.15 * folds / folds.std()
    image = np.select([depth < 0.5, depth < 0.8, depth < 1], [700.0, 450.0, 150.0], 0.0)
    image = gaussian_filter(image, 0.6) + gaussian_filter(rng.normal(0, 12, shape), 0.5)
    mask = np.sqrt((x / 27) ** 2 + (y / 26) ** 2 + (z / 31) ** 2) < 0.95
    return np.where(mask, np.clip(image, 1, None), 0).astype(np.float32), mask


def tensors(image, mask):
    return torch.from_numpy(image), torch.from_numpy(mask.astype(np.float32))


def squared(image, truth, mask):
    return float(((np.asarray(image) - truth)[mask] ** 2).mean())


@pytest.mark.parametrize("stripped", [True, False], ids=["stripped", "head"])
@pytest.mark.parametrize(
    ("axis", "thickness", "degree"), [(2, 2.4, 3), (0, 3.0, 1), (1, 4.8, 3), (0, 3.0, 0)]
)
def test_slices_are_found_where_they_lie(brain, axis, thickness, degree, stripped):
    truth, mask = brain
    n = truth.shape[axis]
    centres = slab_centres(n, thickness)
    slices = np.moveaxis(average_slabs(truth, axis, thickness), axis, -1)
    thick = np.moveaxis(slices @ spline_weights(n, centres, degree).T, -1, axis)
    where = mask if stripped else np.ones_like(mask)
    image = np.round(np.where(where, np.clip(thick, 0, None), 0)).astype(np.float32)
    found = find_thick_slices(*tensors(image, where), SPACING)
    assert found is not None
    assert (found.axis, found.degree) == (axis, degree)
    assert found.thickness == pytest.approx(thickness, abs=0.01)
    assert found.first == pytest.approx((thickness - 1) / 2, abs=0.05)
    facts = json.loads(json.dumps(found.facts(SPACING)))
    assert facts == {"Axis": axis, "Thickness": thickness}


def test_an_image_whose_voxels_are_its_slices_has_none(brain):
    truth, mask = brain
    assert find_thick_slices(*tensors(np.round(truth), mask), SPACING) is None
    assert find_thick_slices(*tensors(gaussian_filter(truth, 0.7) * mask, mask), SPACING) is None


def test_an_image_made_finer_along_all_axes_has_no_thick_slices(brain):
    truth, _ = brain
    small = truth[::2, ::2, ::2]
    fine = zoom(small, 2, order=3).clip(0).astype(np.float32)
    everywhere = np.ones(fine.shape, bool)
    assert find_thick_slices(*tensors(fine, everywhere), SPACING) is None


def test_each_so_many_th_voxel_is_not_taken_for_the_mean_of_a_slice(brain):
    """Linear interpolation between single voxels looks the same, but sharpening would harm it."""
    truth, mask = brain
    taken = np.arange(1, truth.shape[2], 3)
    weights = spline_weights(truth.shape[2], taken.astype(float), 1)
    image = np.where(mask, truth[:, :, taken] @ weights.T, 0).astype(np.float32)
    assert find_thick_slices(*tensors(image, mask), SPACING) is None


@pytest.mark.parametrize("stripped", [True, False], ids=["stripped", "head"])
def test_slices_are_sharpened_and_still_explain_the_image(brain, stripped):
    truth, mask = brain
    where = mask if stripped else np.ones_like(mask)
    image = np.where(where, thick_slices(truth, 2, 2.4, 3).clip(0), 0).astype(np.float32)
    thick = ThickSlices(2, 2.4, 0.7, 3, 0.0)
    data, support = tensors(image, where)
    sharp = thick.undo(data, support, SPACING).numpy()
    assert squared(sharp, truth, mask) < 0.85 * squared(image, truth, mask)
    again = thick_slices(sharp, 2, 2.4, 3)
    inner = mask & where
    inner[:, :, :6] = inner[:, :, -6:] = False
    assert squared(again, image, inner) < 0.02 * squared(sharp, image, inner)
    assert sharp.min() >= 0
    assert not sharp[~where].any()


def test_a_better_estimate_is_asked_for_where_the_image_is_known(brain):
    truth, mask = brain
    image = thick_slices(truth, 1, 3.0, 3).clip(0) * mask
    thick = ThickSlices(1, 3.0, 1.0, 3, 0.0)
    asked = []

    def within(slices, estimate, first, thickness):
        asked.append((slices, estimate, first, thickness))
        return torch.from_numpy(np.moveaxis(truth, 1, -1).copy())

    data, support = tensors(image.astype(np.float32), mask)
    sharp = thick.undo(data, support, SPACING, within).numpy()
    slices, estimate, *place = asked[0]
    assert place == [1.0, 3.0]
    assert slices.shape == (64, 72, 20)
    assert estimate.shape == (64, 72, 60)
    assert bool(estimate.isnan().any())
    assert bool(estimate[32, 36, 30].isfinite())
    inner = mask.copy()
    inner[:, :9] = inner[:, -9:] = False
    assert squared(sharp, truth, inner) < 0.1 * squared(image, truth, inner)


def test_the_ends_are_left_as_they_are(brain):
    truth, _ = brain
    image = thick_slices(truth, 0, 4.0, 3).clip(0).astype(np.float32)
    sharp = ThickSlices(0, 4.0, 1.5, 3, 0.0).undo(*tensors(image, np.ones(image.shape)), SPACING)
    np.testing.assert_array_equal(sharp[:10], image[:10])
    assert not np.array_equal(sharp[20:30], image[20:30])


def test_a_scan_in_thick_slices_is_split(brain):
    truth, mask = brain
    coarse = average_slabs(truth, 2, 3.0)
    fine, axis, parts = split_slices(coarse, (1.0, 1.0, 3.0), 0.9)
    assert (axis, parts, fine.shape) == (2, 4, (64, 60, 96))
    fine, axis, parts = split_slices(coarse, (1.0, 1.0, 3.0), 1.0)
    assert (axis, parts, fine.shape) == (2, 3, truth.shape)
    cubic = thick_slices(truth, 2, 3.0, 3)
    assert squared(fine, truth, mask) < 0.95 * squared(cubic, truth, mask)
    # the mean of the parts is the slice
    means = fine.reshape(64, 60, 24, 3).mean(3)
    assert squared(means, coarse, coarse > 100) < 1.0


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.2), (1.0, 3.0, 3.0), (0.5, 0.5, 0.7)])
def test_a_scan_without_thick_slices_is_not_split(brain, spacing):
    assert split_slices(brain[0], spacing, 0.8) is None


def test_means_of_slices_and_their_linear_estimate(brain):
    truth, mask = brain
    image, head = torch.from_numpy(truth), torch.from_numpy(mask)
    slices = slice_means(image, 0.5, 2.0)
    assert slices[30, 30].tolist() == pytest.approx(
        truth[30, 30].reshape(-1, 2).mean(1).tolist(), rel=1e-5
    )
    estimate = linear_estimate(slices, head, 0.5, 2.0, SPACING).numpy()
    linear = thick_slices(truth, 2, 2.0, 1)
    assert squared(estimate, truth, mask) < 0.8 * squared(linear, truth, mask)


def test_refocus_sharpens_first_and_tells_it(brain, monkeypatch):
    monkeypatch.setattr(module, "find", lambda *_: None)  # motion
    truth, mask = brain
    image = (3 * np.where(mask, thick_slices(truth, 2, 2.4, 3).clip(0), 0)).astype(np.float32)
    found = refocus(image, SPACING)
    assert found.applied
    assert found.reason == "slices of 2.4 mm along axis 2"
    assert (found.slices, found.motion, found.spikes) == ({"Axis": 2, "Thickness": 2.4}, {}, 0)
    assert squared(found.image / 3, truth, mask) < 0.85 * squared(image / 3, truth, mask)
    asked = []

    def within(slices, estimate, *_):
        asked.append(slices.shape)
        return estimate

    refocus(image, SPACING, within=within)
    assert asked == [(64, 60, 30)]
