# SPDX-License-Identifier: Apache-2.0
"""Find periodic motion: the wave that makes the image's gradients sparsest.

The image is put back into focus for many motions, and the entropy of its gradient magnitudes
judges (Atkinson et al., IEEE Trans. Med. Imaging 1997; Loktyushin et al., Magn. Reson. Med. 2013).
A wrong motion can lower the entropy too, by blurring, but then its opposite lowers it as much.
The true one sharpens where its opposite blurs, so that the search starts from the difference.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.ndimage
import scipy.optimize
import torch
from numpy.typing import NDArray
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

#: cycles a line: slower motion blurs rather than ghosts; above a half, waves are the same again
SLOWEST, FASTEST = 0.06, 0.485
#: along an axis with fewer lines no motion is looked for: heads are scanned with twice as many
FEWEST_LINES = 56
#: mm of the cosine that is compared with its opposite
TRIED_MM = 1.2
#: frequencies of a phase axis that are compared so: those whose small cosines promise most
COMPARED = 20
#: of that, which are tried as the cosine's share of the motion
TRIED_SHARES = (0.2, 0.4, 0.75, 1.25)
#: radians, and of the last look
TRIED_PHASES = (math.pi / 2, 0.8, 0.45, 0.22)
PHASES = (1.1, 0.7, 0.45, 0.3, 0.2, 0.12)
#: cycles in the whole scan, beside the frequency of a start
BESIDE = (-2.0, -1.3, -0.6, 0.6, 1.3, 2.0)
#: degrees
TRIED_DEGREES = (-1.6, -0.6, 0.6, 1.6)
#: mm, of the motion that is tried
MOST_MM = 4.0
#: times as large or small as another: a motion of another size
ANOTHER = 1.7
#: starts that are looked at, looked around, and then followed; steps of each
CANDIDATES, FOLLOWED, DESCENTS = 6, 3, 4
EVALUATIONS = 14
#: of the first look and of the last one, mm, across the phase axis (along it all lines stay)
COARSE_MM, FINE_MM = 3.5, 2.8
#: from the edge of a mask, whose cut is a gradient of its own; edge of the part around the middle
#: of the head that the search looks at, mm
EDGE_MM, EXTENT_MM = 4.0, 150.0
#: of the brightest voxels: what counts as known, where the background is zero
KNOWN = 0.02
#: in which the search counts: 1 mm, 1 degree, cycles in the whole scan, radians
UNITS = np.array([1.0, 1.0, 1.0, 1.0, 0.5, 0.7])
#: entropies are so many times larger for the search, whose first step is one unit long at most
STEEP = 100.0
#: nats by which a wave without rotation must lower the entropy to be followed
PROMISING = 0.001
#: nats for the share of the image that a head at rest, moved again, does not explain
MISFIT = 0.6
#: shares of the cosine and of the sine of a motion that may be too large
SMALLER = ((1.0, 1.0), (0.7, 1.0), (0.4, 1.0), (0.7, 0.6), (0.4, 0.6))


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


@dataclass(frozen=True)
class Found:
    """The best wave of one phase axis.

    Attributes
    ----------
    gain : change of the gradients' entropy, negative where it sharpens
    signed : how much more the best start sharpens than its opposite (see the module)
    """

    phase_axis: int
    wave: Wave
    gain: float
    signed: float


def _series(lines: int, frequency: Tensor | float, phase: Tensor | float) -> Tensor:
    """The wave at each line, in FFT order; its mean over the centre of k-space is rest."""
    line = torch.arange(lines, dtype=torch.float32) - lines // 2
    wave = torch.sin(2 * math.pi * frequency * line + phase)
    half = max(lines // 16, 1)
    middle = slice(max(lines // 2 - half, 0), lines // 2 + half + 1)
    return torch.fft.ifftshift(wave - wave[middle].mean())


def _poses(
    lines: int, frequency: Tensor | float, phase: Tensor | float, size: Tensor
) -> tuple[Tensor, Tensor]:
    """Of a wave: shifts (n, 3) in mm and turns (n,) in degrees, in FFT order."""
    poses = _series(lines, frequency, phase)[:, None] * size
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
        poses = _poses(self.lines, wave.frequency, wave.phase, wave.size)
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


@torch.no_grad()
def _signed(view: View, frequency: float) -> NDArray[np.float64]:
    """(3,): how much more a cosine along each axis sharpens than its opposite.

    A sine and its opposite move the head the same way, but backwards in time, and the magnitude
    does not tell one from the other.
    """
    wave = _series(view.lines, frequency, math.pi / 2)
    result = np.zeros(3)
    for axis in AXES:
        shifts = torch.zeros(view.lines, 3)
        shifts[:, axis] = TRIED_MM * wave
        result[axis] = float(view.gain(-shifts)) - float(view.gain(shifts))
    return result


def _promising(view: View, frequencies: NDArray[np.float64]) -> NDArray[np.intp]:
    """Which frequencies to compare: where the slope of the entropy at rest, or beside it, is large.

    One pass backwards gives the slope for the shifts of each line, thus for all cosines; comparing
    those of TRIED_MM with their opposites takes six passes for each.
    """
    shifts = torch.zeros(view.lines, 3, requires_grad=True)
    (slope,) = torch.autograd.grad(view.gain(shifts), shifts)
    waves = torch.stack([_series(view.lines, float(f), math.pi / 2) for f in frequencies])
    size = (waves @ slope).norm(dim=1).numpy()
    beside = scipy.ndimage.maximum_filter1d(size, 3)
    return np.sort(np.argsort(beside)[::-1][:COMPARED])


def starts(view: View, count: int = 3) -> list[tuple[float, Wave]]:
    """The best starts of one phase axis, [(how much more than the opposite, wave)]."""
    frequencies = np.arange(SLOWEST, FASTEST, 1 / view.lines)
    frequencies = frequencies[_promising(view, frequencies)]
    table = np.stack([_signed(view, float(f)) for f in frequencies])
    sizes = np.sqrt((table**2).sum(1))
    taken: list[int] = []
    for k in np.argsort(sizes)[::-1]:
        if all(abs(frequencies[k] - frequencies[j]) > 3 / view.lines for j in taken):
            taken.append(int(k))
        if len(taken) == count:
            break
    result = []
    for k in taken:
        size = torch.zeros(4)
        size[:3] = torch.tensor(table[k] / sizes[k] * TRIED_MM, dtype=torch.float32)
        result.append((float(sizes[k]), Wave(float(frequencies[k]), math.pi / 2, size)))
    return result


def descend(view: View, wave: Wave, evaluations: int, misfit: float = 0.0) -> tuple[float, Wave]:
    """Follow the gradient of the entropy (L-BFGS); the best wave on the way, and its gain.

    Gain 0 and the wave that was given where nothing on the way lowers the entropy.  With the
    misfit of :meth:`View.gain_undone`, the best wave of all, and the sum of both.
    """
    best = (math.inf if misfit else 0.0, wave)

    def entropy(scaled: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        nonlocal best
        numbers = torch.tensor(scaled * UNITS, dtype=torch.float32, requires_grad=True)
        poses = _poses(view.lines, numbers[4] / view.lines, numbers[5], numbers[:4])
        gain = view.gain_undone(*poses, wave.axis, misfit)
        (slope,) = torch.autograd.grad(gain, numbers)
        value = float(gain.detach())
        if value < best[0]:
            now = numbers.detach()
            best = (
                value,
                Wave(float(now[4]) / view.lines, float(now[5]), now[:4].clone(), wave.axis),
            )
        return value * STEEP, slope.numpy().astype(np.float64) * UNITS * STEEP

    start = np.array([*wave.size.tolist(), wave.frequency * view.lines, wave.phase]) / UNITS
    scipy.optimize.minimize(
        entropy, start, jac=True, method="L-BFGS-B", options={"maxfun": evaluations}
    )
    return best


@torch.no_grad()
def _with_sine(view: View, wave: Wave, phases: Sequence[float]) -> list[tuple[float, Wave]]:
    """[(gain, wave)] of waves with the same cosine and more of a sine, the best first.

    The start shows the cosine's share only (see :func:`_signed`); ± the phase is the same image.
    """
    cosine = wave.size * math.sin(wave.phase)
    tried = []
    for phase in phases:
        size = cosine / math.sin(phase)
        if float(size[:3].norm()) < MOST_MM:
            other = replace(wave, phase=phase, size=size)
            tried.append((view.of_wave(other), other))
    return sorted(tried, key=lambda pair: pair[0])


def _tried(view: View, wave: Wave) -> list[tuple[float, Wave]]:
    """Amplitudes and phases of a start, the best first."""
    shares = [replace(wave, size=wave.size * share) for share in TRIED_SHARES]
    pairs = [pair for one in shares for pair in _with_sine(view, one, TRIED_PHASES)]
    return sorted(pairs, key=lambda pair: pair[0])


def _with_turn(view: View, wave: Wave) -> tuple[float, Wave]:
    """The wave with the rotation that sharpens most, if one does."""
    tried = []
    with torch.no_grad():
        for axis in AXES:
            for degrees in TRIED_DEGREES:
                size = wave.size.clone()
                size[3] = degrees
                candidate = replace(wave, size=size, axis=axis)
                tried.append((view.of_wave(candidate), candidate))
    tried.sort(key=lambda pair: pair[0])
    chosen = tried[:1]
    for pair in tried[1:]:
        if len(chosen) < 3 and all(_apart(pair[1], other) for _, other in chosen):
            chosen.append(pair)
    refined = [descend(view, candidate, 14) for _, candidate in chosen]
    return min(refined, key=lambda pair: pair[0])


def _apart(one: Wave, other: Wave) -> bool:
    return one.axis != other.axis or float(one.size[3] * other.size[3]) < 0


@dataclass(frozen=True)
class _Tried:
    """A wave along one phase axis; ``signed`` is of the start that it comes from."""

    gain: float
    wave: Wave
    axis: int
    signed: float


def _around(view: View, start: _Tried) -> list[_Tried]:
    """The best of amplitudes, phases and frequencies near a start, and the best of another size.

    Between a small and a large motion may lie a barrier.
    """
    pairs = list(_tried(view, start.wave))
    for cycles in BESIDE:
        beside = start.wave.frequency + cycles / view.lines
        pairs += _tried(view, replace(start.wave, frequency=beside))
    pairs.sort(key=lambda pair: pair[0])
    best = pairs[0]
    size = best[1].size.norm()
    others = [p for p in pairs if not 1 / ANOTHER < float(p[1].size.norm() / size) < ANOTHER]
    return [_Tried(*pair, start.axis, start.signed) for pair in (best, *others[:1])]


def _candidates(views: Mapping[int, View], least_signed: float) -> list[_Tried]:
    """What is followed, the best first; empty where no start is good enough."""
    found = [
        (signed, axis, wave)
        for axis, view in views.items()
        for signed, wave in starts(view)
        if signed >= least_signed
    ]
    found = sorted(found, key=lambda f: -f[0])[:CANDIDATES]
    looked = [
        (_tried(views[axis], wave)[0][0], _Tried(0.0, wave, axis, signed))
        for signed, axis, wave in found
    ]
    looked.sort(key=lambda pair: pair[0])
    near = [one for _, start in looked[:FOLLOWED] for one in _around(views[start.axis], start)]
    return sorted(near, key=lambda one: one.gain)[:DESCENTS]


def find(
    image: Tensor, spacing: Sequence[float], least_signed: float
) -> tuple[Found, View] | None:
    """The motion that explains an image best, or None where no start is good enough.

    Parameters
    ----------
    image : (X, Y, Z) float32, range about 1000
    spacing : mm
    least_signed : how much more than its opposite a start must sharpen (nats)

    Returns
    -------
    what was found, and the view from whose centre its rotation is counted
    """
    axes = [axis for axis in AXES if image.shape[axis] >= FEWEST_LINES]
    views = {axis: View(image, spacing, axis, COARSE_MM) for axis in axes}
    followed = []
    for start in _candidates(views, least_signed):
        gain, wave = descend(views[start.axis], start.wave, EVALUATIONS)
        followed.append(replace(start, gain=gain, wave=wave))
    best = min(followed, key=lambda one: one.gain, default=None)
    if best is None or best.gain > -PROMISING:
        return None
    _, wave = _with_turn(views[best.axis], best.wave)
    view = View(image, spacing, best.axis, FINE_MM)
    gain, wave = descend(view, wave, EVALUATIONS)
    with_sine = _with_sine(view, wave, PHASES)
    if with_sine:
        more, other = descend(view, with_sine[0][1], EVALUATIONS)
        if more < gain:
            gain, wave = more, other
    return Found(best.axis, wave, gain, best.signed), view


def smaller(found: Found, view: View) -> Found:
    """What explains the image best where the motion that was found is too large.

    A coarse view hides what too large a motion blurs.  The misfit shows it, but takes longer.
    """
    wave = found.wave
    cosine, sine = math.sin(wave.phase), math.cos(wave.phase)
    tried = []
    with torch.no_grad():
        for of_cosine, of_sine in SMALLER:
            a, b = of_cosine * cosine, of_sine * sine
            start = replace(wave, phase=math.atan2(a, b), size=wave.size * math.hypot(a, b))
            tried.append((view.of_wave(start, MISFIT), start))
    tried.sort(key=lambda pair: pair[0])
    _, wave = descend(view, tried[0][1], EVALUATIONS, MISFIT)
    with torch.no_grad():
        return replace(found, wave=wave, gain=view.of_wave(wave))


def of_whole_image(
    wave: Wave, view: View, spacing: Sequence[float], away_mm: Sequence[float] = (0, 0, 0)
) -> LineMotion:
    """The same motion, with its turns about the centre of the whole image, or ``away_mm`` from it.

    A turn about another point is a turn about the centre and a shift by angle × distance.
    """
    shifts, turns = _poses(view.lines, wave.frequency, wave.phase, wave.size)
    if wave.axis is None:
        return LineMotion(view.phase_axis, spacing, shifts)
    a, b = ((1, 2), (2, 0), (0, 1))[wave.axis]
    angle = turns * (math.pi / 180)
    shifts = shifts.clone()
    shifts[:, a] -= angle * (view.offset_mm[b] + away_mm[b])
    shifts[:, b] += angle * (view.offset_mm[a] + away_mm[a])
    return LineMotion(view.phase_axis, spacing, shifts, turns, wave.axis, levels=7)
