# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from numpy.testing import assert_allclose

from bmex_bids.degrade.blur import line_jitter, slab_centres, smooth, thick_slices


def test_slices_of_one_voxel_are_the_identity():
    image = np.random.default_rng(0).random((5, 6, 7), dtype=np.float32)
    for axis in range(3):
        assert_allclose(thick_slices(image, axis, 1.0), image, atol=1e-6)


def test_slabs_of_three_by_hand():
    column = np.array([0, 3, 6, 30, 30, 30, 0, 0, 0], np.float32).reshape(1, 1, 9)
    # slabs 3, 30, 0 with centres 1, 4, 7; linear in between, constant beyond the ends
    expected = [3, 3, 12, 21, 30, 20, 10, 0, 0]
    assert_allclose(thick_slices(column, 2, 3.0).ravel(), expected, atol=1e-5)


def test_a_slab_edge_may_cut_a_voxel():
    column = np.array([10, 20, 30], np.float32).reshape(3, 1, 1)
    assert_allclose(slab_centres(3, 1.5), [0.25, 1.75])
    # first slab: voxel 0 whole, half of voxel 1: (10 + 10) / 1.5
    low, high = 20 / 1.5, 40 / 1.5
    assert_allclose(thick_slices(column, 0, 1.5).ravel(), [low, (low + high) / 2, high], rtol=1e-5)


def test_thinner_than_a_voxel_is_refused():
    with pytest.raises(ValueError, match="at least one voxel"):
        thick_slices(np.zeros((3, 3, 3), np.float32), 0, 0.5)


def test_smoothing_keeps_the_sum_and_halves_at_half_the_width():
    image = np.zeros((41, 41, 41), np.float32)
    image[20, 20, 20] = 1000
    result = smooth(image, (1.0, 1.0, 2.0), fwhm_mm=8.0)
    assert result.sum() == pytest.approx(1000, rel=1e-3)
    assert result[24, 20, 20] / result[20, 20, 20] == pytest.approx(0.5, rel=1e-3)
    assert result[20, 20, 22] / result[20, 20, 20] == pytest.approx(0.5, rel=1e-3)


def test_line_jitter_of_nothing_is_the_identity_and_of_one_shift_a_roll():
    image = np.zeros((12, 16, 14), np.float32)
    image[4:8, 5:10, 5:9] = 100
    same = line_jitter(image, np.zeros(16), phase_axis=1, readout_axis=2)
    assert_allclose(same, image, atol=1e-3)
    rolled = line_jitter(image, np.full(16, 2.0), phase_axis=1, readout_axis=2)
    assert_allclose(rolled, np.roll(image, 2, 2), atol=1e-3)


def test_cubic_slices_are_the_spline_through_the_slabs():
    """Slabs of a parabola's means lie on a parabola, which a cubic spline finds between them."""
    x = np.arange(30, dtype=np.float32)
    column = (x**2)[:, np.newaxis, np.newaxis]
    result = thick_slices(column, 0, 3.0, degree=3).ravel()
    means = x**2 + 2 / 3  # of x - 1, x and x + 1
    assert_allclose(result[1:-1], means[1:-1], rtol=1e-4)
    assert_allclose(result[[0, -1]], means[[1, -2]], rtol=1e-4)  # constant beyond the ends
    assert abs(thick_slices(column, 0, 3.0).ravel()[15] - means[15]) > 0.1  # linear does not


def test_one_slab_is_constant_for_every_degree():
    column = np.arange(4, dtype=np.float32)[:, np.newaxis, np.newaxis]
    for degree in (1, 3):
        assert_allclose(thick_slices(column, 0, 4.0, degree).ravel(), 1.5)


def test_other_degrees_are_refused():
    with pytest.raises(ValueError, match="degree 0, 1 or 3"):
        thick_slices(np.zeros((3, 3, 3), np.float32), 0, 1.5, 2)
