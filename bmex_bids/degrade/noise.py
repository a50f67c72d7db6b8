# SPDX-License-Identifier: Apache-2.0
"""Noise of magnitude images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


def gaussian(image: Array, sigma: float, rng: np.random.Generator) -> Array:
    """Add white Gaussian noise of standard deviation ``sigma`` (the image's unit)."""
    return image + np.float32(sigma) * rng.standard_normal(image.shape, dtype=np.float32)


def rician(image: Array, sigma: float, rng: np.random.Generator) -> Array:
    """The magnitude of a complex image with Gaussian noise ``sigma`` in both channels.

    E[result²] = image² + 2 sigma² (Gudbjartsson and Patz, Magn. Reson. Med. 1995); where the
    image is
    zero the result is Rayleigh distributed with mean sigma·sqrt(pi/2).
    """
    real = gaussian(image, sigma, rng)
    imaginary = np.float32(sigma) * rng.standard_normal(image.shape, dtype=np.float32)
    return np.asarray(np.hypot(real, imaginary), dtype=np.float32)
