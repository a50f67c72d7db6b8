# SPDX-License-Identifier: Apache-2.0
"""How an image was spoiled, estimated from the image alone: motion, noise and resolution.

Figures of a few slices of each plane go through the network of :mod:`bmex_bids.network.models.score`.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from bmex_bids.common.contrasts import MEAN
from bmex_bids.common.scoring import LEVELS
from bmex_bids.network.models.score import QUANTITIES, ScoreNet, statistics
from bmex_bids.network.weights.checkpoints import load_network_as
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
#: root mean squared error, of a brain mean of 400, of minor, moderate and severe motion: what
#: ``training.score.measured_levels`` found on average in adults and heads.  It makes a level of any
LEVEL_RMS = (29.0, 56.0, 80.0)
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
    return load_network_as(path, variant, ScoreNet, "that scores")


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


def level(rms: float) -> float:
    """Severity of an error by motion, 0…3: linear up to minor, then by its logarithm.

    >>> level(0), level(29), round(level(56), 6), level(200)
    (0.0, 1.0, 2.0, 3.0)
    """
    first = LEVEL_RMS[0]
    if rms <= first:
        return max(rms, 0.0) / first
    return float(np.interp(math.log(rms), np.log(LEVEL_RMS), range(1, len(LEVEL_RMS) + 1)))


def rms_of(severity: float) -> float:
    """The error of a level, which :func:`level` undoes.

    >>> round(rms_of(0.5), 6), round(rms_of(2), 6)
    (14.5, 56.0)
    """
    if severity <= 1:
        return max(severity, 0.0) * LEVEL_RMS[0]
    return math.exp(np.interp(severity, range(1, len(LEVEL_RMS) + 1), np.log(LEVEL_RMS)))


def after_change(before: Score, after: Score, change: float) -> Score:
    """The score of a changed image, no better than the change explains.

    A smooth image looks still.  But who removes an error changes the image: what is left of it is
    at least ``sqrt(before² − change²)``, as the best estimate is at right angles to its own error;
    of the change, what removed noise removed no motion.

    Parameters
    ----------
    before, after : what the network says of both
    change : root mean square of their difference in the brain, each scaled to a mean of 400
    """
    left = rms_of(before.motion.value) ** 2 - removed_by(before, after, change) ** 2
    return at_least(after, math.sqrt(max(left, 0.0)))


def before_change(before: Score, after: Score, change: float) -> Score:
    """The score of the image as it came: at least the motion that a known correction removed.

    Parameters as for :func:`after_change`.
    """
    return at_least(before, removed_by(before, after, change))


def removed_by(before: Score, after: Score, change: float) -> float:
    """The error by motion that a change removed, at most; parameters as for :func:`after_change`."""
    units = RANGE * MEAN / 100
    noise = (before.noise_percent.value * units) ** 2 - (after.noise_percent.value * units) ** 2
    return math.sqrt(max(change**2 - max(noise, 0.0), 0.0))


def at_least(found: Score, rms: float) -> Score:
    """A score with a severity of motion no lower than that of a known error.

    Parameters
    ----------
    rms : root mean square of the error by motion, of a brain mean of 400
    """
    least, seen = level(rms), found.motion
    if least <= seen.value:
        return found
    return replace(found, motion=Estimate(least, seen.low, max(seen.high, least)))


def of_slices(found: Score, slices_mm: float) -> Score:
    """A score whose resolution is no finer than the slices that an image is known to have."""
    seen = found.resolution_mm
    if seen.value >= slices_mm:
        return found
    return replace(found, resolution_mm=Estimate(slices_mm, slices_mm, max(seen.high, slices_mm)))


def change_between(before: Array, after: Array, mask: Mask) -> float:
    """Root mean square of the difference in the brain, each image scaled to a mean of 400.

    Parameters
    ----------
    before, after, mask : (X, Y, Z); both images have a :func:`score`
    """
    inside = mask.astype(bool)
    first, second = (
        image[inside] * (MEAN / float(image[inside].mean(dtype=np.float64)))
        for image in (before, after)
    )
    return float(np.sqrt(((second - first) ** 2).mean(dtype=np.float64)))


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
