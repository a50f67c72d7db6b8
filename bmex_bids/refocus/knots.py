# SPDX-License-Identifier: Apache-2.0
"""Where the slices of an interpolated image lie.

An image that a spline interpolated between slices is that spline along each line of voxels: it has
fewer degrees of freedom than voxels, and only knots at the slices explain it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.interpolate
import scipy.optimize
from numpy.typing import NDArray
from torch import Tensor

Matrix = NDArray[np.float64]

#: voxels of the parts of lines that are looked at
PART = 32
#: of these parts at one place along the axis: least and most
FEWEST_PARTS, MOST_PARTS = 200, 3000
#: places along the axis that refine what was found at one
PLACES = 6
#: voxels, of a slice
THINNEST, THICKEST = 1.4, 8.0
#: degrees of splines
DEGREES = (0, 1, 3)
#: what the knots leave unexplained, as a share of what knots between them do; images whose voxels
#: are their slices have 0.67 or more, averages of fetuses 0.5
LEAST_ALIKE = 0.4
#: multiples of a distance that are tried: a spline has the knots of a coarser one too
MULTIPLES = (2, 3, 4)
#: times as much may remain unexplained with the coarser knots; and units², for rounded images
AS_GOOD, ROUNDED = 3.0, 1.0


@dataclass(frozen=True)
class Place:
    """Lines from ``start`` on, PART voxels each, all within the head: their covariance."""

    start: int
    covariance: Matrix


@dataclass(frozen=True)
class Knots:
    """A spline's knots every ``distance`` voxels, one of them at ``first``."""

    distance: float
    first: float
    degree: int

    def moved(self, voxels: float) -> Knots:
        return Knots(self.distance, (self.first + voxels) % self.distance, self.degree)

    def unexplained(self, places: Sequence[Place]) -> float:
        """Variance per degree of freedom that such splines leave, mean of the places, units²."""
        if not THINNEST * 0.9 < self.distance < THICKEST * max(MULTIPLES):
            return math.inf
        left = [_left_by(p.covariance, basis_of(self.moved(-p.start))) for p in places]
        return float(np.mean(left))

    def alike(self, places: Sequence[Place]) -> float:
        """The same as a share of what knots between these leave; 1 for any other image."""
        between = [self.moved(self.distance * k / 8).unexplained(places) for k in range(1, 8)]
        return self.unexplained(places) / max(float(np.median(between)), 1e-12)


def basis_of(knots: Knots) -> Matrix:
    """(PART, k): orthonormal columns that span the splines."""
    step, degree = knots.distance, knots.degree
    first = math.floor(-knots.first / step) - degree - 1
    last = math.ceil((PART - knots.first) / step) + degree + 2
    places = np.arange(first, last) * step + knots.first
    if degree == 0:  # each voxel has the value of the nearest centre
        spline = np.eye(len(places))[np.abs(np.arange(PART)[:, np.newaxis] - places).argmin(1)]
    else:
        voxels = np.arange(PART, dtype=np.float64)
        spline = scipy.interpolate.BSpline.design_matrix(voxels, places, degree).toarray()
    spline = spline[:, np.abs(spline).sum(0) > 1e-3]
    columns, size = np.linalg.qr(spline)
    return np.asarray(columns[:, np.abs(np.diag(size)) > 1e-6])


def _left_by(covariance: Matrix, basis: Matrix) -> float:
    """Variance per degree of freedom that a basis leaves of lines with a covariance."""
    freedom = max(len(covariance) - basis.shape[1], 1)
    explained = float((basis * (covariance @ basis)).sum())
    return max(float(np.trace(covariance)) - explained, 0.0) / freedom


@functools.cache
def _table() -> list[list[tuple[Knots, Matrix]]]:
    """All knots that are tried, those of one distance and degree together."""
    rows = []
    for degree in DEGREES:
        steps = np.exp(np.arange(math.log(THINNEST), math.log(THICKEST), 0.6 / PART))
        if degree == 0:  # voxels that are repeated
            steps = np.arange(2, int(THICKEST) + 1)
        for step in steps:
            count = max(4, round(3 * step)) if degree else step
            shift = 0 if degree else (step - 1) / 2
            row = [
                Knots(float(step), 0.0, degree).moved(shift + step * k / count)
                for k in range(count)
            ]
            rows.append([(knots, basis_of(knots)) for knots in row])
    return rows


