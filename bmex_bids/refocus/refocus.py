# SPDX-License-Identifier: Apache-2.0
"""Faults of the read-out, found in the image itself and undone.

Interpolated thick slices first, then in k-space spikes, lines of unequal strength and rigid motion,
periodic or else by jumps; noise last, or before slices that it hides.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import scipy.ndimage
import torch
from numpy.typing import NDArray
from torch import Tensor

from bmex_bids.common.boxes import bounding_box
from bmex_bids.refocus.evidence import MM_A_DEGREE
from bmex_bids.refocus.grain import Denoise, Grain, find_grain
from bmex_bids.refocus.jumps import Hints, find_jumps
from bmex_bids.refocus.kspace import FOREGROUND, LineMotion, bright, is_masked, undo
from bmex_bids.refocus.lines import UnevenLines, find_uneven_lines, without_spikes
from bmex_bids.refocus.search import (
    FEWEST_LINES,
    Found,
    find,
    find_odd,
    of_whole_image,
    smaller,
)
from bmex_bids.refocus.thick import Within, find_thick_slices
from bmex_bids.refocus.view import View, coarser, gradient_entropy

Array = NDArray[np.float32]

#: how much more than its opposite a motion must sharpen, nats; still images stay below
LEAST_SIGNED = 0.0062
#: by how much undoing the motion must lower the entropy of the gradients, nats; the same
LEAST_GAIN = 0.005
#: the same in the whole image, where the coarse view of a search may be wrong
LEAST_GAIN_WHOLE = 0.006
#: both for an odd motion, of which the lines of k-space tell too
LEAST_GAIN_ODD, LEAST_GAIN_WHOLE_ODD = 0.0015, 0.004
#: share of what the coarse view gains that the whole image must gain: too large a motion sharpens
#: only the view
LEAST_SHARE = 0.5
#: mm or degrees, amplitude: a larger motion is not one that a scan survives, but noise fitted
MOST = 8.0
#: share of its brightness: an image of a smaller range shows nothing
FLAT = 1e-5
#: edge of the voxels in which the whole image is judged, mm: in smaller ones noise outweighs it
JUDGED_MM = 1.6
#: voxels around a stripped brain that are kept while its motion is undone
MARGIN = 8
#: cycles per line
SAME_FREQUENCY = 0.01
#: of a coarse voxel, the share within the head that counts as within
INSIDE = 0.9
#: of :func:`~bmex_bids.refocus.kspace.undo`; a brain stripped after it moved loses by more
ITERATIONS = 2
#: more of them, each as long as the entropy rises by at most this share of what was gained; they
#: lessen the error where the motion is right, and sharpen noise
MORE_ITERATIONS, SLACK = 2, 0.12
NOTHING = "no thick slices, motion, uneven lines, spikes or strong noise found"


@dataclass(frozen=True)
class Refocused:
    """What :func:`refocus` made of an image.

    Attributes
    ----------
    image : (X, Y, Z) float32, the units of the input; the input itself where not applied
    applied : whether anything was undone
    reason : plain English, such as ``"periodic motion of 1.9 mm along axis 1"``
    motion : ready for JSON, empty where none was undone: ``PhaseEncodingAxis`` (0 to 2, of the
        LPS array), ``Model``, ``RMSDisplacement`` (mm); of periodic motion ``Frequency`` (cycles per
        line), ``Translation`` (mm, amplitude along the array's axes), ``Rotation`` (degrees,
        amplitude), ``RotationAxis``; of jumps :meth:`bmex_bids.refocus.jumps.Jumps.facts`
    lines : ready for JSON, empty where the lines are even:
        :meth:`bmex_bids.refocus.lines.UnevenLines.facts`
    spikes : how many were removed
    slices : ready for JSON, empty where none are thick: :meth:`bmex_bids.refocus.thick.ThickSlices.facts`
    noise : ready for JSON, empty where none was taken off: :meth:`bmex_bids.refocus.grain.Grain.facts`
    entropy_before, entropy_after : of the gradient magnitudes in the head, nats; smaller is sharper
    """

    image: Array
    applied: bool
    reason: str
    motion: dict[str, Any]
    entropy_before: float
    entropy_after: float
    lines: dict[str, Any] = field(default_factory=dict)
    spikes: int = 0
    slices: dict[str, Any] = field(default_factory=dict)
    noise: dict[str, Any] = field(default_factory=dict)


def refocus(
    image: Array,
    spacing: Sequence[float],
    *,
    num_threads: int = 1,
    within: Within | None = None,
    denoise: Denoise | None = None,
    hints: Hints | None = None,
) -> Refocused:
    """Undo thick slices, spikes, uneven lines, rigid motion during the read-out, and noise.

    Motion is undone where that makes the image clearly sharper.  All three axes are tried as
    phase-encoding axis.  An image without any of these comes back as it is.

    Parameters
    ----------
    image : (X, Y, Z) float32, finite: a head or a brain, axes LPS, on the scanner's grid
    spacing : voxel sizes, mm
    num_threads : for the transforms
    within : betters what is estimated within thick slices; see
        :meth:`bmex_bids.refocus.thick.ThickSlices.undo`
    denoise : tells the noise of an image; None: noise stays
    hints : networks that hint at jumps of the head; None: jumps stay

    Raises
    ------
    ValueError
        The image has not three dimensions, or a value is not finite.
    """
    data = np.ascontiguousarray(image, dtype=np.float32)
    if data.ndim != 3 or not np.isfinite(data).all():
        raise ValueError(
            f"expected a finite image of three dimensions, got {data.ndim} dimensions"
            f"{'' if np.isfinite(data).all() else ' and values that are not finite'}"
        )
    known = data[data > 0]
    top = float(np.percentile(known, 99.9)) if known.size else 0.0
    if (
        top <= 0
        or np.ptp(known) < FLAT * top
        or min(data.shape) < 2
        or max(data.shape) < FEWEST_LINES
    ):
        return Refocused(
            image, False, "the image is empty, flat or too small to tell", {}, 0.0, 0.0
        )
    steps = [float(s) for s in spacing]
    with _threads(num_threads):
        scaled = torch.from_numpy(data).clamp(min=0) * (1000 / top)
        support = _support(data)
        # the cut edge of a mask counts: what blurs it is no motion
        head = bright(scaled, FOREGROUND) if bool(support.all()) else support
        entropy_of = _Sharpness(head, steps)
        before = entropy_of(scaled)
        thick = find_thick_slices(scaled, support, steps)
        grain = find_grain(scaled, support, denoise) if denoise and thick is None else None
        given = scaled
        if grain is not None:  # it may have hidden slices
            quiet = grain.undo(scaled)
            thick = find_thick_slices(quiet, support, steps)
            given = scaled if thick is None else quiet
        sharp = given if thick is None else thick.undo(given, support, steps, within)
        clean, spikes = without_spikes(sharp)
        uneven = find_uneven_lines(clean, support)
        mended = _without_motion(clean, support, entropy_of, steps)
        if uneven is not None:
            even = uneven.undo(clean, support)
            if not _of_motion(uneven, mended.motion) or entropy_of(even) < mended.entropy:
                mended = _without_motion(even, support, entropy_of, steps)
                mended = replace(mended, lines=uneven.facts())
        if hints and not mended.motion:
            mended = _without_jumps(mended, support, entropy_of, steps, hints)
        if denoise and given is scaled:
            if mended.image is not scaled:
                grain = find_grain(mended.image, support, denoise)
            if grain is not None:
                mended = replace(mended, image=grain.undo(mended.image))
    slices = {} if thick is None else thick.facts(steps)
    noise = {} if grain is None else grain.facts()
    done = _in_words(mended, len(spikes), slices, grain)
    if not done:
        return Refocused(image, False, NOTHING, {}, before, before)
    result = mended.image.numpy() * np.float32(top / 1000)
    return Refocused(
        result,
        True,
        done,
        mended.motion,
        before,
        mended.entropy,
        mended.lines,
        len(spikes),
        slices,
        noise,
    )


class _Sharpness:
    """Entropy of an image's gradient magnitudes in the head, in voxels of JUDGED_MM, nats.

    Parameters
    ----------
    head : (X, Y, Z), 1 or 0
    spacing : mm
    """

    def __init__(self, head: Tensor, spacing: Sequence[float]) -> None:
        where, _ = coarser(head, spacing, JUDGED_MM)
        self.head, self.spacing = (where > INSIDE).float(), spacing

    def __call__(self, image: Tensor) -> float:
        coarse, _ = coarser(image, self.spacing, JUDGED_MM)
        return float(gradient_entropy(coarse.clamp(min=0), self.head))


@dataclass(frozen=True)
class _Mended:
    """An image after the search for motion; see :class:`Refocused`.

    Attributes
    ----------
    entropy : of its gradient magnitudes in the head, nats
    """

    image: Tensor
    entropy: float
    motion: dict[str, Any] = field(default_factory=dict)
    lines: dict[str, Any] = field(default_factory=dict)


def _without_motion(
    image: Tensor, support: Tensor, entropy_of: _Sharpness, spacing: Sequence[float]
) -> _Mended:
    """The image without the motion that it shows, where that makes it sharper."""
    moved = _Mended(image, entropy_of(image))
    least = LEAST_GAIN, LEAST_GAIN_WHOLE
    found = find(image, spacing, LEAST_SIGNED)
    mended = _sharper(moved, found, least, support, entropy_of, spacing)
    if mended is moved:
        least = LEAST_GAIN_ODD, LEAST_GAIN_WHOLE_ODD
        found = find_odd(image, spacing)
        mended = _sharper(moved, found, least, support, entropy_of, spacing)
    return mended


def _sharper(
    moved: _Mended,
    found: tuple[Found, View] | None,
    least: tuple[float, float],
    support: Tensor,
    entropy_of: _Sharpness,
    spacing: Sequence[float],
) -> _Mended:
    """The image without the motion that was found, or as it was.

    Parameters
    ----------
    least : by how much the entropy must become less, in the view and in the whole image
    """
    if found is None or found[0].gain > -least[0]:
        return moved
    best, view = found
    if max(float(best.wave.size[:3].norm()), abs(float(best.wave.size[3]))) > MOST:
        return moved
    motion, still, entropy = _undone(moved.image, support, entropy_of, best, view, spacing)
    if entropy > moved.entropy - least[1]:
        return moved
    if entropy - moved.entropy > LEAST_SHARE * best.gain:
        best = smaller(best, view)
        large = entropy
        motion, still, entropy = _undone(moved.image, support, entropy_of, best, view, spacing)
        if entropy >= large:
            return moved
    most = entropy + SLACK * (moved.entropy - entropy)
    for _ in range(MORE_ITERATIONS):
        further = _without(motion, moved.image, support, 1, still)
        sharpness = entropy_of(further)
        if sharpness > most:
            break
        still, entropy = further, sharpness
    return _Mended(still, entropy, _facts(best, motion))


def _without_jumps(
    mended: _Mended,
    support: Tensor,
    entropy_of: _Sharpness,
    spacing: Sequence[float],
    hints: Hints,
) -> _Mended:
    """The image without the jumps that it shows."""
    found = find_jumps(mended.image, support, spacing, hints)
    if found is None:
        return mended
    jumps, still = found
    motion = jumps.facts(still.shape[jumps.phase_axis])
    return replace(mended, image=still, entropy=entropy_of(still), motion=motion)


def _undone(
    image: Tensor,
    support: Tensor,
    entropy_of: _Sharpness,
    found: Found,
    view: View,
    spacing: Sequence[float],
) -> tuple[LineMotion, Tensor, float]:
    """The motion, the whole image without it, and the entropy of that."""
    box = _around(support, found.phase_axis)
    away = [
        ((side.start + side.stop - n) / 2) * step
        for side, n, step in zip(box, image.shape, spacing, strict=True)
    ]
    motion = of_whole_image(found.wave, view, spacing, away)
    still = _without(motion, image, support, ITERATIONS)
    return motion, still, entropy_of(still)


def _without(
    motion: LineMotion,
    image: Tensor,
    support: Tensor,
    iterations: int,
    start: Tensor | None = None,
) -> Tensor:
    """The whole image without a motion; see :func:`~bmex_bids.refocus.kspace.undo`."""
    box = _around(support, motion.phase_axis)
    begun = None if start is None else start[box].contiguous()
    still = torch.zeros_like(image)
    still[box] = undo(
        image[box].contiguous(), support[box].contiguous(), motion, iterations, begun
    )
    return still


def _around(support: Tensor, phase_axis: int) -> tuple[slice, slice, slice]:
    """The box of what is known, and MARGIN around it; of the phase-encoding axis all lines."""
    sides = list(bounding_box(support.numpy(), MARGIN))
    sides[phase_axis] = slice(0, support.shape[phase_axis])
    return sides[0], sides[1], sides[2]


def _of_motion(uneven: UnevenLines, motion: dict[str, Any]) -> bool:
    """Whether motion made the lines uneven: a magnitude image shows it at twice its frequency."""
    if not motion:
        return False
    twice = 2 * motion["Frequency"]
    return (
        uneven.phase_axis == motion["PhaseEncodingAxis"]
        and abs(abs(twice - round(twice)) - 1 / uneven.period) < SAME_FREQUENCY
    )


def _in_words(mended: _Mended, spikes: int, slices: dict[str, Any], grain: Grain | None) -> str:
    """What was undone; empty for nothing."""
    done = (
        [f"slices of {slices['Thickness']:.1f} mm along axis {slices['Axis']}"] if slices else []
    )
    if spikes:
        done.append(f"{spikes} spike{'s' if spikes > 1 else ''} in k-space")
    if mended.lines:
        done.append(f"uneven lines of k-space along axis {mended.lines['PhaseEncodingAxis']}")
    if mended.motion:
        kind = "periodic motion" if mended.motion["Model"] == "periodic" else "jumps"
        done.append(
            f"{kind} of {mended.motion['RMSDisplacement']:.1f} mm, "
            f"phase encoding along axis {mended.motion['PhaseEncodingAxis']}"
        )
    if grain is not None:
        done.append(f"noise of {grain.sigma / 10:.1f} % of the range")
    return "; ".join(done)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """So many threads of torch, and as many as before at the end."""
    usual = torch.get_num_threads()
    torch.set_num_threads(max(count, 1))
    try:
        yield
    finally:
        torch.set_num_threads(usual)


def _support(data: Array) -> Tensor:
    """Where the image is known: everywhere, or within the mask that made the rest zero."""
    if not is_masked(torch.from_numpy(data)):
        return torch.ones(data.shape)
    return torch.from_numpy(scipy.ndimage.binary_fill_holes(data > 0).astype(np.float32))


def _facts(found: Found, motion: LineMotion) -> dict[str, Any]:
    turns = motion.turns if motion.turns is not None else torch.zeros(len(motion.shifts))
    spread = (MM_A_DEGREE * turns) ** 2
    displacement = float((spread + (motion.shifts**2).sum(1)).mean().sqrt())
    return {
        "PhaseEncodingAxis": motion.phase_axis,
        "Model": "periodic",
        "Frequency": round(found.wave.frequency, 4),
        "RMSDisplacement": round(displacement, 2),
        "Translation": [round(float(v), 2) for v in found.wave.size[:3]],
        "Rotation": round(float(found.wave.size[3]), 2),
        "RotationAxis": found.wave.axis,
        "EntropyChange": round(found.gain, 4),
        "SharperThanOpposite": round(found.signed, 4),
    }
