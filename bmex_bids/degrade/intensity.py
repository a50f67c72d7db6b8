# SPDX-License-Identifier: Apache-2.0
"""Intensity faults: receive-coil bias and a changed contrast."""

from __future__ import annotations

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

Array = NDArray[np.float32]


def bias_field(image: Array, control: NDArray[np.float64]) -> Array:
    """Multiply by exp of a smooth field, interpolated from a coarse grid of log-values.

    A level of p per cent has extreme factors 1 ∓ p / 200, as in BrainWeb (Collins et al., IEEE
    Trans. Med. Imaging 1998).
    """
    field = smooth_field(image.shape, control)
    return np.asarray(image * np.exp(field), dtype=np.float32)


def smooth_field(shape: tuple[int, ...], control: NDArray[np.float64]) -> Array:
    """Values of a coarse grid, interpolated smoothly between its nodes to (X, Y, Z)."""
    control = np.asarray(control, dtype=np.float32)
    # coordinates of each voxel on the control grid, whose corners are the image's corners
    axes = [
        np.linspace(0, c - 1, n, dtype=np.float32)
        for c, n in zip(control.shape, shape, strict=True)
    ]
    field = control
    for axis, where in enumerate(axes):
        low = np.clip(np.floor(where).astype(int), 0, max(control.shape[axis] - 2, 0))
        weight = _smoothstep(where - low).reshape([-1 if k == axis else 1 for k in range(3)])
        high = np.minimum(low + 1, control.shape[axis] - 1)
        field = np.take(field, low, axis) * (1 - weight) + np.take(field, high, axis) * weight
    return np.asarray(field, dtype=np.float32)


def _smoothstep(t: Array) -> Array:
    return np.asarray(t * t * (3 - 2 * t), dtype=np.float32)


def gamma(image: Array, exponent: float, reference: float) -> Array:
    """Bend the contrast: reference · (image / reference) ** exponent, zero stays zero."""
    scaled = np.clip(image, 0, None) / np.float32(reference)
    return np.asarray(np.float32(reference) * scaled ** np.float32(exponent), dtype=np.float32)


def texture(shape: tuple[int, int, int], sigma_voxels: float, rng: np.random.Generator) -> Array:
    """Smooth random field of zero mean and unit standard deviation."""
    field = scipy.ndimage.gaussian_filter(
        rng.standard_normal(shape, dtype=np.float32), sigma_voxels
    )
    result: Array = (field - field.mean()) / (field.std() + np.float32(1e-12))
    return result
