# SPDX-License-Identifier: Apache-2.0
"""How an image was spoiled, estimated from the image alone: motion, noise and resolution.

Figures of a few slices of each plane go through the network of :mod:`bmex_bids.network.models.score`.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from bmex_bids.common.scoring import LEVELS
from bmex_bids.network.models.score import MEAN, QUANTITIES, ScoreNet, statistics
from bmex_bids.network.weights.checkpoints import load_network
from bmex_bids.network.weights.registry import WeightRecord

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]

#: slices of each plane
SLICES = 8
#: of the largest slice: brain that a slice must have
LEAST_SHARE = 0.4
#: voxels on an edge that an image must have to be judged
LEAST_EDGE = 16
#: voxel of the images that the network learnt from, mm
GRID_MM = 0.8
#: the range that noise is a percentage of, over the brain's mean: 1000 units where the mean is 400
RANGE = 2.5
#: standard deviations to either side that 90 % of a normal distribution lie within
NINETY = 1.645


@dataclass(frozen=True)
class Estimate:
    """A value, and the interval that holds the truth in nine of ten images."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Score:
    """What the network says of an image.

    Attributes
    ----------
    motion : severity, 0 none, 1 minor, 2 moderate, 3 severe
    noise_percent : standard deviation, % of the range, which is :data:`RANGE` times the brain's mean
    resolution_mm : effective resolution along the coarsest axis
    """

    motion: Estimate
    noise_percent: Estimate
    resolution_mm: Estimate

    def as_table(self) -> dict[str, float]:
        """Plain numbers for a sidecar: ``motion``, ``motion_low``, ``motion_high`` …"""
        table = {}
        for name in ("motion", "noise_percent", "resolution_mm"):
            estimate: Estimate = getattr(self, name)
            table[name] = round(estimate.value, 4)
            table[f"{name}_low"] = round(estimate.low, 4)
            table[f"{name}_high"] = round(estimate.high, 4)
        return table


@functools.lru_cache(maxsize=2)
def _network(path: Path, variant: str) -> ScoreNet:
    network = load_network(path, variant)
    if not isinstance(network, ScoreNet):
        raise TypeError(f"expected a network that scores, got {type(network).__name__}")
    return network


def score(
    data: Array, mask: Mask, record: WeightRecord, *, spacing_mm: float = GRID_MM
) -> Score | None:
    """The score of an image; None where there is too little brain to tell.

    Parameters
    ----------
    data, mask : (X, Y, Z), axes LPS, linear in any unit
    record : weights of kind ``"score"``
    spacing_mm : of the isotropic grid
    """
    planes = chosen_slices(data, mask)
    if planes is None:
        return None
    network = _network(record.path, record.variant)
    with torch.inference_mode():
        figures = torch.stack([statistics(x, m.float()).mean(0) for x, m in planes])
        mean, log_variance = network(figures[None])[0]
        spread = network.spread * (0.5 * log_variance).exp()
    return answer(mean.double().numpy(), spread.double().numpy(), spacing_mm=spacing_mm)


def answer(
    mean: NDArray[np.float64], spread: NDArray[np.float64], *, spacing_mm: float = GRID_MM
) -> Score:
    """The network's numbers in units.

    Parameters
    ----------
    mean, spread : (QUANTITIES,): severity, logarithm of noise (of a brain mean of 400) and of
        resolution (mm on a grid of 0.8 mm), and their standard deviations
    """
    bounds = {
        name: [float(mean[k] + side * NINETY * spread[k]) for side in (0, -1, 1)]
        for k, name in enumerate(QUANTITIES)
    }
    noise = 100 / (RANGE * MEAN)
    size = spacing_mm / GRID_MM
    return Score(
        Estimate(*(min(max(v, 0.0), len(LEVELS) - 1.0) for v in bounds["motion"])),
        Estimate(*(noise * math.exp(v) for v in bounds["noise"])),
        Estimate(*(size * math.exp(v) for v in bounds["resolution"])),
    )


Planes = list[tuple[torch.Tensor, torch.Tensor]]


def chosen_slices(data: Array, mask: Mask) -> Planes | None:
    """Slices with enough brain, spread evenly over each plane, scaled and cut to the brain.

    Returns
    -------
    of each plane (SLICES, H, W) image of brain mean 400, zero outside, and mask; None where the
    brain is smaller than :data:`LEAST_EDGE` or dark
    """
    inside = mask.astype(bool) & np.isfinite(data)
    if not inside.any():
        return None
    level = float(data[inside].mean(dtype=np.float64))
    if not level > 0:
        return None
    found: Planes = []
    for axis in range(3):
        others = tuple(k for k in range(3) if k != axis)
        area = inside.sum(axis=others)
        enough = np.flatnonzero(area >= LEAST_SHARE * area.max())
        places = enough[np.linspace(0, len(enough) - 1, SLICES + 2).round().astype(int)[1:-1]]
        brain = np.moveaxis(np.take(inside, places, axis), axis, 0)
        image = np.moveaxis(np.take(data, places, axis), axis, 0)
        rows, columns = (np.flatnonzero(brain.any(axis=(0, k))) for k in (2, 1))
        if min(np.ptp(rows), np.ptp(columns)) + 1 < LEAST_EDGE:
            return None
        cut = (slice(None), slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        scaled = np.where(brain[cut], image[cut] * (MEAN / level), 0).astype(np.float32)
        found.append((torch.from_numpy(scaled), torch.from_numpy(brain[cut].copy())))
    return found
