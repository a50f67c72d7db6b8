# SPDX-License-Identifier: Apache-2.0
"""Noise: how much an image has, and the part of it that is taken off."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from bmex_bids.common.noise import noise_sigma
from bmex_bids.refocus.kspace import FOREGROUND, bright

#: (image 0…1000, standard deviation) → its noise
Denoise = Callable[[Tensor, float], Tensor]

#: units of a range of 1000: an image with less is not looked at
LEAST_SIGMA = 10.0
#: standard deviation of what the network takes for noise, units: nothing is taken off below the
#: first, and above the second as much as ever
LITTLE, MUCH = 12.5, 16.5
#: largest share that is taken off: some of what a network takes for noise is not
MOST = 0.9


@dataclass(frozen=True)
class Grain:
    """Noise that is taken off.

    Attributes
    ----------
    noise : (X, Y, Z), units of the image; the part that is taken off
    sigma : standard deviation of all noise, units
    share : how much of the noise is taken off, above 0 to :data:`MOST`
    """

    noise: Tensor
    sigma: float
    share: float

    def undo(self, image: Tensor) -> Tensor:
        """The image without it, never negative."""
        return (image - self.noise).clamp(min=0)

    def facts(self) -> dict[str, Any]:
        """Ready for JSON: ``StandardDeviation`` (percent of the range), ``Removed`` (share)."""
        return {
            "StandardDeviation": round(self.sigma / 10, 2),
            "Removed": round(self.share, 2),
        }


def find_grain(image: Tensor, support: Tensor, denoise: Denoise) -> Grain | None:
    """The noise of an image that has more than scans usually have; None for less.

    Parameters
    ----------
    image : (X, Y, Z), 0…1000, never negative
    support : (X, Y, Z), 1 where the image is known and the head may be, else 0
    """
    head = bright(image, FOREGROUND) * support > 0
    sigma = noise_sigma(image.numpy(), head.numpy())
    if sigma < LEAST_SIGMA:
        return None
    noise = denoise(image, sigma) * support
    size = float(noise[head].std())
    share = MOST * min(max((size - LITTLE) / (MUCH - LITTLE), 0.0), 1.0)
    return Grain(noise * share, size, share) if share > 0 else None
