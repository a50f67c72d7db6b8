# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest

from bmex_bids.metrics.change import (
    correlation,
    empty_share,
    estimated_error,
    mean_shift,
    tissue_litres,
)

MASK = np.array([False, True, True, True, True])


def test_correlation_by_hand():
    before = np.array([999, 1, 2, 3, 4], np.float32)
    after = np.array([-50, 2, 1, 4, 3], np.float32)
    # deviations -1.5 -0.5 0.5 1.5 and -0.5 -1.5 1.5 0.5: products 0.75 0.75 0.75 0.75, norms 5
    assert correlation(before, after, MASK) == pytest.approx(0.6)
    assert correlation(before, 7 * before + 2, MASK) == pytest.approx(1)
    assert correlation(before, -before, MASK) == pytest.approx(-1)


@pytest.mark.parametrize("bad", [np.ones(5), np.array([0, 1, 2, np.nan, 4.0])])
def test_what_cannot_be_correlated_is_nan(bad):
    good = np.arange(5.0)
    assert math.isnan(correlation(good, bad, MASK))
    assert math.isnan(correlation(bad, good, MASK))
    assert math.isnan(correlation(good, good, np.arange(5) == 1))


def test_mean_shift_by_hand():
    before = np.array([999, 10, 20, 30, 40], np.float32)  # mean 25
    after = np.array([0, 20, 20, 40, 40], np.float32)  # mean 30
    assert mean_shift(before, after, MASK) == pytest.approx(0.2)
    assert mean_shift(after, before, MASK) == pytest.approx(-1 / 6)
    assert mean_shift(before, before, MASK) == 0


def test_a_mean_that_cannot_be_compared_is_nan():
    good = np.arange(5.0)
    assert math.isnan(mean_shift(np.zeros(5), good, MASK))
    assert math.isnan(mean_shift(good, good * math.nan, MASK))
    assert math.isnan(mean_shift(good, good, MASK & False))


def test_the_empty_share_counts_up_to_a_twentieth_of_the_bright_end():
    # 100 voxels: four of them dark, 40 of 1000 and less; the others between 900 and 1000
    image = np.full(100, 1000, np.float32)
    image[:50] = 900
    image[:6] = (0, 10, 40, 50, 51, 60)
    mask = np.ones(100, bool)
    assert empty_share(image, mask) == pytest.approx(0.04)  # 50 is still empty, 51 is not
    assert empty_share(image * 0.001, mask) == pytest.approx(0.04)  # whatever the unit
    assert empty_share(image, image > 51) == 0


def test_a_mask_that_is_shifted_by_half_is_half_empty():
    image = np.zeros((40, 10, 10), np.float32)
    image[10:30] = 500
    mask = np.roll(image > 0, 10, axis=0)
    assert empty_share(image, image > 0) == 0
    assert empty_share(image, mask) == pytest.approx(0.5)


def test_an_empty_share_that_cannot_be_measured_is_nan():
    image = np.ones(5)
    assert math.isnan(empty_share(image, MASK & False))
    assert math.isnan(empty_share(image * 0, MASK))
    assert math.isnan(empty_share(image * math.nan, MASK))


def test_tissue_litres_by_hand():
    labels = np.array([[0, 1, 2, 2], [3, 3, 3, 0]], np.uint8)
    expected = {"CSF": 0.5e-6, "GM": 1e-6, "WM": 1.5e-6}
    assert tissue_litres(labels, 0.5) == pytest.approx(expected)
    assert tissue_litres(labels * 0, 0.5) == {"CSF": 0, "GM": 0, "WM": 0}


def test_the_estimated_error_by_hand():
    before, after = np.array([100.0, 300.0]), np.array([130.0, 300.0])
    deviation, mask = np.array([40.0, 0.0]), np.array([True, True])
    found = estimated_error(before, after, deviation, mask)
    assert found == pytest.approx((np.sqrt((30**2 + 40**2) / 2) / 200, np.sqrt(40**2 / 2) / 200))


def test_an_estimated_error_without_a_brain_is_nan():
    zero = np.zeros(2)
    assert np.isnan(estimated_error(zero, zero, zero, np.array([True, True]))).all()
    assert np.isnan(estimated_error(zero, zero, zero, np.array([False, False]))).all()
