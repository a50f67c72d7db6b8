# SPDX-License-Identifier: Apache-2.0
"""Noise of magnitude images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bmex_bids.degrade.sampling import truncated

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


def parallel(
    image: Array,
    sigma: float,
    gain: Array,
    rng: np.random.Generator,
    *,
    alias: Alias,
    kept: tuple[float, float, float] = (1.0, 1.0, 1.0),
    workers: int = 1,
) -> Array:
    """The magnitude of a complex image with the noise of a parallel reconstruction.

    Its standard deviation is sigma times the g-factor (Pruessmann et al., Magn. Reson. Med. 1999);
    voxels that alias onto each other share a part of it, and zero-filling of k-space smooths it.

    Parameters
    ----------
    image : (X, Y, Z), kept unit
    sigma : of each channel where the g-factor is 1, the image's unit
    gain : (X, Y, Z) g-factor
    rng : the source of randomness
    alias : which voxels fall onto each other, and how much they share
    kept : share of k-space that was read along each axis (see ``sampling.truncated``)
    workers : threads
    """
    parts = []
    for _ in range(2):
        white = truncated(
            rng.standard_normal(image.shape, dtype=np.float32), kept, workers=workers
        )
        width = _frequencies_left(image.shape, kept)
        parts.append(np.float32(sigma) * gain * alias.coupled(white) / np.float32(width**0.5))
    return np.asarray(np.hypot(image + parts[0], parts[1]), dtype=np.float32)


@dataclass(frozen=True)
class Alias:
    """Voxels that a parallel reconstruction has to part.

    Attributes
    ----------
    axis : the phase-encoding axis
    factor : of acceleration; so many voxels fall onto each other, n / factor apart
    coupling : weight of each of the others' noise in a voxel's own, 0 to 1
    """

    axis: int
    factor: int
    coupling: float

    def coupled(self, noise: Array) -> Array:
        """White noise of unit deviation with a share of that of its aliases, still of unit deviation."""
        n, total = noise.shape[self.axis], noise.copy()
        for number in range(1, self.factor):
            step = round(number * n / self.factor)
            total += np.float32(self.coupling) * np.roll(noise, step, self.axis)
        return np.asarray(total / np.float32((1 + (self.factor - 1) * self.coupling**2) ** 0.5))


def _frequencies_left(shape: tuple[int, ...], kept: tuple[float, float, float]) -> float:
    """The share of frequencies that a cut leaves: the variance of white noise behind it."""
    left = 1.0
    for n, share in zip(shape, kept, strict=True):
        first = int(np.floor(share * n / 2 + 1e-9)) + 1  # the first that is cut
        left *= min(2 * first - 1, n) / n if share < 1 else 1.0
    return left
