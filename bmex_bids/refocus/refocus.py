# SPDX-License-Identifier: Apache-2.0
"""Faults of the read-out, found in the image itself and undone in k-space.

Spikes and lines of unequal strength first, then rigid motion.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.ndimage
import torch
from numpy.typing import NDArray
from torch import Tensor

from bmex_bids.refocus.kspace import LineMotion, undo
from bmex_bids.refocus.lines import find_uneven_lines, without_spikes
from bmex_bids.refocus.search import (
    FEWEST_LINES,
    Found,
    find,
    gradient_entropy,
    of_whole_image,
)

Array = NDArray[np.float32]

#: how much more than its opposite a motion must sharpen, nats; still images stay below
LEAST_SIGNED = 0.0062
#: by how much undoing the motion must lower the entropy of the gradients, nats; the same
LEAST_GAIN = 0.006
#: share of zeros from which the background counts as masked away
MASKED = 0.3
#: of :func:`~bmex_bids.refocus.kspace.undo`; a brain stripped after it moved loses by more
ITERATIONS = 2
#: radius of the sphere over which displacement is averaged, mm (Jenkinson, FMRIB TR99MJ1, 1999)
SPHERE_MM = 80.0
NOTHING = "no periodic motion, uneven lines or spikes found"


@dataclass(frozen=True)
class Refocused:
    """What :func:`refocus` made of an image.

    Attributes
    ----------
    image : (X, Y, Z) float32, the units of the input; the input itself where not applied
    applied : whether anything was undone
    reason : plain English, such as ``"periodic motion of 1.9 mm along axis 1"``
    motion : ready for JSON, empty where none was undone: ``PhaseEncodingAxis`` (0 to 2, of the
        LPS array), ``Model``, ``RMSDisplacement`` (mm), ``Frequency`` (cycles per line),
        ``Translation`` (mm, amplitude along the array's axes), ``Rotation`` (degrees, amplitude),
        ``RotationAxis``
    lines : ready for JSON, empty where the lines are even:
        :meth:`bmex_bids.refocus.lines.UnevenLines.facts`
    spikes : how many were removed
    entropy_before, entropy_after : of the gradient magnitudes, nats; smaller is sharper
    """

    image: Array
    applied: bool
    reason: str
    motion: dict[str, Any]
    entropy_before: float
    entropy_after: float
    lines: dict[str, Any] = field(default_factory=dict)
    spikes: int = 0


def refocus(image: Array, spacing: Sequence[float], *, num_threads: int = 1) -> Refocused:
    """Undo spikes, uneven lines, and periodic rigid motion during the read-out.

    Motion is undone where that makes the image clearly sharper.  All three axes are tried as
    phase-encoding axis.  An image without any of these comes back as it is.

    Parameters
    ----------
    image : (X, Y, Z) float32, finite: a head or a brain, axes LPS, on the scanner's grid
    spacing : voxel sizes, mm
    num_threads : for the transforms

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
    top = float(np.percentile(data[data > 0], 99.9)) if (data > 0).any() else 0.0
    if top <= 0 or min(data.shape) < 2 or max(data.shape) < FEWEST_LINES:
        return Refocused(image, False, "the image is empty or too small to tell", {}, 0.0, 0.0)
    steps = [float(s) for s in spacing]
    with _threads(num_threads):
        scaled = torch.from_numpy(data).clamp(min=0) * (1000 / top)
        support = _support(data)
        before = float(gradient_entropy(scaled, support))
        still, spikes = without_spikes(scaled)
        uneven = find_uneven_lines(still, support)
        if uneven is not None:
            still = uneven.undo(still, support)
        done = (
            [f"{len(spikes)} spike{'s' if len(spikes) > 1 else ''} in k-space"] if spikes else []
        )
        if uneven is not None:
            done.append(f"uneven lines of k-space along axis {uneven.phase_axis}")
        facts: dict[str, Any] = {}
        found = find(still, steps, LEAST_SIGNED)
        if found is not None and found[0].gain <= -LEAST_GAIN:
            motion = of_whole_image(found[0].wave, found[1], steps)
            moved, entropy = still, float(gradient_entropy(still, support))
            still = undo(moved, support, motion, ITERATIONS)
            if float(gradient_entropy(still, support)) < entropy:
                facts = _facts(found[0], motion)
                done.append(
                    f"periodic motion of {facts['RMSDisplacement']:.1f} mm, "
                    f"phase encoding along axis {motion.phase_axis}"
                )
            else:
                still = moved
        after = float(gradient_entropy(still, support))
    if not done:
        return Refocused(image, False, NOTHING, {}, before, before)
    lines = uneven.facts() if uneven is not None else {}
    result = still.numpy() * np.float32(top / 1000)
    return Refocused(result, True, "; ".join(done), facts, before, after, lines, len(spikes))


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
    if float((data <= 0).mean()) < MASKED:
        return torch.ones(data.shape)
    return torch.from_numpy(scipy.ndimage.binary_fill_holes(data > 0).astype(np.float32))


def _facts(found: Found, motion: LineMotion) -> dict[str, Any]:
    turns = motion.turns if motion.turns is not None else torch.zeros(len(motion.shifts))
    spread = 0.4 * SPHERE_MM**2 * (turns * math.pi / 180) ** 2
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
