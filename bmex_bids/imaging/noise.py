# SPDX-License-Identifier: Apache-2.0
"""An image with less noise, by a classical method."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

#: edge of the patches that non-local means compares, voxels
PATCH = 3


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
