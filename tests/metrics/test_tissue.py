# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest

from bmex_bids.metrics.tissue import dice, quality_index, tct

LABELS = np.array([0, 1, 2, 2, 3, 3])


def test_tct_by_hand():
    image = np.array([999, 999, 2, 4, 9, 11], np.float32)
    # GM: mean 3, variance 1; WM: mean 10, variance 1
    assert tct(image, LABELS) == pytest.approx(7 / math.sqrt(2))
    assert tct(-image, LABELS) == pytest.approx(7 / math.sqrt(2))
    assert tct(image * 50 + 3, LABELS) == pytest.approx(7 / math.sqrt(2))


def test_tct_at_its_limits():
    assert tct(np.array([0, 0, 5, 5, 9, 9.0]), LABELS) == math.inf
    assert math.isnan(tct(np.array([0, 0, 5, 5, 5, 5.0]), LABELS))
    assert math.isnan(tct(np.arange(6.0), np.minimum(LABELS, 2)))
    assert math.isnan(tct(np.arange(6.0), LABELS * 0))


def test_quality_index_by_hand():
    before = np.array([0, 0, 2, 6, 8, 12], np.float32)  # means 4, 10; variances 4, 4
    after = np.array([0, 0, 3, 5, 9, 11], np.float32)  # means 4, 10; variances 1, 1
    assert quality_index(before, after, LABELS) == pytest.approx(0.5)
    assert quality_index(before, before, LABELS) == pytest.approx(1)
    assert math.isnan(quality_index(before, after, LABELS * 0))
    assert math.isnan(quality_index(before, np.array([0, 0, 1, 3, 1, 3.0]), LABELS))


def test_dice_by_hand():
    a, b = np.array([1, 1, 1, 0, 0]), np.array([0, 1, 1, 1, 1])
    assert dice(a, b) == pytest.approx(4 / 7)
    assert dice(a, a) == 1
    assert dice(a, 1 - a) == 0
    assert dice(a * 0, a * 0) == 1
