# SPDX-License-Identifier: Apache-2.0
"""Effect sizes, tests, and distances between histograms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def cohens_d(first: Sequence[float], second: Sequence[float]) -> float:
    """Cohen's d of two independent groups: difference of means over the pooled deviation.

    ::

        d = (m1 − m2) / sqrt(((n1 − 1) s1² + (n2 − 1) s2²) / (n1 + n2 − 2))

    0.2 is called small, 0.5 medium, 0.8 large (Cohen 1988).  NaN for groups of fewer than two;
    infinite where neither varies but the means differ.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.size < 2 or b.size < 2:
        return math.nan
    pooled = ((a.size - 1) * a.var(ddof=1) + (b.size - 1) * b.var(ddof=1)) / (a.size + b.size - 2)
    return _ratio(float(a.mean() - b.mean()), math.sqrt(float(pooled)))


def cohens_d_paired(differences: Sequence[float]) -> float:
    """Cohen's d of pairs: the mean difference over the differences' deviation (d_z).

    NaN for fewer than two pairs; infinite where all differences are equal and not zero.
    """
    values = np.asarray(differences, dtype=np.float64)
    if values.size < 2:
        return math.nan
    return _ratio(float(values.mean()), float(values.std(ddof=1)))


def _ratio(difference: float, deviation: float) -> float:
    if deviation > 0 or math.isnan(deviation):
        return difference / deviation
    return 0.0 if difference == 0 else math.copysign(math.inf, difference)


def paired_t(first: Sequence[float], second: Sequence[float]) -> float:
    """p of Student's two-sided t-test for pairs; NaN for fewer than two, 1 where all are equal."""
    from scipy.stats import ttest_rel

    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.size != b.size:
        raise ValueError(f"expected as many values on both sides, got {a.size} and {b.size}")
    if a.size < 2:
        return math.nan
    difference = a - b
    if np.ptp(difference) == 0:
        return 1.0 if difference[0] == 0 else 0.0
    return float(ttest_rel(a, b).pvalue)


def icc(first: Sequence[float], second: Sequence[float]) -> float:
    """ICC(2,1) of two measurements of each subject: absolute agreement, 1 is the same.

    Shrout and Fleiss, Psychol. Bull. 1979::

        (MS_rows − MS_error) / (MS_rows + MS_error + 2 (MS_columns − MS_error) / n)

    NaN for fewer than two subjects, and where nothing varies.
    """
    table = np.asarray([first, second], dtype=np.float64).T
    n, k = table.shape
    if n < 2:
        return math.nan
    rows, columns = table.mean(axis=1), table.mean(axis=0)
    mean = table.mean()
    of_rows = k * float(((rows - mean) ** 2).sum()) / (n - 1)
    of_columns = n * float(((columns - mean) ** 2).sum()) / (k - 1)
    left = table - rows[:, None] - columns + mean
    of_error = float((left**2).sum()) / ((n - 1) * (k - 1))
    total = of_rows + (k - 1) * of_error + k * (of_columns - of_error) / n
    return (of_rows - of_error) / total if total > 0 else math.nan


def histogram_distance(
    first: NDArray[np.floating[Any]],
    second: NDArray[np.floating[Any]],
    *,
    span: tuple[float, float],
    bins: int = 128,
) -> float:
    """Jensen-Shannon distance of two sets of intensities, 0 (the same) to 1 (nothing in common).

    The root of the divergence in bits (Endres and Schindelin, IEEE Trans. Inf. Theory 2003), of
    histograms over ``span``; what lies beyond counts in the outermost bins.
    """
    low, high = span
    if not high > low:
        raise ValueError(f"expected a span that rises, got {span}")
    if not first.size or not second.size:
        raise ValueError("expected intensities on both sides, got none on one")
    p, q = (
        np.histogram(np.clip(values, low, high), bins=bins, range=span)[0] / values.size
        for values in (first, second)
    )
    middle = (p + q) / 2
    divergence = sum(
        float((part[part > 0] * np.log2(part[part > 0] / middle[part > 0])).sum()) / 2
        for part in (p, q)
    )
    return math.sqrt(max(divergence, 0.0))


def bootstrap_interval(
    values: Sequence[float], *, share: float = 0.95, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean when the values are drawn again with replacement.

    Efron, Ann. Stat. 1979.  NaN for fewer than two values.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.size < 2:
        return math.nan, math.nan
    rng = np.random.default_rng(seed)
    means = array[rng.integers(array.size, size=(draws, array.size))].mean(axis=1)
    low, high = np.quantile(means, [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)
