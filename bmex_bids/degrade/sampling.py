# SPDX-License-Identifier: Apache-2.0
"""What a scan of too few samples does: fold-over, and ringing at edges."""

from __future__ import annotations

import numpy as np
import scipy.fft
from numpy.typing import NDArray

Array = NDArray[np.float32]
#: share of the 99th percentile above which a voxel belongs to the head
HEAD_SHARE = 0.1


def fold_over(image: Array, axis: int, overlap: float) -> Array:
    """A field of view that is shorter than the head along the phase axis.

    Samples of k-space lie 1/L apart, so what is L away falls on one voxel: the image becomes
    Σ f(y + m L), seen from −L/2 to L/2 about the middle of the head.

    Parameters
    ----------
    image : (X, Y, Z), kept unit
    axis : the phase-encoding axis
    overlap : by how much L is shorter than the head, as a share of the head's extent, 0 to below 1

    Returns
    -------
    (X, Y, Z) float32 array on the same grid, zero outside the field of view
    """
    image = np.asarray(image, dtype=np.float32)
    bright = image > HEAD_SHARE * np.percentile(image, 99)
    seen = np.flatnonzero(bright.any(axis=tuple(k for k in range(3) if k != axis)))
    if not len(seen) or overlap <= 0:
        return np.abs(image)
    extent = int(seen[-1] - seen[0] + 1)
    length = max(round(extent * (1 - overlap)), 1)
    start = int(seen[0]) + (extent - length) // 2
    lines = np.moveaxis(image, axis, 0)
    folded = np.zeros((length, *lines.shape[1:]), dtype=np.float32)
    n = len(lines)
    for first in range(start - -(-start // length) * length, n, length):
        low, high = max(first, 0), min(first + length, n)
        if high > low:
            folded[low - first : high - first] += lines[low:high]
    result = np.zeros_like(lines)
    result[start : start + length] = np.abs(folded)
    return np.ascontiguousarray(np.moveaxis(result, 0, axis))


def truncated(image: Array, kept: tuple[float, float, float], *, workers: int = 1) -> Array:
    """The image without the outer part of its k-space, not yet a magnitude.

    Parameters
    ----------
    image : (X, Y, Z)
    kept : share of the frequencies that stays along each axis, above 0 to 1; frequencies up to
        ``kept`` times the highest stay
    """
    result = np.asarray(image, dtype=np.float32)
    for axis, share in enumerate(kept):
        if share >= 1:
            continue
        n = result.shape[axis]
        spectrum = scipy.fft.rfft(result, axis=axis, workers=workers)
        first = int(np.floor(share * n / 2 + 1e-9)) + 1
        part = [slice(None)] * 3
        part[axis] = slice(first, None)
        spectrum[tuple(part)] = 0
        result = np.asarray(
            scipy.fft.irfft(spectrum, n=n, axis=axis, workers=workers), dtype=np.float32
        )
    return result


def gibbs(image: Array, kept: tuple[float, float, float], *, workers: int = 1) -> Array:
    """Ringing: the magnitude of an image whose k-space was cut off and filled with zeros.

    An edge overshoots by 9 % of its step (Wilbraham 1848; Gibbs 1899).  Parameters as for
    :func:`truncated`.
    """
    return np.abs(truncated(image, kept, workers=workers))
