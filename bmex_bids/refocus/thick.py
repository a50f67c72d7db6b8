# SPDX-License-Identifier: Apache-2.0
"""Slices thicker than voxels: found in an image that was interpolated, and sharpened.

An image that a spline interpolated between slices is that spline along each line of voxels.  Its
knots tell where the slices lie.  What lay within a slice is estimated by Gaussian regression, which
is Wiener's filter for this sampling: the covariance along the two other axes stands for the one
across the slices (Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, chapter 2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray
from torch import Tensor

from bmex_bids.common.splines import slab_weights, spline_weights
from bmex_bids.refocus.knots import PART, ROUNDED, Knots, Place, basis_of, find_knots, places_of
from bmex_bids.refocus.kspace import AXES, FOREGROUND, bright, is_masked

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]
Array = NDArray[np.float32]
#: (slices, estimate, first, thickness) → a better estimate; see :meth:`ThickSlices.undo`
Within = Callable[[Tensor, Tensor, float, float], Tensor]

#: programs that take single voxels as slices interpolate with a lower degree
CUBIC = 3
#: nats per slice by which single voxels must be likelier, for slices to be left as they are, where
#: each so-many-th voxel may have been taken
LEAST_POINTS = -0.013
#: of the brightest voxels: what is darker is not given to the network
AIR = 0.03
#: voxels, from a whole number
WHOLE = 0.01
#: times as thick as a voxel's longest other edge
LEAST_THICK = 1.3
#: of the covariance: reach in mm, steps, and share of its spectrum's top that is its floor
REACH_MM, STEPS, FLOOR = 30.0, 60, 1e-7
#: of the slices' variance: what the covariance does not know
UNKNOWN = 1e-4
#: slices at each end of the axis that are left: how a spline ends is a matter of the program
ENDS = 2
#: times that what the slices of the estimate do not explain is added to it
ROUNDS = 3
#: thicknesses from the end of the axis that the last centre may lie beyond it: a bit of its slice
#: lies within
WITHIN = 0.48
#: lines that are computed together
CHUNK = 4000


@dataclass(frozen=True)
class ThickSlices:
    """Slices between which a spline interpolated.

    Attributes
    ----------
    axis : of the array, across the slices
    thickness : of a slice, and the distance between two, in voxels
    first : voxel coordinate of the first centre
    degree : of the spline
    noise : variance of what the spline does not explain, units²
    ends : slices at each end of the axis that are left as they are
    """

    axis: int
    thickness: float
    first: float
    degree: int
    noise: float
    ends: int = ENDS

    def centres(self, n: int) -> Vector:
        """Voxel coordinates of the slices of an axis of n voxels."""
        return np.arange(self.first, n - 0.5 + WITHIN * self.thickness, self.thickness)

    def facts(self, spacing: Sequence[float]) -> dict[str, Any]:
        """Ready for JSON: ``Axis`` (0 to 2, of the LPS array), ``Thickness`` (mm)."""
        return {
            "Axis": self.axis,
            "Thickness": round(self.thickness * float(spacing[self.axis]), 2),
        }

    def undo(
        self,
        image: Tensor,
        support: Tensor,
        spacing: Sequence[float],
        within: Within | None = None,
    ) -> Tensor:
        """The most likely image whose slices, interpolated, give the image.

        Parameters
        ----------
        image : (X, Y, Z), never negative
        support : (X, Y, Z), 1 where the image is known and the head may be, else 0
        spacing : mm
        within : betters the linear estimate, given the slices (X, Y, K), the estimate (X, Y, N),
            both with the axis last, ``first`` and ``thickness``; NaN where it is not wanted
        """
        n = image.shape[self.axis]
        centres = self.centres(n)
        head = bright(image, FOREGROUND) * support > 0
        if not bool(head.any()) or len(centres) <= 2 * self.ends:
            return image
        last = [axis for axis in AXES if axis != self.axis] + [self.axis]
        inner = torch.zeros(n, dtype=torch.bool)
        inner[math.ceil(centres[self.ends]) : math.floor(centres[-1 - self.ends]) + 1] = True
        given = image.permute(last)
        known = (support.permute(last) > 0) & inner
        mean = float(image[head].mean())
        covariance = _covariance_across(image - mean, head, self.axis, spacing)
        box = slab_weights(n, centres, self.thickness)
        spline = spline_weights(n, centres, self.degree)
        slices, estimate = _regression(
            torch.where(known, given - mean, 0),
            known,
            spline,
            *_from_slices(box, covariance),
            max(self.noise, ROUNDED),
        )
        slices, estimate = slices + mean * known.any(2, keepdim=True), estimate + mean
        if within is not None:
            wanted = torch.where(known & (bright(given, AIR) > 0), estimate, math.nan)
            better = within(slices, wanted, self.first, self.thickness)
            estimate = torch.where(wanted.isfinite(), better, estimate)
        seen = torch.from_numpy((spline @ box).T.astype(np.float32))
        estimate = torch.where(known, estimate, given)
        for _ in range(ROUNDS):
            estimate = torch.where(known, estimate + given - estimate @ seen, given)
        return estimate.clamp(min=0).permute(tuple(np.argsort(last))).contiguous()


def slice_means(truth: Tensor, first: float, thickness: float, filled: float = 1.0) -> Tensor:
    """(X, Y, K) means of an image (X, Y, N) over slices across its last axis.

    Parameters
    ----------
    first, thickness : centre of the first slice, and distance of two, in voxels
    filled : part of the distance that a slice is thick
    """
    n = truth.shape[2]
    centres = np.arange(first, n - 0.5 + thickness / 2, thickness)
    centres = centres[(centres > -0.5) & (centres < n - 0.5)]
    return truth @ torch.from_numpy(
        slab_weights(n, centres, thickness * filled).T.astype(np.float32)
    )


def linear_estimate(
    slices: Tensor, head: Tensor, first: float, thickness: float, spacing: Sequence[float]
) -> Tensor:
    """(X, Y, N), the estimate of an image whose slices are known without noise.

    Parameters
    ----------
    slices : (X, Y, K), of :func:`slice_means`
    head : (X, Y, N), what the covariance is measured in
    spacing : mm; the last is that of the result
    """
    n = head.shape[2]
    centres = np.asarray(first + thickness * np.arange(slices.shape[2]), dtype=np.float64)
    spline = torch.from_numpy(spline_weights(n, centres, 1).T.astype(np.float32))
    rough = slices @ spline
    mean = float(rough[head].mean())
    covariance = _covariance_across(rough - mean, head, 2, spacing)
    box = slab_weights(n, centres, thickness)
    _, to_voxels = _from_slices(box, covariance)
    return (slices - mean) @ to_voxels + mean


def parts_of(
    shape: Sequence[int], spacing: Sequence[float], target_mm: float
) -> tuple[int, int] | None:
    """(axis across the slices, parts of each) of a scan on its own grid; None for thin slices.

    Parameters
    ----------
    spacing : mm; the largest is taken as the thickness of the slices
    target_mm : of the parts, at most
    """
    axis = int(np.argmax(spacing))
    longest = max(float(spacing[other]) for other in AXES if other != axis)
    parts = math.ceil(float(spacing[axis]) / target_mm - 0.05)
    if spacing[axis] < LEAST_THICK * longest or parts < 2 or shape[axis] < 3:
        return None
    return axis, parts


def split_slices(
    image: Array, spacing: Sequence[float], target_mm: float, within: Within | None = None
) -> tuple[Array, int, int] | None:
    """An image on a scanner's grid with its slices cut into parts; None where none is thick.

    Parameters
    ----------
    image : (X, Y, Z) float32, never negative, any unit with a range of about 1000
    spacing, target_mm : see :func:`parts_of`
    within : see :meth:`ThickSlices.undo`

    Returns
    -------
    the image, the axis across the slices, and the number of parts of each
    """
    found = parts_of(image.shape, spacing, target_mm)
    if found is None:
        return None
    axis, parts = found
    n = image.shape[axis] * parts
    thick = ThickSlices(axis, float(parts), (parts - 1) / 2, CUBIC, noise=0.0, ends=0)
    weights = torch.from_numpy(spline_weights(n, thick.centres(n), CUBIC).T.astype(np.float32))
    data = torch.from_numpy(np.ascontiguousarray(image))
    fine = (data.movedim(axis, -1) @ weights).movedim(-1, axis).clamp(min=0).contiguous()
    edges = [float(step) / (parts if k == axis else 1) for k, step in enumerate(spacing)]
    support = torch.ones_like(fine)
    if is_masked(data):
        support = (data.repeat_interleave(parts, axis) > 0).float()
    return thick.undo(fine, support, edges, within).numpy(), axis, parts


def _covariance_across(
    detail: Tensor, head: Tensor, axis: int, spacing: Sequence[float]
) -> Matrix:
    """(n, n) covariance along an axis, as it is along the two others within the head.

    Parameters
    ----------
    detail : (X, Y, Z), of mean 0 within the head
    """
    distances = np.linspace(0, REACH_MM, STEPS)
    along = [
        np.interp(distances, np.arange(len(values)) * spacing[other], values)
        for other in AXES
        if other != axis
        for values in [_autocovariance(detail, head, other, REACH_MM / spacing[other])]
    ]
    n = detail.shape[axis]
    lag = np.minimum(np.arange(2 * n), 2 * n - np.arange(2 * n)) * spacing[axis]
    window = 0.5 + 0.5 * np.cos(np.pi * np.clip(lag / REACH_MM, 0, 1))
    spectrum = np.fft.rfft(np.interp(lag, distances, np.mean(along, axis=0)) * window).real
    spectrum = np.clip(spectrum, spectrum.max() * FLOOR, None)
    return np.asarray(scipy.linalg.toeplitz(np.fft.irfft(spectrum, 2 * n)[:n]))


def _autocovariance(detail: Tensor, head: Tensor, axis: int, reach: float) -> Vector:
    """Mean product of two voxels of the head, 0, 1, 2, … apart along an axis."""
    inside = torch.where(head, detail, torch.zeros_like(detail)).movedim(axis, -1)
    where = head.movedim(axis, -1)
    n = inside.shape[-1]
    result = []
    for lag in range(min(math.ceil(reach) + 1, n)):
        both = where[..., : n - lag] & where[..., lag:]
        product = (inside[..., : n - lag] * inside[..., lag:]).sum(dtype=torch.float64)
        result.append(float(product) / max(int(both.sum()), 1))
    return np.array(result)


def _from_slices(box: Matrix, covariance: Matrix) -> tuple[Tensor, Tensor]:
    """Precision of slices, (slices, slices), and what makes voxels of them, (slices, N) float32.

    Parameters
    ----------
    box : (slices, N), the share of each voxel in each slice
    covariance : (N, N), of voxels
    """
    cross = box @ covariance
    slices = cross @ box.T
    precision = np.linalg.inv(slices + UNKNOWN * slices[0, 0] * np.eye(len(box)))
    return torch.from_numpy(precision), torch.from_numpy((precision @ cross).astype(np.float32))


def _regression(
    values: Tensor,
    known: Tensor,
    spline: Matrix,
    prior: Tensor,
    to_voxels: Tensor,
    noise: float,
) -> tuple[Tensor, Tensor]:
    """The expected slices and voxels of each line, (X, Y, slices) and (X, Y, N).

    Parameters
    ----------
    values, known : (X, Y, N); 0 where not known
    spline : (N, slices)
    prior, to_voxels : see :func:`_from_slices`
    noise : variance of a voxel's value, units²
    """
    count = spline.shape[1]
    weights = torch.from_numpy(spline)
    lines = values.reshape(-1, values.shape[2])
    where = known.reshape(lines.shape).numpy()
    used = np.flatnonzero(where.any(1))
    packed, kind = np.unique(np.packbits(where[used], axis=1), axis=0, return_inverse=True)
    kind = kind.ravel()
    kinds = np.unpackbits(packed, axis=1, count=where.shape[1]).astype(np.float64)
    order = np.argsort(kind, kind="stable")
    expected = torch.zeros(len(lines), count)
    for start in range(0, len(order), CHUNK):
        some = order[start : start + CHUNK]
        first, last = kind[some[0]], kind[some[-1]]
        seen = torch.from_numpy(kinds[first : last + 1])
        precision = torch.einsum("kn,na,nb->kab", seen, weights, weights) / noise + prior
        factor = torch.linalg.cholesky(precision)
        line = lines[used[some]].double() @ weights / noise
        if first == last:
            mean = torch.cholesky_solve(line.T, factor[0]).T
        else:
            mean = torch.cholesky_solve(line[..., None], factor[kind[some] - first])[..., 0]
        expected[used[some]] = mean.float()
    shape = (*values.shape[:2], -1)
    return expected.reshape(shape), (expected @ to_voxels).reshape(shape)


def find_thick_slices(
    image: Tensor, support: Tensor, spacing: Sequence[float]
) -> ThickSlices | None:
    """Slices that a spline interpolated along one axis, or None.

    Parameters
    ----------
    image : (X, Y, Z) float32, range about 1000, never negative
    support : (X, Y, Z), 1 where the image is known and the head may be, else 0
    spacing : mm
    """
    head = (support > 0).numpy() & (image > 0).numpy()
    found = []
    for axis in AXES:
        if (explained := find_knots(image, head, axis)) is not None:
            knots, noise = explained
            found.append(ThickSlices(axis, knots.distance, knots.first, knots.degree, noise))
    if not found:
        return None
    found.sort(key=lambda thick: -thick.thickness * spacing[thick.axis])
    best = found[0]
    edges = {axis: float(spacing[axis]) for axis in AXES if axis != best.axis}
    edges |= {thick.axis: thick.thickness * spacing[thick.axis] for thick in found[1:]}
    # an image that was interpolated along all axes alike has no thick slices
    if best.thickness * spacing[best.axis] < LEAST_THICK * max(edges.values()):
        return None
    whole = abs(best.thickness - round(best.thickness)) < WHOLE
    if (
        best.degree < CUBIC
        and whole
        and _more_like_points(best, image, head, spacing) > LEAST_POINTS
    ):
        return None
    return best


def _more_like_points(
    thick: ThickSlices, image: Tensor, head: NDArray[np.bool_], spacing: Sequence[float]
) -> float:
    """How much likelier slices of one voxel with gaps between them are, nats per slice.

    Their covariance is that of a Gaussian process, known but for its scale.
    """
    n = image.shape[thick.axis]
    centres = thick.centres(n)
    inside = torch.from_numpy(head)
    detail = image - float(image[inside].mean())
    covariance = _covariance_across(detail, inside, thick.axis, spacing)
    knots = Knots(thick.thickness, thick.first, thick.degree)
    places = places_of(image, head, thick.axis)
    likely = []
    for width in (1.0, thick.thickness):
        to_voxels = spline_weights(n, centres, thick.degree) @ slab_weights(n, centres, width)
        expected = to_voxels @ covariance @ to_voxels.T
        likely.append(np.mean([_log_likelihood(expected, knots, place) for place in places]))
    return float(likely[0] - likely[1])


def _log_likelihood(expected: Matrix, knots: Knots, place: Place) -> float:
    """Of the slices at one place, nats per slice, with the best scale of their covariance."""
    basis = basis_of(knots.moved(-place.start))
    basis = basis - basis.mean(0)  # as the parts are
    basis = np.linalg.svd(basis, full_matrices=False)[0][:, :-1]
    part = expected[place.start : place.start + PART, place.start : place.start + PART]
    model = basis.T @ part @ basis
    found = basis.T @ place.covariance @ basis
    model += UNKNOWN * np.trace(model) / len(model) * np.eye(len(model))
    scale = np.trace(np.linalg.solve(model, found)) / len(model)
    return float(-0.5 * (np.linalg.slogdet(model)[1] / len(model) + math.log(max(scale, 1e-12))))
