# SPDX-License-Identifier: Apache-2.0
"""How much noise an image has, and an image with less of it."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]

#: edge of the patches that non-local means compares, voxels
PATCH = 3


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


def non_local_means(image: Array, sigma: float, *, strength: float, search: int) -> Array:
    """Non-local means (Coupé et al., IEEE Trans. Med. Imaging 2008) by scikit-image.

    Parameters
    ----------
    image : (X, Y, Z), any unit
    sigma : of its noise, same unit; its square is taken off the patch distances
    strength : of the filter, over ``sigma``
    search : half the width of the search for similar patches, voxels
    """
    from skimage.restoration import denoise_nl_means

    result = denoise_nl_means(
        image, patch_size=PATCH, patch_distance=search, h=strength * sigma, sigma=sigma,
        fast_mode=True, preserve_range=True,
    )  # fmt: skip
    return np.asarray(result, dtype=np.float32)
