# SPDX-License-Identifier: Apache-2.0
"""What rigid motion does to k-space during a 3-D read-out, its adjoint, and its inverse.

The scan is the one of :mod:`bmex_bids.degrade.motion`: one pose for each phase-encoding line.  All
functions take torch tensors and can be differentiated with respect to the motion.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

AXES = (0, 1, 2)
#: divisors of magnitudes are at least this, in units of an image whose range is 1000
LEAST = 1e-3
#: of the brightest voxels: what counts as head
FOREGROUND = 0.12
#: share of zeros from which the background counts as masked away
MASKED = 0.3


def is_masked(image: Tensor) -> bool:
    """Whether the background was masked away, so that only the rest is known."""
    return float((image <= 0).double().mean()) > MASKED


def fourier(image: Tensor, axis: int) -> Tensor:
    """Complex Fourier transform along one axis."""
    return torch.fft.fft(image, dim=axis)


def along(values: Tensor, axis: int) -> Tensor:
    """A vector, shaped so that it multiplies a volume along one axis."""
    shape = [1, 1, 1]
    shape[axis] = -1
    return values.reshape(shape)


def over_plane(table: Tensor, first: int, second: int) -> Tensor:
    """A table over two axes, shaped so that it multiplies a volume."""
    shape = [1, 1, 1]
    shape[first], shape[second] = table.shape
    return (table if first < second else table.T).reshape(shape)


class _Shifted(torch.autograd.Function):
    """See :func:`_shifted_lines`; this gradient takes a fifth less time than that of autograd."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, voxels: Tensor, axis: int, by: int) -> Tensor:
        n, whole = image.shape[axis], image.is_complex()
        frequencies = torch.fft.fftfreq(n) if whole else torch.fft.rfftfreq(n)
        ramp = torch.exp(-2j * math.pi * torch.outer(frequencies, voxels))
        ramp = over_plane(ramp, axis, by)
        transform = torch.fft.fft if whole else torch.fft.rfft
        spectrum = transform(image, dim=axis) * ramp
        ctx.save_for_backward(spectrum, ramp, frequencies)
        ctx.n, ctx.whole, ctx.axis, ctx.by = n, whole, axis, by
        if whole:
            return torch.fft.ifft(spectrum, dim=axis)
        return torch.fft.irfft(spectrum, n=n, dim=axis)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:  # type: ignore[override]
        spectrum, ramp, frequencies = ctx.saved_tensors
        n, axis = ctx.n, ctx.axis
        slopes = (torch.fft.fft if ctx.whole else torch.fft.rfft)(grad, dim=axis)
        of_image = of_voxels = None
        if ctx.needs_input_grad[1]:
            weight = frequencies * (2 * math.pi / n)
            if not ctx.whole:  # each frequency but the first and Nyquist's stands for two
                weight[1 : (n + 1) // 2] *= 2
            other = 3 - axis - ctx.by
            table = (slopes.conj() * spectrum).sum(other).imag
            of_voxels = weight @ (table if axis < ctx.by else table.T)
        if ctx.needs_input_grad[0]:
            slopes = slopes * ramp.conj()
            if ctx.whole:
                of_image = torch.fft.ifft(slopes, dim=axis)
            else:
                of_image = torch.fft.irfft(slopes, n=n, dim=axis)
        return of_image, of_voxels, None, None


def _shifted_lines(image: Tensor, voxels: Tensor, axis: int, by: int) -> Tensor:
    """Shift along ``axis`` by ``voxels``, one number for each place along ``by``, in Fourier space.

    Parameters
    ----------
    image : (X, Y, Z), real or complex
    voxels : (n,)
    """
    shifted: Tensor = _Shifted.apply(image, voxels, axis, by)  # type: ignore[no-untyped-call]
    return shifted


def _shear(image: Tensor, axis: int, by: int, slope: Tensor) -> Tensor:
    """Shift each line along ``axis`` by ``slope`` × its distance from the centre along ``by``."""
    distance = torch.arange(image.shape[by], dtype=torch.float32) - (image.shape[by] - 1) / 2
    return _shifted_lines(image, slope * distance, axis, by)


def turned(image: Tensor, axis: int, degrees: Tensor, spacing: Sequence[float]) -> Tensor:
    """Rotate about the centre, right-handed, by three shears in Fourier space (Unser, IEEE Trans.
    Image Process. 1995).

    Parameters
    ----------
    image : (X, Y, Z), real or complex
    degrees : a scalar
    spacing : mm
    """
    a, b = (k for k in AXES if k != axis)
    angle = degrees * (math.pi / 180) * (-1 if axis == 1 else 1)  # (0, 2) is a left-handed pair
    ratio = spacing[b] / spacing[a]
    outer = -torch.tan(angle / 2) * ratio
    middle = torch.sin(angle) / ratio
    return _shear(_shear(_shear(image, a, b, outer), b, a, middle), a, b, outer)


def bright(image: Tensor, share: float) -> Tensor:
    """Where the image is brighter than a share of its 98th percentile; 1 or 0."""
    values = image.flatten()[:: max(image.numel() // 100_000, 1)]
    return (image > share * torch.quantile(values, 0.98)).float()


@dataclass(frozen=True)
class LineMotion:
    """The pose of the head at each phase-encoding line.

    Attributes
    ----------
    phase_axis : of the array
    spacing : mm
    shifts : (n, 3) mm along the array's axes, in the order of FFT frequencies
    turns : (n,) degrees about ``turn_axis`` through the centre; None for none
    levels : how many different rotations are computed
    """

    phase_axis: int
    spacing: Sequence[float]
    shifts: Tensor
    turns: Tensor | None = None
    turn_axis: int = 0
    levels: int = 5

    def _rotations(self, turns: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """(which lines, their mean angle), one for each of at most ``levels`` angles."""
        angles = turns.detach()
        low, high = float(angles.min()), float(angles.max())
        step = (high - low) / self.levels + 1e-9
        label = ((angles - low) / step).floor().clamp(0, self.levels - 1)
        for k in range(self.levels):
            lines = label == k
            if bool(lines.any()):
                yield lines, turns[lines].mean()

    def _shifted(self, lines: Tensor, sign: int) -> Tensor:
        p = self.phase_axis
        voxels = self.shifts / torch.tensor(self.spacing)
        own = torch.fft.fftfreq(lines.shape[p]) * voxels[:, p]
        lines = lines * along(torch.exp(sign * 2j * math.pi * own), p)
        for axis in AXES:
            if axis == p or (
                not self.shifts.requires_grad and float(voxels[:, axis].abs().max()) < 1e-4
            ):
                continue
            lines = _shifted_lines(lines, -sign * voxels[:, axis], axis, p)
        return lines

    def forward(self, image: Tensor) -> Tensor:
        """The complex image of a head that moves so.

        Parameters
        ----------
        image : (X, Y, Z), real: the head at rest
        """
        p = self.phase_axis
        if self.turns is None:
            lines = fourier(image, p)
        else:
            lines = torch.zeros(image.shape, dtype=torch.complex64)
            for which, angle in self._rotations(self.turns):
                pose = fourier(turned(image, self.turn_axis, angle, self.spacing), p)
                lines = lines + pose * along(which.float(), p)
        return torch.fft.ifft(self._shifted(lines, -1), dim=p)

    def adjoint(self, lines: Tensor, *, real: bool = False) -> Tensor:
        """The adjoint of :meth:`forward`, nearly its inverse, for each line is seen once.

        Parameters
        ----------
        lines : (X, Y, Z), complex: an image, in Fourier space along the phase axis
        real : return the real part only, which costs half as much
        """
        p = self.phase_axis
        lines = self._shifted(lines, 1)
        if self.turns is None:
            image = torch.fft.ifft(lines, dim=p)
            return image.real if real else image
        total = torch.zeros(lines.shape, dtype=torch.float32 if real else torch.complex64)
        for which, angle in self._rotations(self.turns):
            part = torch.fft.ifft(lines * along(which.float(), p), dim=p)
            part = part.real.contiguous() if real else part
            total = total + turned(part, self.turn_axis, -angle, self.spacing)
        return total


def undo(
    image: Tensor,
    support: Tensor,
    motion: LineMotion,
    iterations: int,
    start: Tensor | None = None,
) -> Tensor:
    """The head at rest whose moved magnitude is the image.

    The phase that a magnitude image has lost is taken from the estimate moved forward
    (Gerchberg and Saxton, Optik 1972), and the difference goes back through the adjoint.

    Parameters
    ----------
    image : (X, Y, Z) magnitudes
    support : (X, Y, Z), 1 where the image is known and the head may be, else 0
    iterations : two or three; later ones fit what the motion does not explain
    start : result of earlier iterations; None: the image

    Returns
    -------
    (X, Y, Z), never negative, the unit of the image
    """
    estimate = image * support if start is None else start
    for _ in range(iterations):
        moved = motion.forward(estimate)
        size = moved.abs().clamp(min=LEAST)
        missing = moved * (support * (image - size) / size)
        step = motion.adjoint(fourier(missing, motion.phase_axis), real=True)
        estimate = (estimate + 0.9 * step).clamp(min=0) * support
    return estimate
