# SPDX-License-Identifier: Apache-2.0
"""What a correction of an image says of the pose of the head at each line of k-space.

A small motion adds the image's derivatives for translations and rotations to it, each line of k-space
its own share of them.  A correction is therefore fitted, line by line, with these derivatives, and the
lines are divided into a few steps of one pose each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bmex_bids.common.poses import LEVER_MM
from bmex_bids.refocus.kspace import AXES, along, turned
from bmex_bids.refocus.view import coarser

Pose = NDArray[np.float64]

#: mm for a degree of rotation
MM_A_DEGREE = math.radians(LEVER_MM)
#: lines nearer to the centre of k-space show brightness, not motion
FIRST_LINE = 3
#: lines of k-space that are looked at, at most
MOST_LINES = 64
#: of the diagonal, added to it
RIDGE = 1e-3
#: degrees of freedom of a rigid motion
FREEDOMS = 6


def inner(one: Pose, other: Pose) -> float:
    """Mean product of the displacements of two poses, mm²."""
    return float(one[:3] @ other[:3] + MM_A_DEGREE**2 * (one[3:] @ other[3:]))


def size_mm(pose: Pose) -> float:
    """Root mean square displacement of a pose (6,) in mm and degrees."""
    return math.sqrt(inner(pose, pose))


def moved(image: Tensor, pose: Pose, spacing: Sequence[float], *, back: bool = False) -> Tensor:
    """The image (X, Y, Z) of a head in another pose; ``back`` undoes it."""
    if back:
        image = _shifted(image, -pose[:3], spacing)
    for axis in reversed(AXES) if back else AXES:
        if pose[3 + axis]:
            degrees = torch.tensor(float(-pose[3 + axis] if back else pose[3 + axis]))
            image = turned(image, axis, degrees, spacing)
    return image if back else _shifted(image, pose[:3], spacing)


def _shifted(image: Tensor, shift_mm: Pose, spacing: Sequence[float]) -> Tensor:
    for axis in AXES:
        n = image.shape[axis]
        ramp = torch.exp(-2j * math.pi * torch.fft.rfftfreq(n) * (shift_mm[axis] / spacing[axis]))
        image = filtered(image, ramp, axis)
    return image


def filtered(image: Tensor, factors: Tensor, axis: int) -> Tensor:
    """A real image (X, Y, Z) whose lines of k-space along an axis were multiplied, (n // 2 + 1,)."""
    spectrum = torch.fft.rfft(image, dim=axis) * along(factors, axis)
    return torch.fft.irfft(spectrum, n=image.shape[axis], dim=axis).contiguous()


def derivatives(image: Tensor, spacing: Sequence[float], centre_mm: Sequence[float]) -> Tensor:
    """(6, X, Y, Z): change of the image for each mm along, and each degree about, its axes.

    Parameters
    ----------
    centre_mm : of the rotations, from the first voxel
    """
    slopes = []
    for axis in AXES:
        n = image.shape[axis]
        ramp = 2j * math.pi * torch.fft.rfftfreq(n)
        if n % 2 == 0:
            ramp[-1] = 0
        slopes.append(filtered(image, ramp, axis) / spacing[axis])
    place = [
        along(torch.arange(n) * step - centre, axis)
        for axis, (n, step, centre) in enumerate(zip(image.shape, spacing, centre_mm, strict=True))
    ]
    turns = [
        (place[b] * slopes[a] - place[a] * slopes[b]) * (math.pi / 180)
        for a, b in ((1, 2), (2, 0), (0, 1))
    ]
    return torch.stack([*(-slope for slope in slopes), *turns])


@dataclass(frozen=True)
class Steps:
    """Poses of the lines from one distance from the centre of k-space to the next.

    Attributes
    ----------
    share : of the correction's squares, that they explain
    lines : where each begins
    poses : of each (6,), mean of the two lines at that distance
    """

    share: float
    lines: tuple[int, ...]
    poses: tuple[Pose, ...]


@dataclass(frozen=True)
class Evidence:
    """Sums over the lines at each distance from the centre of k-space along one axis.

    Attributes
    ----------
    products : (lines, 6), of the correction with the derivatives
    squares : (lines, 6, 6), of the derivatives with each other
    total : of the correction with itself
    """

    products: NDArray[np.float64]
    squares: NDArray[np.float64]
    total: float

    @classmethod
    def of(
        cls,
        image: Tensor,
        correction: Tensor,
        spacing: Sequence[float],
        axis: int,
        target_mm: float,
    ) -> Evidence:
        """Of an image and what would be added to it, (X, Y, Z), at voxels of about ``target_mm``."""
        centre = [(n - 1) / 2 * step for n, step in zip(image.shape, spacing, strict=True)]
        small, steps = coarser(image, spacing, target_mm)
        change, _ = coarser(correction, spacing, target_mm)
        n = small.shape[axis]
        parts = torch.fft.rfft(derivatives(small, steps, centre), dim=1 + axis)
        parts = parts.movedim(1 + axis, 0).flatten(2)  # (lines, 6, samples)
        lines = torch.fft.rfft(change, dim=axis).movedim(axis, 0).flatten(1)
        both = torch.full((len(lines),), 2.0 / n)  # the lines k and −k
        both[0] = 1 / n
        if n % 2 == 0:
            both[-1] = 1 / n
        products = torch.einsum("kis,ks->ki", parts.conj(), lines).real * both[:, None]
        squares = torch.einsum("kis,kjs->kij", parts.conj(), parts).real * both[:, None, None]
        products[:FIRST_LINE] = 0
        count = min(len(lines) - 1, MOST_LINES)
        return cls(
            products[:count].double().numpy(),
            squares[:count].double().numpy(),
            float((change.double() ** 2).sum()),
        )

    def _fit(self, first: int, last: int) -> tuple[float, Pose]:
        """What one pose explains of the lines from ``first`` to before ``last``, and the pose."""
        product, square = self.products[first:last].sum(0), self.squares[first:last].sum(0)
        square = square + RIDGE * np.diag(np.diag(square)) + 1e-12 * np.eye(FREEDOMS)
        found = np.linalg.solve(square, product)
        return float(product @ found), -found  # what is added undoes the pose

    def between(self, lines: Sequence[int]) -> list[Pose]:
        """The pose from each line to the next, and from the last one on."""
        ends = [*lines[1:], len(self.products)]
        return [self._fit(a, b)[1] for a, b in zip(lines, ends, strict=True)]

    def steps(self, count: int, apart: int) -> Steps:
        """The best ``count`` steps, after rest at the centre; each is ``apart`` lines or longer."""
        top = len(self.products)
        gain = np.full((top + 1, top + 1), -np.inf)
        for a in range(1, top):
            for b in range(a + apart, top + 1):
                gain[a, b] = self._fit(a, b)[0]
        best = np.full((count + 1, top + 1), -np.inf)
        begin = np.zeros((count + 1, top + 1), dtype=int)
        best[0, 1:] = 0
        for number in range(1, count + 1):
            tried = best[number - 1, :, None] + gain
            begin[number] = tried.argmax(0)
            best[number] = tried.max(0)
        if not np.isfinite(best[count, top]) or self.total <= 0:
            return Steps(0.0, (), ())
        lines = [top]
        for number in range(count, 0, -1):
            lines.insert(0, int(begin[number, lines[0]]))
        poses = self.between(lines[:-1])
        return Steps(float(best[count, top]) / self.total, tuple(lines[:-1]), tuple(poses))