def places_of(image: Tensor, head: NDArray[np.bool_], axis: int) -> list[Place]:
    """Where along an axis many lines run through the head, the best place first."""
    values = np.moveaxis(image.numpy(), axis, -1)
    where = np.moveaxis(head, axis, -1)
    n = values.shape[-1]
    if n < PART:
        return []
    counts = np.zeros((*where.shape[:2], n + 1), np.int32)
    np.cumsum(where, axis=-1, out=counts[..., 1:])
    full = counts[..., PART:] - counts[..., :-PART] == PART
    lines = full.sum((0, 1))
    usable = np.flatnonzero(lines >= FEWEST_PARTS)
    if not len(usable):
        return []
    best = int(lines.argmax())
    spread = usable[np.linspace(0, len(usable) - 1, PLACES).round().astype(int)]
    rng = np.random.default_rng(0)
    result = []
    for start in sorted({best, *map(int, spread)}, key=lambda s: abs(s - best)):
        parts = values[..., start : start + PART][full[..., start]]
        if len(parts) > MOST_PARTS:
            parts = parts[rng.choice(len(parts), MOST_PARTS, replace=False)]
        parts = parts.astype(np.float64)
        parts -= parts.mean(1, keepdims=True)
        result.append(Place(start, parts.T @ parts / len(parts)))
    return result


def _best_knots(place: Place) -> Knots:
    """Of all that are tried at one place, those that explain more than their neighbours."""
    found = []
    for row in _table():
        left = [_left_by(place.covariance, basis) for _, basis in row]
        k = int(np.argmin(left))
        found.append((left[k] / max(float(np.median(left)), 1e-12), row[k][0]))
    return min(found, key=lambda pair: pair[0])[1].moved(place.start)


def _refined(knots: Knots, places: Sequence[Place]) -> Knots:
    """The same from one place to all places, which tell the distance more and more exactly."""
    degree, start = knots.degree, places[0].start
    for count in range(1, len(places) + 1, 2):
        near = places[:count]
        a, b = knots.distance, knots.first
        # a longer distance, with the knots at the first place where they are
        simplex = [[a, b], [a + 0.004, b - 0.004 * start / a], [a, b + 0.15]]
        found = scipy.optimize.minimize(
            lambda x, near: Knots(float(x[0]), float(x[1]), degree).unexplained(near),
            [a, b],
            args=(near,),
            method="Nelder-Mead",
            options={"initial_simplex": simplex, "xatol": 1e-4, "fatol": 1e-7, "maxfev": 60},
        )
        knots = Knots(float(found.x[0]), float(found.x[1] % found.x[0]), degree)
    return knots


def _coarser(knots: Knots) -> Iterator[Knots]:
    """Multiples of the distance, with each of the knots as the first."""
    for times in MULTIPLES:
        for k in range(times):
            first = knots.first + k * knots.distance
            yield Knots(knots.distance * times, first, knots.degree)


def find_knots(image: Tensor, head: NDArray[np.bool_], axis: int) -> tuple[Knots, float] | None:
    """The widest knots between which an image is a spline along an axis, or None.

    Parameters
    ----------
    image : (X, Y, Z) float32
    head : (X, Y, Z), what is looked at

    Returns
    -------
    knots, and the variance that they do not explain, units²
    """
    places = places_of(image, head, axis)
    if not places:
        return None
    knots = _best_knots(places[0])
    if knots.degree > 0:
        knots = _refined(knots, places)
    if knots.alike(places) > LEAST_ALIKE:
        return None
    left = knots.unexplained(places)
    for other in _coarser(knots):
        more = other.unexplained(places)
        if more < max(AS_GOOD * left, ROUNDED) and other.alike(places) < LEAST_ALIKE:
            knots = other
    if not THINNEST <= knots.distance <= THICKEST * max(MULTIPLES):
        return None
    return knots, knots.unexplained(places)
