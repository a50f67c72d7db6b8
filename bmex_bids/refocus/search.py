# SPDX-License-Identifier: Apache-2.0
"""Find periodic motion: the wave that makes the image's gradients sparsest.

The image is put back into focus for many motions, and the entropy of its gradient magnitudes
judges (Atkinson et al., IEEE Trans. Med. Imaging 1997; Loktyushin et al., Magn. Reson. Med. 2013).
A wrong motion can lower the entropy too, by blurring, but then its opposite lowers it as much.
The true one sharpens where its opposite blurs, so that the search starts from the difference.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.ndimage
import scipy.optimize
import torch
from numpy.typing import NDArray
from torch import Tensor

from bmex_bids.refocus.kspace import AXES, LineMotion
from bmex_bids.refocus.lines import beat_of
from bmex_bids.refocus.view import View, Wave, poses_of, series

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
#: of an odd motion: directions (an opposite is the same image), mm and radians that are tried
DIRECTIONS = tuple(turn for turn in itertools.product((-1, 0, 1), repeat=3) if turn > (0, 0, 0))
ODD_MM, ODD_PHASE = (0.7, 1.4), 0.15
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
#: in which the search counts: 1 mm, 1 degree, cycles in the whole scan, radians
UNITS = np.array([1.0, 1.0, 1.0, 1.0, 0.5, 0.7])
#: entropies are so many times larger for the search, whose first step is one unit long at most
STEEP = 100.0
#: the same for an odd motion, which coarser voxels hide
ODD_COARSE_MM, ODD_FINE_MM = 2.5, 2.0
#: nats by which a wave without rotation must lower the entropy to be followed
PROMISING = 0.001
#: nats for the share of the image that a head at rest, moved again, does not explain
MISFIT = 0.6
#: shares of the cosine and of the sine of a motion that may be too large
SMALLER = ((1.0, 1.0), (0.7, 1.0), (0.4, 1.0), (0.7, 0.6), (0.4, 0.6))


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


@torch.no_grad()
def _signed(view: View, frequency: float) -> NDArray[np.float64]:
    """(3,): how much more a cosine along each axis sharpens than its opposite.

    A sine and its opposite move the head the same way, but backwards in time, and the magnitude
    does not tell one from the other.
    """
    wave = series(view.lines, frequency, math.pi / 2)
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
    waves = torch.stack([series(view.lines, float(f), math.pi / 2) for f in frequencies])
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
        poses = poses_of(view.lines, numbers[4] / view.lines, numbers[5], numbers[:4])
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
    views = {axis: View(image, spacing, axis, COARSE_MM) for axis in _looked_at(image)}
    return _followed(image, spacing, views, _candidates(views, least_signed), FINE_MM)


def find_odd(image: Tensor, spacing: Sequence[float]) -> tuple[Found, View] | None:
    """The same for a motion that is odd about the centre of k-space, which hardly beats its opposite.

    Phase axis and frequency come from the lines of k-space (:func:`lines.beat_of`).
    """
    views: dict[int, View] = {}
    near: list[_Tried] = []
    for axis in _looked_at(image):
        beat = beat_of(image, axis)
        if beat is None:
            continue
        views[axis] = View(image, spacing, axis, ODD_COARSE_MM)
        for frequency in (beat / 2, (1 - beat) / 2):
            if SLOWEST <= frequency <= FASTEST:
                near += _odd(views[axis], frequency)
    near.sort(key=lambda one: one.gain)
    return _followed(image, spacing, views, near[:DESCENTS], ODD_FINE_MM)


def _looked_at(image: Tensor) -> list[int]:
    return [axis for axis in AXES if image.shape[axis] >= FEWEST_LINES]


@torch.no_grad()
def _odd(view: View, frequency: float) -> list[_Tried]:
    """Odd motions of one frequency, in all directions."""
    tried = []
    for direction in DIRECTIONS:
        way = torch.tensor([*direction, 0], dtype=torch.float32)
        for length in ODD_MM:
            wave = Wave(frequency, ODD_PHASE, way / way.norm() * length)
            tried.append(_Tried(view.of_wave(wave), wave, view.phase_axis, 0.0))
    return tried


def _followed(
    image: Tensor,
    spacing: Sequence[float],
    views: Mapping[int, View],
    near: Sequence[_Tried],
    fine_mm: float,
) -> tuple[Found, View] | None:
    """The best of what starts lead to; None where none leads anywhere."""
    followed = []
    for start in near:
        gain, wave = descend(views[start.axis], start.wave, EVALUATIONS)
        followed.append(replace(start, gain=gain, wave=wave))
    best = min(followed, key=lambda one: one.gain, default=None)
    if best is None or best.gain > -PROMISING:
        return None
    _, wave = _with_turn(views[best.axis], best.wave)
    view = View(image, spacing, best.axis, fine_mm)
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
    shifts, turns = poses_of(view.lines, wave.frequency, wave.phase, wave.size)
    if wave.axis is None:
        return LineMotion(view.phase_axis, spacing, shifts)
    a, b = ((1, 2), (2, 0), (0, 1))[wave.axis]
    angle = turns * (math.pi / 180)
    shifts = shifts.clone()
    shifts[:, a] -= angle * (view.offset_mm[b] + away_mm[b])
    shifts[:, b] += angle * (view.offset_mm[a] + away_mm[a])
    return LineMotion(view.phase_axis, spacing, shifts, turns, wave.axis, levels=7)
