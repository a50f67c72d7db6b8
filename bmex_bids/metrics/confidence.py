# SPDX-License-Identifier: Apache-2.0
"""Figures of a map that says how far an image may be from the truth, against the error it has.

An error is known where a clean image was damaged on purpose.  A map is judged by its order (are the
errors where it is high?) and by its size (how often does an interval hold the truth?).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]

#: voxels: edge of the windows in which a map and the error are compared
WINDOW = 5
#: half the width of a 95 % interval of a normal distribution, in standard deviations
NORMAL_95 = 1.96
#: standard deviations below this share of their mean count as this share: a ratio needs a divisor
LEAST_SHARE = 1e-3


def windows(values: Array, mask: Mask) -> NDArray[np.float64]:
    """Means of the voxels inside the mask, of each window that lies in it by half.

    Parameters
    ----------
    values, mask : (X, Y, Z)

    Returns
    -------
    (windows,), windows of :data:`WINDOW`³ voxels side by side, always in the same order
    """
    inside = np.asarray(mask, dtype=bool)
    count = _sums(inside.astype(np.float64))
    total = _sums(np.where(inside, values, 0).astype(np.float64))
    kept = count >= WINDOW**3 / 2
    return np.asarray(total[kept] / count[kept])


def _sums(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum over each window; the last ones are filled up with zeros."""
    padded = np.pad(values, [(0, -size % WINDOW) for size in values.shape])
    parts = [part for size in padded.shape for part in (size // WINDOW, WINDOW)]
    return np.asarray(padded.reshape(parts).sum(axis=(1, 3, 5)))


def rank_correlation(a: Array, b: Array) -> float:
    """Spearman's correlation, −1…1; NaN where either is constant."""
    from scipy.stats import spearmanr

    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan
    return float(spearmanr(a, b).statistic)


def way_to_oracle(doubt: Array, squared_error: Array) -> float:
    """How well a map sorts voxels by their error: 0 as chance does, 1 as the error itself.

    The area under the risk–coverage curve is the mean squared error of the voxels that are kept
    when those of most doubt are left out, averaged over how many are left out (Geifman & El-Yaniv,
    NeurIPS 2017).  The figure is how much of the way from its value for a map of chance to that of
    the error itself a map closes.

    Parameters
    ----------
    doubt, squared_error : (voxels,)
    """
    chance = float(squared_error.mean())
    best, found = (_area(squared_error[np.argsort(order)]) for order in (squared_error, doubt))
    return (chance - found) / (chance - best) if chance > best else math.nan


def _area(sorted_errors: Array) -> float:
    total = np.cumsum(sorted_errors, dtype=np.float64)
    return float((total / np.arange(1, total.size + 1)).mean())


def coverage(error: Array, deviation: Array, factors: Sequence[float]) -> NDArray[np.float64]:
    """Share of voxels whose error lies in the 95 % interval of a normal distribution.

    Parameters
    ----------
    error, deviation : (voxels,), one unit
    factors : with which the standard deviation is multiplied

    Returns
    -------
    (factors,), 0…1
    """
    least = LEAST_SHARE * float(deviation.mean())
    ratio = np.sort(np.abs(error) / np.maximum(deviation, max(least, 1e-12)))
    limits = NORMAL_95 * np.asarray(factors, dtype=np.float64)
    return np.searchsorted(ratio, limits, side="right") / ratio.size


def entropy(probabilities: Array) -> NDArray[np.float32]:
    """Of the classes at each voxel, nats: (classes, X, Y, Z) → (X, Y, Z)."""
    p = np.clip(probabilities, 1e-9, 1)
    return np.asarray(-(p * np.log(p)).sum(axis=0), dtype=np.float32)


def gradient(image: Array) -> NDArray[np.float32]:
    """Length of the gradient, intensity units a voxel: (X, Y, Z) → the same."""
    parts = np.gradient(np.asarray(image, dtype=np.float32))
    return np.asarray(np.sqrt(sum(part**2 for part in parts)), dtype=np.float32)


def volume_spread(probability: Array, voxel_mm3: float) -> float:
    """What the standard deviation of a tissue's volume is proportional to, litres.

    A voxel of probability p is a draw of variance p (1 − p).  If all voxels erred together, the
    standard deviations would add up; that they do so in part is left to a factor that is fitted.

    Parameters
    ----------
    probability : (X, Y, Z), 0…1, of the tissue
    """
    p = np.clip(probability, 0, 1).astype(np.float64)
    return float(np.sqrt(p * (1 - p)).sum()) * voxel_mm3 / 1e6


def auroc(inside: Array, outside: Array) -> float:
    """Chance that a value of the first is above one of the second; 0.5 says nothing.

    The area under the receiver operating characteristic (Hanley & McNeil, Radiology 1982).  NaN
    where either is empty.
    """
    from scipy.stats import rankdata

    if not inside.size or not outside.size:
        return math.nan
    ranks = rankdata(np.concatenate([inside, outside]))
    first = float(ranks[: inside.size].sum()) - inside.size * (inside.size + 1) / 2
    return first / (inside.size * outside.size)
