# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest

from bmex_bids.metrics.statistics import (
    cohens_d,
    cohens_d_paired,
    histogram_distance,
    icc,
    paired_t,
)


def test_cohens_d_by_hand():
    # means 4 and 2, both variances 4 (n − 1): pooled deviation 2
    assert cohens_d([2, 4, 6], [0, 2, 4]) == pytest.approx(1)
    assert cohens_d([0, 2, 4], [2, 4, 6]) == pytest.approx(-1)
    assert math.isnan(cohens_d([1], [1, 2]))
    assert cohens_d([1, 1], [0, 0]) == math.inf
    assert cohens_d([1, 1], [1, 1]) == 0


def test_cohens_d_of_pairs_by_hand():
    assert cohens_d_paired([1, 2, 3]) == pytest.approx(2)
    assert math.isnan(cohens_d_paired([1]))
    assert cohens_d_paired([-1, -1]) == -math.inf


def test_icc_is_agreement_and_not_correlation():
    # two of the judges of Shrout and Fleiss 1979, table 2
    first, second = [9, 6, 8, 7, 10, 6], [2, 1, 4, 1, 5, 2]
    rows, columns = np.mean([first, second], axis=0), np.mean([first, second], axis=1)
    mean = columns.mean()
    of_rows = 2 * ((rows - mean) ** 2).sum() / 5
    of_columns = 6 * ((columns - mean) ** 2).sum()
    left = np.array([first, second]) - rows - columns[:, None] + mean
    of_error = (left**2).sum() / 5
    wanted = (of_rows - of_error) / (of_rows + of_error + 2 * (of_columns - of_error) / 6)
    assert icc(first, second) == pytest.approx(wanted)
    assert icc(first, second) < 0.3 < np.corrcoef(first, second)[0, 1]
    assert icc(first, first) == 1
    assert math.isnan(icc([1], [1]))
    assert math.isnan(icc([1, 1], [1, 1]))
    assert math.isnan(icc([math.nan, 1], [1, 2]))


def test_effects_of_what_is_not_known_are_not_known():
    assert math.isnan(cohens_d([math.nan, 1], [1, 2]))
    assert math.isnan(cohens_d_paired([math.nan, 1]))


def test_paired_t_by_hand():
    # differences 1, 2, 3: t = 2 / (1 / sqrt 3) = 3.464 on two degrees of freedom, and there
    # p = 1 − t / sqrt(t² + 2)
    t = 2 * math.sqrt(3)
    assert paired_t([2, 4, 6], [1, 2, 3]) == pytest.approx(1 - t / math.sqrt(t * t + 2))
    assert paired_t([1, 2], [1, 2]) == 1
    assert paired_t([2, 3], [1, 2]) == 0
    assert math.isnan(paired_t([1], [2]))
    with pytest.raises(ValueError, match="got 1 and 2"):
        paired_t([1], [1, 2])


def test_histogram_distance_is_zero_for_the_same_and_one_for_strangers():
    low, high = np.zeros(10), np.ones(10)
    assert histogram_distance(low, low, span=(0, 1), bins=4) == 0
    assert histogram_distance(low, high, span=(0, 1), bins=4) == pytest.approx(1)
    # p = (1, 0), q = (½, ½): divergence = ½ log2(4/3) + ½ (½ log2(2/3) + ½ log2 2)
    half = np.array([0.0, 1.0])
    expected = 0.5 * math.log2(4 / 3) + 0.5 * (0.5 * math.log2(2 / 3) + 0.5)
    assert histogram_distance(low, half, span=(0, 1), bins=2) == pytest.approx(math.sqrt(expected))


def test_histogram_distance_counts_what_lies_beyond_in_the_last_bin_and_refuses_nonsense():
    assert histogram_distance(np.array([5.0]), np.array([1.0]), span=(0, 1), bins=2) == 0
    with pytest.raises(ValueError, match="rises"):
        histogram_distance(np.ones(1), np.ones(1), span=(1, 1))
    with pytest.raises(ValueError, match="got none"):
        histogram_distance(np.ones(0), np.ones(1), span=(0, 1))
