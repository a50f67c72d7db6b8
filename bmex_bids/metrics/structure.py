# SPDX-License-Identifier: Apache-2.0
"""Measures of structure against a clean reference, in any number of dimensions, inside a mask.

SSIM and MS-SSIM compare local means, variances and covariances of two images.  The well-kept
libraries compute them of whole pictures, most in two dimensions only; here windows have as many
dimensions as the image, and the mean is taken over a mask.  On whole images the figures are those
of scikit-image (SSIM) and torchmetrics (MS-SSIM, three-dimensional), which the tests compare.

Windows at the mask's edge see beyond it.  Both images are expected to be zero there, as the
application's are, so a mask's edge counts in favour of every method alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]
Filter = Callable[[Array], Array]

#: the images' structural windows: Gaussian, 1.5 voxels, 11 voxels wide
SIGMA, TRUNCATE = 1.5, 3.5
K1, K2 = 0.01, 0.03
#: exponents of the five scales (Wang et al., Asilomar 2003)
SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


@dataclass(frozen=True)
class Moments:
    """Local first and second moments of one image under one window."""

    mean: Array
    power: Array  # mean of squares

    @property
    def variance(self) -> Array:
        """Local variance, never negative."""
        result: Array = np.maximum(self.power - self.mean**2, 0)
        return result


def gaussian_window(image: Array) -> Array:
    """Local Gaussian mean, mirrored at the array's edge."""
    result: Array = scipy.ndimage.gaussian_filter(image, SIGMA, truncate=TRUNCATE)
    return result


def moments(image: Array, window: Filter) -> Moments:
    """Both moments of an image."""
    return Moments(window(image), window(image**2))


class Similarity:
    """A clean reference that images are compared with.

    What depends on the reference alone is computed once, so that many methods cost little more.

    Parameters
    ----------
    reference : any number of dimensions, zero outside the mask
    mask : the same shape; the figures are means over it
    data_range : of the intensities, in their unit
    """

    def __init__(self, reference: NDArray[Any], mask: Mask, data_range: float) -> None:
        if data_range <= 0:
            raise ValueError(f"expected a positive data range, got {data_range}")
        if reference.shape != mask.shape or not mask.any():
            raise ValueError(
                "expected a mask of the reference's shape with voxels in it, got "
                f"{mask.shape} with {int(mask.sum())} voxels for {reference.shape}"
            )
        self.mask = np.asarray(mask, dtype=bool)
        self.range = float(data_range)
        # unit range: squares of large numbers would cost float32 its digits
        self.reference = np.asarray(reference / data_range, dtype=np.float32)
        self.c1, self.c2 = K1**2, K2**2
        self._pyramid = list(_pyramid(self.reference, self.mask, len(SCALES)))
        self._gaussian = [moments(image, gaussian_window) for image, _ in self._pyramid]

    def _scaled(self, image: NDArray[Any]) -> Array:
        if image.shape != self.reference.shape:
            raise ValueError(
                f"expected an image of shape {self.reference.shape}, got {image.shape}"
            )
        return np.asarray(image / self.range, dtype=np.float32)

    def ssim_and_ms_ssim(self, image: NDArray[Any]) -> tuple[float, float]:
        """SSIM (Wang et al. 2004) and MS-SSIM (Wang et al. 2003), both up to 1, which is best.

        ::

            l = (2 m_x m_r + c1) / (m_x² + m_r² + c1)      c1 = (0.01 range)²
            cs = (2 s_xr + c2) / (s_x² + s_r² + c2)        c2 = (0.03 range)²
            SSIM = mean (l · cs)
            MS-SSIM = Π_j<5 max(0, mean cs_j)^w_j · max(0, mean (l · cs)_5)^w_5

        Scale j + 1 is scale j after averaging 2×2×2 voxels; a coarse voxel is in the mask when all
        of it is.  Needs 16 voxels along each axis that is to be halved four times.
        """
        product, finest = 1.0, math.nan
        for level, (light, cs, inside) in enumerate(self.maps(image)):
            whole = float((light * cs)[inside].mean(dtype=np.float64))
            if level == 0:
                finest = whole
            last = level == len(SCALES) - 1
            value = whole if last else float(cs[inside].mean(dtype=np.float64))
            product *= max(value, 0.0) ** SCALES[level]
        return finest, product

    def maps(self, image: NDArray[Any]) -> Iterator[tuple[Array, Array, Mask]]:
        """Maps of luminance, of contrast and structure, and the mask, at each of five scales."""
        for level, (x, _) in enumerate(_pyramid(self._scaled(image), self.mask, len(SCALES))):
            r, inside = self._pyramid[level]
            of_r, of_x = self._gaussian[level], moments(x, gaussian_window)
            covariance = gaussian_window(x * r) - of_x.mean * of_r.mean
            cs = (2 * covariance + self.c2) / (of_x.variance + of_r.variance + self.c2)
            light = (2 * of_x.mean * of_r.mean + self.c1) / (of_x.mean**2 + of_r.mean**2 + self.c1)
            yield light, cs, inside


def _pyramid(image: Array, mask: Mask, levels: int) -> Iterator[tuple[Array, Mask]]:
    """The image and its mask, then both halved again and again (mean; all)."""
    for level in range(levels):
        if level:
            image = _halved(image).mean(axis=-1)
            mask = np.asarray(_halved(mask).all(axis=-1))
        if not mask.any():
            raise ValueError(
                f"expected a mask that survives {levels - 1} halvings, got one that is gone "
                f"after {level}; MS-SSIM needs a larger image"
            )
        yield image, mask


def _halved(array: NDArray[Any]) -> NDArray[Any]:
    """(n, m, …) → (n/2, m/2, …, 2^d): blocks of two along each axis; an odd last row is dropped."""
    d = array.ndim
    even = array[tuple(slice(0, n // 2 * 2) for n in array.shape)]
    split = even.reshape([size for n in even.shape for size in (n // 2, 2)])
    order = [*range(0, 2 * d, 2), *range(1, 2 * d, 2)]
    return split.transpose(order).reshape([*(n // 2 for n in even.shape), 2**d])
