# SPDX-License-Identifier: Apache-2.0
"""Figures that compare an image with a clean reference, inside a mask."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]


def _inside(
    image: Array, reference: Array, mask: Mask
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if not image.shape == reference.shape == mask.shape:
        raise ValueError(
            f"expected image, reference and mask of one shape, got {image.shape}, "
            f"{reference.shape}, {mask.shape}"
        )
    chosen = np.asarray(mask, dtype=bool)
    if not chosen.any():
        raise ValueError("expected a mask with voxels in it, got an empty one")
    return image[chosen].astype(np.float64), reference[chosen].astype(np.float64)


def mse(image: Array, reference: Array, mask: Mask) -> float:
    """Mean squared error, ``mean (x − r)²`` over the mask; 0 is best; squared intensity units."""
    a, b = _inside(image, reference, mask)
    return float(np.mean((a - b) ** 2))


def psnr(image: Array, reference: Array, mask: Mask, data_range: float) -> float:
    """Peak signal-to-noise ratio, ``10 log10(range² / MSE)`` in dB; more is better.

    Infinite for equal images.  ``data_range`` is in the images' units.
    """
    if data_range <= 0:
        raise ValueError(f"expected a positive data range, got {data_range}")
    error = mse(image, reference, mask)
    return math.inf if error == 0 else 10 * math.log10(data_range**2 / error)


def ssim(image: Array, reference: Array, mask: Mask, data_range: float) -> float:
    """Mean structural similarity inside the mask, −1…1, 1 is best.

    ::

        SSIM = (2 m_x m_r + c1) (2 s_xr + c2) / ((m_x² + m_r² + c1) (s_x² + s_r² + c2))
        c1 = (0.01 range)², c2 = (0.03 range)²

    m, s² and s_xr are means, variances and the covariance in a three-dimensional Gaussian window
    of 1.5 voxels (Wang et al., IEEE Trans. Image Process. 13:600, 2004), computed by scikit-image
    on the whole image; the mean of the map is taken over the mask.  ``data_range`` is in the
    images' units.
    """
    from skimage.metrics import structural_similarity

    _inside(image, reference, mask)
    if data_range <= 0:
        raise ValueError(f"expected a positive data range, got {data_range}")
    _, full = structural_similarity(  # type: ignore[no-untyped-call]
        reference.astype(np.float64),
        image.astype(np.float64),
        data_range=data_range,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    return float(full[np.asarray(mask, dtype=bool)].mean())
