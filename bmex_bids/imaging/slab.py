# SPDX-License-Identifier: Apache-2.0
"""How much what a field of view shows of a brain looks like a part of one.

What lies in the mask is held against the average brain (:mod:`bmex_bids.imaging.likeness`) as the
field of view would cut it, in brains of several sizes, at all heights, with some pitches, as the
header says and turned about the axis of the body.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from bmex_bids.imaging.likeness import (
    FULL,
    LITRES,
    SIDE,
    Array,
    Mask,
    average_brains,
    coarse,
    explained_by,
    on_grid,
)

#: brains that the part may be of, litres, fetus to adult
BRAINS = (0.1, 0.2, 0.35, 0.55, 0.8, 1.1, 1.4, 1.7)
#: heights of the part in the brain, voxels of the comparison
HEIGHTS = range(-12, 13)
PITCH = 10  # degrees, at most
#: overlap from which a place counts
OVERLAP_PLACED = 0.8
#: fewer voxels say nothing
FEWEST = 60


def part_score(image: NDArray[np.floating[Any]], mask: Mask, spacing: tuple[float, ...]) -> float:
    """How well a part of a brain fits into the average brain; 0 where it fits nowhere.

    The share of the variance that the tissues explain in the best place, plus how much the overlap
    is above :data:`OVERLAP_PLACED`, plus how much less is explained with front and back the other
    way round: a brain has a front, a neck hardly.

    Parameters
    ----------
    image, mask : (X, Y, Z), axes LPS; any unit
    spacing : mm
    """
    inside, values, sizes = coarse(image, mask, spacing)
    if not inside.any():
        return 0.0
    field = np.ones(inside.shape, np.float32)
    volume = float(inside.sum() * np.prod(sizes)) / 1e6
    best = {
        False: (0.0, 0.0),
        True: (0.0, 0.0),
    }  # explained, overlap; front and back turned or not
    for litres in BRAINS:
        if litres < 0.95 * volume:
            continue
        scale = (LITRES / litres) ** (1 / 3)
        parts = (np.where(inside, values, 0), inside, field)
        seen, share, view = (on_grid(part, inside, sizes, scale) for part in parts)
        full = share > FULL
        if full.sum() < FEWEST:
            continue
        intensities = (seen[full] / share[full]).astype(np.float64)
        intensities = np.clip(intensities, *np.percentile(intensities, [1, 99]))
        for turned in best:
            for tissues, overlap in _places(share, view > 0.5, full, turned=turned):
                explained = explained_by(tissues, intensities - intensities.mean())
                best[turned] = max(best[turned], (explained, overlap))
    first, second = sorted(best.values(), reverse=True)
    return first[0] + max(first[1] - OVERLAP_PLACED, 0) + first[0] - second[0]


def _places(
    share: Array, view: Mask, full: Mask, *, turned: bool
) -> Iterator[tuple[NDArray[np.float64], float]]:
    """The average brain's tissues where the mask is full, and its overlap, in each place."""
    centre = np.array(scipy.ndimage.center_of_mass(share))
    total = float(share.sum())
    for pitch, tissues, brain in average_brains():
        if abs(pitch) > PITCH:
            continue
        volumes = np.concatenate([tissues.reshape(-1, SIDE, SIDE, SIDE), brain[None]])
        if turned:
            volumes = volumes[:, ::-1, ::-1]
        for height in HEIGHTS:
            moved = _moved(volumes[-1], (0, 0, height)) * view
            if moved.sum() < total / 2:
                continue
            off = np.rint(centre - scipy.ndimage.center_of_mass(moved)).astype(int)
            shift = (int(off[0]), int(off[1]), height)
            moved = _moved(volumes[-1], shift) * view
            overlap = 2 * float(np.minimum(moved, share).sum()) / (float(moved.sum()) + total)
            if overlap >= OVERLAP_PLACED:
                yield _moved(volumes[:-1], shift)[:, full].astype(np.float64), overlap


def _moved(volumes: Array, shift: tuple[int, int, int]) -> Array:
    """Volumes, (…, X, Y, Z), moved by whole voxels; zero where nothing comes from."""
    result = np.zeros_like(volumes)
    source, target = (
        tuple(
            slice(max(0, step), min(n, n + step))
            for step, n in zip(steps, volumes.shape[-3:], strict=True)
        )
        for steps in (tuple(-step for step in shift), shift)
    )
    x, y, z = target
    result[..., x, y, z] = volumes[..., source[0], source[1], source[2]]
    return result
