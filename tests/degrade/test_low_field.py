# SPDX-License-Identifier: Apache-2.0
"""Scans of 64 mT."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from bmex_bids.degrade import steps
from bmex_bids.degrade.levels import draw_level
from bmex_bids.degrade.low_field import coarse, scan
from bmex_bids.degrade.recipe import Recipe
from bmex_bids.degrade.steps import Scan

SPACING = (0.8, 1.0, 1.0)


def drawn(**changes):
    (step,) = draw_level("low-field", 100.0, np.random.default_rng(3), Scan(1000)).steps
    return {**step, **changes}


def quiet(**changes):
    """A step without noise, bias, contrast and blur."""
    nothing = {"sigma": 0.0, "control": np.zeros((2, 2, 2)).tolist(), "exponent": 1.0}
    return drawn(**nothing, fwhm_mm=0.0, **changes)


def test_the_scan_has_a_grid_of_its_own():
    image = np.random.default_rng(0).random((40, 48, 50), dtype=np.float32)
    low = scan(image, SPACING, drawn())
    assert low.data.shape == (20, 30, 10)
    assert low.factor == pytest.approx((2.0, 1.6, 5.0))
    affine = low.affine(np.diag([-0.8, -1.0, 1.0, 1.0]))
    assert np.abs(np.diag(affine)[:3]) == pytest.approx([1.6, 1.6, 5.0])


def test_slices_lie_across_the_axis_that_is_asked_for():
    image = np.ones((40, 48, 50), np.float32)
    assert scan(image, SPACING, quiet(axis=0)).data.shape == (7, 30, 32)


def test_voxels_are_means_and_lie_where_the_affine_says():
    """A ramp in the world has its own value at the centre of each voxel."""
    affine = np.array([[-0.8, 0, 0, 30], [0, -1, 0, 20], [0, 0, 1, -10], [0, 0, 0, 1.0]])
    places = np.stack(np.meshgrid(*map(np.arange, (40, 48, 50)), indexing="ij"))
    world = np.einsum("ij,jxyz->ixyz", affine[:3, :3], places) + affine[:3, 3, None, None, None]
    for axis in range(3):
        image = (100 + world[axis]).astype(np.float32)
        low = scan(image, SPACING, quiet())
        where = np.stack(np.meshgrid(*map(np.arange, low.data.shape), indexing="ij"))
        fine = low.affine(affine)
        wanted = 100 + np.einsum("j,jxyz->xyz", fine[axis, :3], where) + fine[axis, 3]
        assert np.abs(low.data - wanted).max() < 0.1  # mm; edges cut voxels of one value


def test_nothing_but_voxels_keeps_the_mean():
    image = gaussian_filter(np.random.default_rng(0).random((40, 48, 50), dtype=np.float32), 1)
    assert coarse(image, SPACING, quiet()).data.mean() == pytest.approx(image.mean(), rel=1e-5)


def test_grey_and_white_matter_come_closer():
    image = np.full((40, 48, 50), 700, np.float32)
    image[:20] = 1000
    low = scan(image, SPACING, quiet() | {"exponent": drawn()["exponent"]})
    assert low.data.min() == pytest.approx(779, abs=1)
    assert low.data.max() == pytest.approx(1000, abs=1)


def test_the_blur_lies_in_plane():
    image = np.zeros((41, 41, 41), np.float32)
    image[20, 20, 20] = 1
    fine = {"plane_mm": 1.0, "thickness_mm": 1.0}
    wide = scan(image, (1, 1, 1), quiet(**fine) | {"fwhm_mm": 3.0}).data
    assert wide[:, :, 19].max() == 0
    profile = wide[:, 20, 20]
    assert (profile >= profile.max() / 2).sum() == 3


def test_noise_and_bias_are_those_of_the_step():
    flat = np.full((80, 80, 80), 500, np.float32)
    bias = scan(flat, (1, 1, 1), drawn(sigma=0.0, exponent=1.0)).data / 500
    assert bias.max() - bias.min() == pytest.approx(steps.LOW_BIAS / 100, abs=0.08)
    plain = {"control": np.zeros((2, 2, 2)).tolist(), "exponent": 1.0}
    noisy = scan(flat, (1, 1, 1), drawn(**plain)).data
    assert noisy.std() == pytest.approx(steps.LOW_NOISE * 10, rel=0.05)
    empty = scan(np.zeros_like(flat), (1, 1, 1), drawn(**plain)).data
    assert empty.mean() == pytest.approx(steps.LOW_NOISE * 10 * (np.pi / 2) ** 0.5, rel=0.03)


def test_on_the_image_s_grid_it_is_the_scan_interpolated():
    """With whole numbers of voxels the spline's knots are voxels."""
    image = 1000 * gaussian_filter(np.random.default_rng(0).random((30, 33, 40)), 2)
    step = quiet(plane_mm=3.0)
    low = scan(image.astype(np.float32), (1, 1, 1), step).data
    kept = Recipe((step,)).apply(image.astype(np.float32), (1, 1, 1))
    assert kept.shape == image.shape
    assert np.abs(kept[1::3, 1::3, 2::5] - low).max() < 1e-3 * low.max()
    assert np.ptp(kept[:, :, 1]) > 0
    assert np.abs(kept - image).mean() > 1
