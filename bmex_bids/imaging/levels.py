# SPDX-License-Identifier: Apache-2.0
"""Matching by the levels of the tissues, with a reference for each age.

Matching by quantiles assumes that every brain has the same shares of fluid, grey and white matter.
Where a brain has more fluid, quantiles turn fluid into grey matter.  Here the mean intensities of
the three tissues are found in the image and moved to those of the reference; the shares do not
matter.  Where the tissues cannot be told apart (T1w before about two years, T2w), quantiles are
used.  The slopes of the map are bounded either way, so that noise and contrast change little.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from bmex_bids.common.contrasts import CONTRASTS, MEAN
from bmex_bids.exceptions import ImageError
from bmex_bids.imaging.intensity import HistogramMatch, load_histogram, match_histogram

Array = NDArray[np.float32]

#: T1w, brain mean 400: mean intensities of CSF, GM and WM of 18 adults of 19–55 years
ADULT = (167.0, 351.0, 537.0)
#: months: the published reference ends at the first, the adult one begins at the second
OLDEST_TABLE, YOUNGEST_ADULT = 24.0, 216.0
#: the slope of the map lies within this factor of its overall slope
STEEPEST = 1.6
BINS = 512
ROUNDS = 60
#: of the brain's voxels lie below the top of the histogram
TOP_SHARE = 0.999
#: tissues are told apart when their means differ by this many standard deviations
APART = 1.8


@dataclass(frozen=True)
class Levels:
    """A mixture of three normal distributions, dark to bright.

    Attributes
    ----------
    means, deviations : in the image's unit
    shares : of the voxels; their sum is 1
    """

    means: tuple[float, float, float]
    deviations: tuple[float, float, float]
    shares: tuple[float, float, float]

    @property
    def apart(self) -> bool:
        """Whether neighbouring classes are told apart, and none is nearly empty."""
        steps = np.diff(self.means)
        widths = np.add(self.deviations[:-1], self.deviations[1:]) / 2
        return bool((steps > APART * widths).all() and min(self.shares) > 0.01)


def find_levels(values: NDArray[Any], weights: NDArray[Any] | None = None) -> Levels:
    """Fit three classes to intensities by expectation maximisation on their histogram.

    Half of each class's variance is the pooled one: with variances of their own, wide classes
    swallow the tails of narrow ones.

    Parameters
    ----------
    values : intensities above zero, any shape
    weights : how often each occurs; once, when None
    """
    flat = np.asarray(values, dtype=np.float64).ravel()
    count = np.ones(flat.size) if weights is None else np.asarray(weights, float).ravel()
    kept = (flat > 0) & (count > 0)
    flat, count = flat[kept], count[kept]
    if flat.size == 0:
        raise ImageError("expected brain voxels above zero, found none; is the image empty?")
    order = np.argsort(flat)
    cumulated = np.cumsum(count[order]) / count.sum()

    def quantile(share: float) -> float:
        place = int(np.searchsorted(cumulated, share))
        return float(flat[order[min(place, flat.size - 1)]])

    top = quantile(TOP_SHARE)
    height, edges = np.histogram(np.minimum(flat, top), bins=BINS, weights=count)
    height = height / height.sum()
    centre = (edges[1:] + edges[:-1]) / 2
    spread = np.sqrt((height * (centre - (height * centre).sum()) ** 2).sum())
    mean = np.array([quantile(share) for share in (0.06, 0.4, 0.8)])
    deviation = np.full(3, spread / 3 + 1e-6)
    share = np.array([0.15, 0.5, 0.35])
    for _ in range(ROUNDS):
        density = np.exp(-0.5 * ((centre - mean[:, None]) / deviation[:, None]) ** 2)
        density = density * (share / deviation)[:, None] + 1e-12
        part = density / density.sum(axis=0) * height  # (3, BINS)
        share = part.sum(axis=1)
        mean = (part @ centre) / share
        squares = (part * (centre - mean[:, None]) ** 2).sum(axis=1)
        deviation = 0.5 * np.sqrt(squares.sum()) + 0.5 * np.sqrt(squares / share) + 1e-6
    first = np.argsort(mean)
    a, b, c = (tuple(float(v[k]) for k in first) for v in (mean, deviation, share))
    return Levels(a, b, c)  # type: ignore[arg-type]


def reference_levels(
    age_group: str, age_months: float | None
) -> tuple[float, float, float] | None:
    """CSF, GM and WM in T1w template units at an age; None where the reference mixes them.

    Up to 24 months these are the levels of the published reference of the age group; from 18 years
    on, those of adults; in between, interpolated over the logarithm of the age.
    """
    counts = load_histogram(age_group, "T1w")
    table = find_levels(np.arange(counts.size), counts)
    if not table.apart:
        return None
    young = np.array(table.means)
    if age_months is None or age_months <= OLDEST_TABLE:
        found = young
    else:
        way = np.log(min(age_months, YOUNGEST_ADULT) / OLDEST_TABLE)
        way /= np.log(YOUNGEST_ADULT / OLDEST_TABLE)
        found = (1 - way) * young + way * np.array(ADULT)
    return float(found[0]), float(found[1]), float(found[2])


def match_levels(
    data: Array,
    mask: NDArray[np.bool_],
    *,
    age_group: str,
    contrast: str,
    age_months: float | None = None,
) -> tuple[HistogramMatch, tuple[float, float, float] | None]:
    """The map that moves the tissue levels of a brain to those of its age's reference.

    Parameters
    ----------
    data : (X, Y, Z), any unit from zero on
    mask : (X, Y, Z), the brain
    age_group, contrast : choose the published reference; where there is none for the contrast, the
        brain's mean becomes :data:`~bmex_bids.common.contrasts.MEAN`
    age_months : None where it is not known: the published reference is used

    Returns
    -------
    match, levels : the map to template units; CSF, GM and WM of the reference, or None where
        quantiles were used
    """
    inside = np.asarray(mask, dtype=bool)
    if not CONTRASTS[contrast].reference:
        mean = float(data[inside].mean())
        return HistogramMatch((0.0, max(mean, 1e-6)), (0.0, MEAN)), None
    if contrast == "T1w" and age_group != "fetal":
        found, reference = find_levels(data[inside]), reference_levels(age_group, age_months)
        if found.apart and reference is not None:
            return bounded((0.0, *found.means), (0.0, *reference)), reference
    _, quantiles = match_histogram(data, load_histogram(age_group, contrast), inside)
    return bounded(quantiles.source, quantiles.reference), None


def bounded(source: tuple[float, ...], reference: tuple[float, ...]) -> HistogramMatch:
    """A piecewise linear map through zero whose slopes differ little from the overall one.

    Parameters
    ----------
    source, reference : knots, rising; the last pair gives the overall slope.  Slopes are limited to
        :data:`STEEPEST` times it and one over that.

    >>> bounded((0, 100, 200), (0, 100, 200)).reference
    (0.0, 100.0, 200.0)
    >>> bounded((0, 100, 200), (0, 10, 200)).reference  # slopes 0.1 and 1.9
    (0.0, 62.5, 200.0)
    """
    x, index = np.unique(np.asarray(source, dtype=np.float64), return_index=True)
    y = np.asarray(reference, dtype=np.float64)[index]
    if len(x) < 2 or y[-1] <= y[0]:
        raise ImageError("expected a range of intensities to match, got one level")
    width = np.diff(x)
    wanted = np.diff(y) / width
    overall = (y[-1] - y[0]) / (x[-1] - x[0])
    low, high = overall / STEEPEST, overall * STEEPEST

    def too_long(shift: float) -> float:
        return float((np.clip(wanted + shift, low, high) * width).sum() - (y[-1] - y[0]))

    # one shift of all slopes keeps both ends where they are
    far = float(np.abs(wanted).max()) + high
    shift = brentq(too_long, -far, far)
    knots = y[0] + np.concatenate([[0.0], np.cumsum(np.clip(wanted + shift, low, high) * width)])
    knots = np.round(knots, 9)  # a solver's last digits
    return HistogramMatch(tuple(float(v) for v in x), tuple(float(v) for v in knots))
