# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest

from bmex_bids.metrics.confidence import (
    auroc,
    coverage,
    entropy,
    gradient,
    rank_correlation,
    volume_spread,
    way_to_oracle,
    windows,
)


def test_windows_are_means_of_what_lies_inside():
    values = np.arange(10 * 5 * 5, dtype=float).reshape(10, 5, 5)
    mask = np.ones(values.shape, bool)
    np.testing.assert_allclose(windows(values, mask), [62.0, 187.0])
    mask[:3] = False  # two fifths of the first window are left
    np.testing.assert_allclose(windows(values, mask), [187.0])
    mask[2] = True
    np.testing.assert_allclose(windows(values, mask), [values[2:5].mean(), 187.0])


def test_windows_at_the_border_are_filled_up():
    values = np.full((6, 5, 5), 3.0)
    mask = np.ones(values.shape, bool)
    np.testing.assert_allclose(windows(values, mask), [3.0])  # the second holds a fifth


def test_rank_correlation():
    assert rank_correlation(np.array([1, 2, 3]), np.array([1, 10, 11])) == pytest.approx(1)
    assert math.isnan(rank_correlation(np.ones(3), np.arange(3)))


def test_the_error_itself_goes_all_the_way_and_chance_none():
    rng = np.random.default_rng(0)
    error = rng.normal(0, 1, 20000) ** 2
    assert way_to_oracle(error, error) == pytest.approx(1)
    assert way_to_oracle(-error, error) < -0.5
    assert way_to_oracle(rng.random(error.size), error) == pytest.approx(0, abs=0.05)
    # 1 is kept, then 1 and 4: 1 and 2.5; the other way round 4 and 2.5; chance 2.5
    two = np.array([1.0, 4.0])
    assert way_to_oracle(np.array([2.0, 1.0]), two) == pytest.approx(-1)
    assert math.isnan(way_to_oracle(two, np.ones(2)))


def test_an_interval_of_the_right_width_holds_95_percent():
    rng = np.random.default_rng(1)
    deviation = rng.uniform(1, 9, 50000)
    error = deviation * rng.normal(0, 2, deviation.size)
    found = coverage(error, deviation, (1.0, 2.0, 4.0))
    np.testing.assert_allclose(found, [0.673, 0.95, 0.99991], atol=0.005)
    np.testing.assert_allclose(coverage(error, np.zeros(error.size), (1.0,)), 0, atol=1e-4)


def test_entropy_and_gradient():
    p = np.array([[1.0, 0.5], [0.0, 0.5]])
    np.testing.assert_allclose(entropy(p), [0, math.log(2)], atol=1e-6)
    x = np.zeros((4, 4, 4), np.float32) + 3 * np.arange(4)[:, None, None] + 4 * np.arange(4)
    np.testing.assert_allclose(gradient(x), 5, rtol=1e-6)


def test_the_spread_of_a_volume():
    p = np.array([0.5, 0.0, 1.0, 0.9])
    assert volume_spread(p, 1e6) == pytest.approx(0.5 + 0.3)


def test_auroc():
    assert auroc(np.array([3, 4]), np.array([1, 2])) == 1
    assert auroc(np.array([1, 3]), np.array([2, 2])) == 0.5
    assert auroc(np.array([2, 2]), np.array([2])) == 0.5
    assert math.isnan(auroc(np.array([]), np.array([2])))
