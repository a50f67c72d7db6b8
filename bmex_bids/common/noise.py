# SPDX-License-Identifier: Apache-2.0
"""How much noise an image has."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]


def robust_deviation(offsets: NDArray[Any]) -> float:
    """Standard deviation of normal values from their median absolute offset from the middle.

    Parameters
    ----------
    offsets : values less their median or mean; not empty
    """
    return 1.4826 * float(np.median(np.abs(offsets)))


def noise_sigma(image: Array, mask: Mask) -> float:
    """Standard deviation of white noise inside the mask, estimated from the image alone.

    The finest diagonal wavelet band (Haar, along all axes) of a clean brain is nearly empty, so
    its median absolute deviation over 0.6745 is the noise's (Donoho and Johnstone, Biometrika
    1994).  Only 2×2×2 blocks wholly inside the mask count.  Zero for an empty mask.
    """
    detail = image.astype(np.float32)
    inside = np.asarray(mask, dtype=bool)
    for axis in range(3):
        first: list[slice] = [slice(None)] * 3
        second = list(first)
        n = detail.shape[axis] // 2 * 2
        first[axis], second[axis] = slice(0, n, 2), slice(1, n, 2)
        detail = (detail[tuple(first)] - detail[tuple(second)]) / np.float32(math.sqrt(2))
        inside = inside[tuple(first)] & inside[tuple(second)]
    values = detail[inside]
    return float(np.median(np.abs(values)) / 0.6745) if values.size else 0.0
