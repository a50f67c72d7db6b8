# SPDX-License-Identifier: Apache-2.0
"""The part of an image in which the search for periodic motion looks, and how sharp it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.ndimage
import torch
from torch import Tensor

from bmex_bids.refocus.kspace import (
    AXES,
    FOREGROUND,
    LEAST,
    LineMotion,
    bright,
    fourier,
    is_masked,
    undo,
)

#: from the edge of a mask, whose cut is a gradient of its own; edge of the part around the middle
#: of the head that the search looks at, mm
EDGE_MM, EXTENT_MM = 4.0, 150.0
#: of the brightest voxels: what counts as known, where the background is zero
KNOWN = 0.02


@dataclass(frozen=True)
class Wave:
    """A head that swings: pose(line) = size × sin(2π frequency × line + phase).

    Attributes
    ----------
    frequency : cycles per line
    phase : radians, at the centre of k-space
    size : (4,): translation along the array's axes in mm, rotation about ``axis`` in degrees
    axis : of the rotation, through the centre of what is looked at; None for none
    """

    frequency: float
    phase: float
    size: Tensor
    axis: int | None = None


def series(lines: int, frequency: Tensor | float, phase: Tensor | float) -> Tensor:
    """The wave at each line, in FFT order; its mean over the centre of k-space is rest."""
    line = torch.arange(lines, dtype=torch.float32) - lines // 2
    wave = torch.sin(2 * math.pi * frequency * line + phase)
    half = max(lines // 16, 1)
    middle = slice(max(lines // 2 - half, 0), lines // 2 + half + 1)
    return torch.fft.ifftshift(wave - wave[middle].mean())


def poses_of(
    lines: int, frequency: Tensor | float, phase: Tensor | float, size: Tensor
) -> tuple[Tensor, Tensor]:
    """Of a wave: shifts (n, 3) in mm and turns (n,) in degrees, in FFT order."""
    poses = series(lines, frequency, phase)[:, None] * size
    return poses[:, :3], poses[:, 3]


def _inside(support: Tensor, spacing: Sequence[float]) -> Tensor:
    """Where the edge of what is known is EDGE_MM away or more; 1 or 0."""
    filled = scipy.ndimage.binary_fill_holes(support.numpy() > 0)
    depth = scipy.ndimage.distance_transform_edt(filled, sampling=spacing)
    return torch.from_numpy((depth >= EDGE_MM).astype(np.float32))


def gradient_entropy(image: Tensor, where: Tensor) -> Tensor:
    """Entropy of the gradient magnitudes, nats; smaller is sharper (sparser gradients).

    Parameters
    ----------
    image : (X, Y, Z), real or complex, range about 1000
    where : (X, Y, Z), 1 or 0
    """
    size = (image.real**2 + image.imag**2 + LEAST).sqrt() if image.is_complex() else image
    squares = torch.zeros_like(size)
    for axis in AXES:
        step = torch.diff(size, dim=axis)
        squares = squares + torch.cat([step, torch.zeros_like(step.narrow(axis, 0, 1))], axis) ** 2
    gradient = (squares + LEAST).sqrt() * where
    share = gradient / gradient.sum().clamp(min=LEAST)
    return -(share * (share + 1e-12).log()).sum()


class View:
    """The middle of an image for one phase axis: all lines, coarse across them.

    Attributes
    ----------
    image, spacing : float32, mm
    lines : how many phase-encoding lines
    offset_mm : from its centre to the centre of the whole image
    """

    def __init__(
        self, image: Tensor, spacing: Sequence[float], phase_axis: int, target_mm: float
    ) -> None:
        part, start = _middle(image, spacing, phase_axis)
        across = [k for k in AXES if k != phase_axis]
        area = math.prod(part.shape[k] * spacing[k] for k in across)
        small = max(min(math.sqrt(area) / EXTENT_MM, 1.0), 0.5)
        self.image, self.spacing = coarser(part, spacing, target_mm * small, across)
        self.phase_axis = phase_axis
        self.lines = image.shape[phase_axis]
        self.offset_mm = [
            (image.shape[k] - 1) / 2 * spacing[k]
            - start[k] * spacing[k]
            - (self.image.shape[k] - 1) / 2 * self.spacing[k]
            for k in AXES
        ]
        self._head = bright(self.image, FOREGROUND)
        self._support = torch.ones_like(self.image)
        if is_masked(self.image):
            self._support = bright(self.image, KNOWN)
            self._head = self._head * _inside(self._support, self.spacing)
        self._spectrum = fourier(self.image, phase_axis)
        self._before = float(gradient_entropy(self.image, self._head))

    def motion(self, shifts: Tensor, turns: Tensor | None, axis: int | None) -> LineMotion:
        """Motion of the head, seen from the centre of this view."""
        return LineMotion(
            self.phase_axis, self.spacing, shifts, None if axis is None else turns, axis or 0
        )

    def gain(self, shifts: Tensor) -> Tensor:
        """Change of the entropy when these shifts go back through the adjoint: a quick look."""
        image = self.motion(shifts, None, None).adjoint(self._spectrum)
        return gradient_entropy(image, self._head) - self._before

    def gain_undone(
        self, shifts: Tensor, turns: Tensor, axis: int | None, misfit: float = 0.0
    ) -> Tensor:
        """The same when the motion is undone once, with the phase that it makes.

        Without the phase, the entropy is least for a part of a strong motion only.

        Parameters
        ----------
        misfit : nats that are added for the share of the image (root mean square) which the
            result, moved again, does not explain; a motion that is too large leaves more
        """
        motion = self.motion(shifts, turns, axis)
        image = undo(self.image, self._support, motion, 1)
        gain = gradient_entropy(image, self._head) - self._before
        if misfit:
            left = self._support * (motion.forward(image).abs() - self.image)
            gain = gain + misfit * left.norm() / self.image.norm()
        return gain

    def of_wave(self, wave: Wave, misfit: float = 0.0) -> float:
        """The same for a wave."""
        poses = poses_of(self.lines, wave.frequency, wave.phase, wave.size)
        return float(self.gain_undone(*poses, wave.axis, misfit))


def _middle(image: Tensor, spacing: Sequence[float], phase_axis: int) -> tuple[Tensor, list[int]]:
    """At most EXTENT_MM around the middle of the head across the phase axis, and its start."""
    head = bright(image, FOREGROUND)
    start = [0, 0, 0]
    for axis in AXES:
        n = image.shape[axis]
        if axis == phase_axis:
            continue
        profile = head.sum([k for k in AXES if k != axis])
        below = profile.cumsum(0) / profile.sum().clamp(min=1)
        width = int(((below > 0.005) & (below < 0.995)).sum()) + round(2 * EDGE_MM / spacing[axis])
        keep = min(n, width, round(EXTENT_MM / spacing[axis]))
        place = (profile * torch.arange(n)).sum() / profile.sum().clamp(min=1)
        start[axis] = max(0, min(n - keep, round(float(place)) - keep // 2))
        image = image.narrow(axis, start[axis], keep)
    return image.contiguous(), start


def coarser(
    image: Tensor, spacing: Sequence[float], target_mm: float, axes: Sequence[int] = AXES
) -> tuple[Tensor, list[float]]:
    """Voxels of about ``target_mm`` along axes, by cutting k-space; their sizes in mm."""
    result = list(spacing)
    for axis in axes:
        n = image.shape[axis]
        keep = max(round(n * spacing[axis] / target_mm), 8)
        keep += keep % 2
        if keep >= n:
            continue
        spectrum = torch.fft.fftshift(fourier(image, axis), dim=axis)
        spectrum = spectrum.narrow(axis, n // 2 - keep // 2, keep)
        small = torch.fft.ifft(torch.fft.ifftshift(spectrum, dim=axis), dim=axis)
        image = small.real * (keep / n)
        result[axis] *= n / keep
    return image.contiguous(), result
