# SPDX-License-Identifier: Apache-2.0
"""What a portable scanner of 64 mT makes of a head: few large voxels, flat contrast, much noise.

The order is that of a scan: contrast, receive field, blur of the read-out, voxels, noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from bmex_bids.common.splines import spline_weights
from bmex_bids.degrade.blur import average_slabs, mixed_along, slab_centres
from bmex_bids.degrade.intensity import bias_field, gamma
from bmex_bids.degrade.noise import rician

Array = NDArray[np.float32]
Spacing = tuple[float, float, float]

#: standard deviations in a full width at half maximum
DEVIATIONS = 2 * (2 * np.log(2)) ** 0.5


@dataclass(frozen=True)
class LowField:
    """A low-field scan of an image.

    Attributes
    ----------
    data : (X, Y, Z) on the scan's own grid, unit of the image; not negative
    factor : along each axis, edge of a voxel in voxels of the image
    shape : of the image
    """

    data: Array
    factor: Spacing
    shape: tuple[int, ...]

    def affine(self, of_image: NDArray[np.float64]) -> NDArray[np.float64]:
        """4 × 4, of the scan's grid, from that of the image."""
        steps = np.diag([*self.factor, 1.0])
        steps[:3, 3] = [places[0] for places in self._centres()]
        return np.asarray(of_image @ steps)

    def interpolated(self) -> Array:
        """The scan on the image's grid, by cubic splines, as the application resamples."""
        image = self.data
        for axis, places in enumerate(self._centres()):
            if self.factor[axis] > 1:
                image = mixed_along(spline_weights(self.shape[axis], places, 3), image, axis)
        return np.asarray(image.clip(0))

    def _centres(self) -> list[NDArray[np.float64]]:
        """Of the scan's voxels along each axis, in voxels of the image."""
        return [slab_centres(n, f) for n, f in zip(self.shape, self.factor, strict=True)]


def coarse(image: Array, spacing: Spacing, step: Mapping[str, Any]) -> LowField:
    """The voxels of a scan without its other faults: means over boxes.

    Parameters
    ----------
    image : (X, Y, Z), kept unit
    spacing : mm
    step : has ``axis`` (across the slices), ``plane_mm`` and ``thickness_mm`` (edges of a voxel)
    """
    edges = [float(step["plane_mm"])] * 3
    edges[step["axis"]] = float(step["thickness_mm"])
    x, y, z = (max(edge / size, 1.0) for edge, size in zip(edges, spacing, strict=True))
    means = image
    for axis, factor in enumerate((x, y, z)):
        means = average_slabs(means, axis, factor)
    return LowField(means, (x, y, z), image.shape)


def scan(image: Array, spacing: Spacing, step: Mapping[str, Any]) -> LowField:
    """The scan that a step describes, on the scan's grid.

    Parameters
    ----------
    image : (X, Y, Z), kept unit
    spacing : mm
    step : of ``low-field``, as :func:`bmex_bids.degrade.steps.low_field` draws it
    """
    flat = bias_field(gamma(image, step["exponent"], step["reference"]), np.array(step["control"]))
    sigma = [step["fwhm_mm"] / DEVIATIONS / size for size in spacing]
    sigma[step["axis"]] = 0.0
    blurred = scipy.ndimage.gaussian_filter(flat, sigma, mode="nearest", truncate=3.0)
    still = coarse(blurred, spacing, step)
    noisy = rician(still.data, step["sigma"], np.random.default_rng(step["seed"]))
    return LowField(noisy, still.factor, still.shape)
