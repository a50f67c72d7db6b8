# SPDX-License-Identifier: Apache-2.0
"""Two faults that k-space itself betrays: lines of unequal strength, and spikes.

Pulsation, breathing and unequal echoes make each so-many-th line too weak, which puts ghosts into
the image.  The energy of the lines of a still head changes smoothly, so that such a pattern stands
out.  A spike is one sample that is far too strong, and puts stripes over the image (Graves and
Mitchell, J. Magn. Reson. Imaging 2013, describe both).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.ndimage
import torch
from numpy.typing import NDArray
from torch import Tensor

from bmex_bids.common.noise import robust_deviation
from bmex_bids.refocus.kspace import AXES, FOREGROUND, LEAST, along, bright, fourier

Vector = NDArray[np.float64]

#: lines to each side with which a line's energy is compared (median)
NEIGHBOURS = 8
#: lines from the centre of k-space, and share of all lines, between which the pattern is measured
INNER, OUTER = 8, 0.46
#: lines after which the pattern may repeat; thick slices make longer ones
SHORTEST, LONGEST = 2, 16
#: root mean square of the logarithm of the lines' strength; where a pattern is
#: found in still heads, it has less than 0.001
LEAST_UNEVEN = 0.03
#: share of what is uneven that the pattern must explain
LEAST_EXPLAINED = 0.6
#: times that the pattern is measured again in the mended image: a mask hides a part of it
ROUNDS = 4
#: iterations of :func:`UnevenLines.undo`
ITERATIONS = 3
#: a line that is weaker is not raised in full, for its noise would be
WEAKEST = 0.14
#: size of a wave in the logarithm of the lines' strength, and over the median of all frequencies:
#: what odd motion makes; still images have at most a third of the first, moved ones five times that
LEAST_BEAT, BEAT_RATIO = 0.015, 7.0
#: cycles a line, of the slowest such wave; lines that must be measured; values that are cut, in
#: standard deviations
SLOWEST_BEAT, FEWEST_MEASURED, BEAT_CUT = 0.05, 32, 4.0
#: voxels to each side of a sample of k-space that it is compared with
AROUND = 3
#: cycles in the field of view from the axes of k-space within which no spike is looked for
CENTRE = 8
#: times the mean size of its neighbours; still heads have 4 to 6.5
SPIKE = 9.0
#: spikes that are looked for; one may need a second fit
MOST_SPIKES = 16
#: a spike whose correction is a smaller share of the first one is done
SPIKE_DONE = 0.02
#: voxels over which the detail is taken that a spike is measured in
DETAIL = 5


@dataclass(frozen=True)
class UnevenLines:
    """Lines of k-space whose strength follows a pattern.

    Attributes
    ----------
    phase_axis : of the array
    period : lines after which the pattern repeats
    weights : (n,) strength of each line in FFT order; 1 for a usual line
    """

    phase_axis: int
    period: float
    weights: Tensor

    def undo(self, image: Tensor, support: Tensor) -> Tensor:
        """The image whose lines, made uneven so, give the image.

        Parameters
        ----------
        image : (X, Y, Z), never negative
        support : (X, Y, Z), 1 where the image is known and the head may be, else 0
        """
        axis = self.phase_axis
        back = along(self.weights / (self.weights**2 + WEAKEST**2), axis)
        dark = image <= 0
        estimate = image * support
        for _ in range(ITERATIONS):
            uneven = torch.fft.ifft(fourier(estimate, axis) * along(self.weights, axis), dim=axis)
            size = uneven.abs().clamp(min=LEAST)
            missing = uneven * (support * (image - size) / size)
            # negative values that were cut to zero are not known
            missing = torch.where(dark & (uneven.real < 0), torch.zeros_like(missing), missing)
            step = torch.fft.ifft(fourier(missing, axis) * back, dim=axis).real
            estimate = (estimate + step).clamp(min=0) * support
        return estimate

    def facts(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "PhaseEncodingAxis": self.phase_axis,
            "Period": round(self.period, 2),
            "WeakestLine": round(float(self.weights.min() / self.weights.max()), 2),
        }


def _unevenness(image: Tensor, axis: int) -> Vector:
    """Half the logarithm of each line's energy over the median of its neighbours, centred."""
    energy = (fourier(image, axis).abs() ** 2).sum([k for k in AXES if k != axis])
    half = np.fft.fftshift(0.5 * np.log(energy.numpy().astype(np.float64) + LEAST))
    return np.asarray(half - scipy.ndimage.median_filter(half, 2 * NEIGHBOURS + 1, mode="mirror"))


