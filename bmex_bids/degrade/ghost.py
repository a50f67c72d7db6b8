# SPDX-License-Identifier: Apache-2.0
"""Ghosts: faint copies of the head, moved along the phase-encoding axis."""

from __future__ import annotations

import numpy as np
import scipy.fft
from numpy.typing import NDArray

Array = NDArray[np.float32]


def ghosting(
    image: Array, strength: float, period: float, phase: float, *, phase_axis: int = 1
) -> Array:
    """Modulate the lines of k-space periodically (pulsation, breathing, unequal echoes).

    Line number t, counted from the centre of k-space, is multiplied by
    w(t) / w(0), w(t) = 1 + strength · cos(2π t / period + phase), so that the
    centre of k-space keeps its value.  (Not the brain its brightness: the copy in its place is
    divided by w(0), between 1 − strength and 1 + strength, as the phase has it.)
    By the shift theorem the image f becomes
    | f + ½ strength (e^{iφ} f(y − n / period) + e^{−iφ} f(y + n / period)) | / w(0): with a period
    of two lines one ghost lies half a field of view away, with longer periods two lie nearer.

    Parameters
    ----------
    image : (X, Y, Z) array, kept unit
    strength : of all ghosts together, as a share of the image; 0 to below 1
    period : lines
    phase : radians
    phase_axis : the phase-encoding axis of the array

    Returns
    -------
    (X, Y, Z) float32 array, never negative; no strength gives |image|
    """
    image = np.asarray(image, dtype=np.float32)
    n = image.shape[phase_axis]
    time = np.fft.fftfreq(n, 1 / n)  # …, −1, 0, 1, …: zero at the centre of k-space
    shape = [1, 1, 1]
    shape[phase_axis] = n
    weight = 1 + strength * np.cos(2 * np.pi * time / period + phase)
    weight /= 1 + strength * np.cos(phase)
    lines = scipy.fft.fft(image, axis=phase_axis)
    lines *= weight.astype(np.float32).reshape(shape)
    ghosted = scipy.fft.ifft(lines, axis=phase_axis, overwrite_x=True)
    return np.asarray(np.abs(ghosted), dtype=np.float32)
