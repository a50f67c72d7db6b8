# SPDX-License-Identifier: Apache-2.0
"""Which images of a group are far from the others, and in what."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bmex_bids.reports import boxplots
from bmex_bids.reports.group_rows import NOTHING, Row, grouped

#: so many values are needed to say that one of them is far from the others
FEWEST_FOR_OUTLIERS = 5
#: so many images of one age group are compared with one another, else with all images
FEWEST_OF_AGE = 10
#: how far beyond the quartiles, in interquartile ranges
REACH = 1.5


@dataclass(frozen=True)
class Outlier:
    """A value far from the others.

    Attributes
    ----------
    image : its name
    value : of the measure
    low, high : what is not far
    distance : interquartile ranges between the value and the nearer quartile, negative below;
        infinite where the range is zero
    """

    image: str
    value: float
    low: float
    high: float
    distance: float


@dataclass(frozen=True)
class Finding:
    """An outlier, in which measure, and compared with whom."""

    measure: str
    outlier: Outlier
    peers: str


def group_outliers(
    values: Mapping[str, float], peers: Sequence[float] | None = None
) -> list[Outlier]:
    """Values beyond a quartile by more than 1.5 times the interquartile range (Tukey).

    Quartiles are interpolated linearly.  Fewer than five values have no outliers.  Where the
    range is zero, because most values are equal, every other value is one.

    Parameters
    ----------
    values : image → value, finite
    peers : what the values are held against; None is the values themselves

    Returns
    -------
    The outliers, the farthest first.

    >>> group_outliers({"a": 1, "b": 2, "c": 3, "d": 4, "e": 10})
    [Outlier(image='e', value=10, low=-1.0, high=7.0, distance=3.0)]
    """
    against = list(values.values()) if peers is None else list(peers)
    if len(against) < FEWEST_FOR_OUTLIERS:
        return []
    first, _, third = boxplots.quartiles(against)
    spread = third - first
    # what only rounding tells apart is equal
    noise = 1e-9 * max(abs(first), abs(third))
    if spread <= noise:
        spread = 0.0
    low, high = first - REACH * spread, third + REACH * spread
    found = []
    for image, value in values.items():
        beyond = min(value - first, 0.0) + max(value - third, 0.0)
        if value < low - noise or value > high + noise:
            distance = beyond / spread if spread else math.copysign(math.inf, beyond)
            found.append(Outlier(image, value, low, high, distance))
    return sorted(found, key=lambda outlier: (-abs(outlier.distance), outlier.image))


def find_outliers(rows: Sequence[Row], measures: Sequence[str]) -> list[Finding]:
    """Outliers of every measure: within the age group where it is large, else within all."""
    found = []
    for measure in measures:
        known = [row for row in rows if measure in row.measures]
        everybody = [row.measures[measure] for row in known]
        for label, members in grouped(known, lambda row: row.text["age_group"]).items():
            values = {row.name: row.measures[measure] for row in members}
            own = len(values) >= FEWEST_OF_AGE and label != NOTHING
            peers = f"{len(values)} images, {label}" if own else f"all {len(everybody)} images"
            for outlier in group_outliers(values, None if own else everybody):
                found.append(Finding(measure, outlier, peers))
    return sorted(found, key=lambda f: (-abs(f.outlier.distance), f.outlier.image, f.measure))