def _measured(lines: int) -> NDArray[np.int64]:
    """The lines in which the pattern is measured, counted from the centre of k-space."""
    line = np.arange(lines) - lines // 2
    return line[(np.abs(line) >= INNER) & (np.abs(line) < OUTER * lines)]


def _wave(line: NDArray[np.int64], period: float) -> NDArray[np.float64]:
    angle = 2 * np.pi * line / period
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


@dataclass(frozen=True)
class _Pattern:
    """Logarithm of the lines' strength: a table of a whole period, or a cosine and a sine."""

    period: float
    table: Vector
    is_wave: bool

    @classmethod
    def fit(cls, uneven: Vector, period: float, *, is_wave: bool) -> _Pattern:
        """Of the measured lines; zero for the usual line."""
        line = _measured(len(uneven))
        values = uneven[line + len(uneven) // 2]
        if is_wave:
            table = np.linalg.lstsq(_wave(line, period), values, rcond=None)[0]
            return cls(period, table.astype(np.float64), True)
        place = line % int(period)
        table = np.array([np.median(values[place == k]) for k in range(int(period))])
        return cls(period, table - np.median(table), False)

    def at(self, line: NDArray[np.int64]) -> Vector:
        if self.is_wave:
            return np.asarray(_wave(line, self.period) @ self.table)
        return self.table[line % int(self.period)]

    def more(self, uneven: Vector) -> _Pattern:
        """With what is left of it in a mended image."""
        rest = _Pattern.fit(uneven, self.period, is_wave=self.is_wave)
        return _Pattern(self.period, self.table + rest.table, self.is_wave)

    def weights(self, lines: int) -> Tensor:
        """In FFT order; the centre of k-space, which holds the brightness, is a usual line."""
        line = np.arange(lines) - lines // 2
        strength = self.at(line)
        if self.is_wave:
            strength = strength - strength[lines // 2]
        else:
            strength[lines // 2] = 0
        return torch.from_numpy(np.fft.ifftshift(np.exp(strength)).astype(np.float32))


def _best_pattern(uneven: Vector) -> tuple[float, _Pattern] | None:
    """The pattern that explains most, and how large it is; None where nothing repeats."""
    line = _measured(len(uneven))
    if len(line) < 4 * LONGEST:
        return None
    values = uneven[line + len(uneven) // 2]
    total = len(values) * float(values.var()) + 1e-12
    periods = [(float(p), False) for p in range(SHORTEST, LONGEST + 1)]
    frequencies = np.arange(1 / LONGEST, 1 / SHORTEST, 0.25 / len(uneven))
    periods += [(float(1 / f), True) for f in frequencies]
    tried = []
    for period, is_wave in periods:
        pattern = _Pattern.fit(uneven, period, is_wave=is_wave)
        left = len(values) * float((values - pattern.at(line)).var())
        numbers = len(pattern.table) + is_wave
        tried.append((1 - left / total - numbers / len(line), numbers, pattern))
    most = max(explained for explained, _, _ in tried)
    if most < LEAST_EXPLAINED:
        return None
    _, _, pattern = min((t for t in tried if t[0] > most - 0.005), key=lambda t: t[1])
    return math.sqrt(most * total / len(line)), pattern


def find_uneven_lines(image: Tensor, support: Tensor) -> UnevenLines | None:
    """The pattern of the lines' strength, or None where they are even.

    Parameters
    ----------
    image : (X, Y, Z) float32, range about 1000
    support : (X, Y, Z), 1 where the image is known, else 0
    """
    found = []
    for axis in AXES:
        best = _best_pattern(_unevenness(image, axis))
        if best is not None and best[0] >= LEAST_UNEVEN:
            found.append((*best, axis))
    if not found:
        return None
    _, pattern, axis = max(found, key=lambda f: f[0])
    lines = image.shape[axis]
    result = UnevenLines(axis, pattern.period, pattern.weights(lines))
    for _ in range(ROUNDS):
        pattern = pattern.more(_unevenness(result.undo(image, support), axis))
        result = UnevenLines(axis, pattern.period, pattern.weights(lines))
    return result


def beat_of(image: Tensor, axis: int) -> float | None:
    """Frequency of a wave in the lines' strength, cycles a line; None where none stands out.

    A magnitude image hides most of a motion that is odd about the centre of k-space, but the strength
    of its lines then beats at twice the frequency of the motion.

    Parameters
    ----------
    image : (X, Y, Z) float32, range about 1000
    """
    uneven = _unevenness(image, axis)
    line = _measured(len(uneven))
    if len(line) < FEWEST_MEASURED:
        return None
    values = uneven[line + len(uneven) // 2]
    values = values - values.mean()
    most = BEAT_CUT * robust_deviation(values)
    values = np.clip(values, -most, most)
    frequencies = np.arange(SLOWEST_BEAT, 0.5, 0.25 / len(uneven))
    turns = np.exp(-2j * np.pi * np.outer(frequencies, line))
    sizes = 2 * np.abs(turns @ values) / len(line)
    best = int(sizes.argmax())
    if sizes[best] < max(LEAST_BEAT, BEAT_RATIO * float(np.median(sizes))):
        return None
    return float(frequencies[best])


@dataclass(frozen=True)
class Spike:
    """One sample of k-space that is too strong.

    Attributes
    ----------
    place : cycles in the field of view along each axis
    size : (2,) of the cosine and the sine that it adds, the image's unit
    """

    place: tuple[int, int, int]
    size: tuple[float, float]

    def stripes(self, shape: torch.Size | tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """The cosine and the sine, of size 1."""
        turn = torch.ones(1, dtype=torch.complex64)
        for axis, (cycles, n) in enumerate(zip(self.place, shape, strict=True)):
            angle = torch.arange(n, dtype=torch.float64) * (2 * math.pi * cycles / n)
            turn = turn * along(torch.polar(torch.ones_like(angle), angle).to(turn.dtype), axis)
        return turn.real, turn.imag


def _around(image: Tensor) -> list[int]:
    """Over how many samples a spike is compared: a part that is not zero blurs its k-space."""
    result = []
    for axis in AXES:
        others = tuple(k for k in AXES if k != axis)
        used = torch.nonzero(image.amax(others) > 0)
        extent = float(used.max() - used.min() + 1) if len(used) else 1.0
        result.append(2 * round(AROUND * image.shape[axis] / extent) + 1)
    return result


def _strongest(image: Tensor) -> tuple[int, int, int] | None:
    """The place of the sample that stands out most from its neighbours, if it is a spike."""
    size = torch.fft.rfftn(image).abs()
    size = torch.fft.fftshift(size, dim=(0, 1)).numpy()
    usual = scipy.ndimage.uniform_filter(size, _around(image), mode="nearest")
    height = size / (usual + LEAST * size.mean())
    place = [np.arange(n) - n // 2 for n in height.shape[:2]]
    first, second, third = np.ix_(*place, np.arange(height.shape[2]))
    # the edges of the field of view and repeated slices lie along the axes
    squares = first**2, second**2, third**2
    for axis in AXES:
        height[sum(squares) - squares[axis] < CENTRE**2] = 0
    best = np.unravel_index(int(height.argmax()), height.shape)
    if height[best] < SPIKE:
        return None
    return int(place[0][best[0]]), int(place[1][best[1]]), int(best[2])


def _detail(image: Tensor) -> Tensor:
    smooth = scipy.ndimage.uniform_filter(image.numpy(), DETAIL, mode="nearest")
    return image - torch.from_numpy(smooth)


def _deep_in(image: Tensor) -> Tensor:
    """The head, away from its edge, where values may be cut at zero."""
    filled = scipy.ndimage.binary_fill_holes(bright(image, FOREGROUND).numpy() > 0)
    return torch.from_numpy(scipy.ndimage.binary_erosion(filled, iterations=DETAIL // 2))


def without_spikes(image: Tensor) -> tuple[Tensor, list[Spike]]:
    """The image without the stripes of spikes, and the spikes; the image itself where none is.

    Parameters
    ----------
    image : (X, Y, Z) float32, never negative; what is zero stays zero
    """
    spikes: dict[tuple[int, int, int], Spike] = {}
    result = image
    head = torch.zeros(0)
    for _ in range(MOST_SPIKES):
        strongest = _strongest(result)
        if strongest is None:
            break
        head = head if len(head) else _deep_in(image)
        unit = Spike(strongest, (0.0, 0.0))
        cosine, sine = unit.stripes(image.shape)
        parts = [_detail(part)[head] for part in (cosine, sine)]
        wanted = _detail(result)[head]
        table = torch.stack([torch.stack([a @ b for b in parts]) for a in parts]).double()
        size = torch.linalg.lstsq(
            table, torch.stack([a @ wanted for a in parts]).double()
        ).solution
        before = spikes.get(unit.place, unit).size
        largest = max((math.hypot(*spike.size) for spike in spikes.values()), default=0.0)
        if float(size.norm()) < SPIKE_DONE * largest:
            break
        result = result - (float(size[0]) * cosine + float(size[1]) * sine)
        result = torch.where(image > 0, result, torch.zeros_like(result))
        whole = (before[0] + float(size[0]), before[1] + float(size[1]))
        spikes[unit.place] = Spike(unit.place, whole)
    return result.clamp(min=0) if spikes else image, list(spikes.values())
