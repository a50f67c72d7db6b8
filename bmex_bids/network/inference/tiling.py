# SPDX-License-Identifier: Apache-2.0
"""Overlapping tiles over a box, and the weighted sum that puts their results together.

::

    one axis, tile 5, step 3:    |0 1 2 3 4|
                                       |3 4 5 6 7|
                                          |4 5 6 7 8|   the last tile ends at the end

Every voxel is covered; where tiles overlap, results are averaged with weights that fall off
towards a tile's border, where a convolution sees padding instead of the image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Box = tuple[slice, slice, slice]
T = TypeVar("T", "NDArray[Any]", Tensor)


def network_order(volume: T) -> T:
    """Axes (x, y, z) of an LPS volume → (z, x, y), the order in which the networks are fed."""
    return volume.transpose(2, 0, 1) if isinstance(volume, np.ndarray) else volume.permute(2, 0, 1)


def volume_order(fed: T) -> T:
    """The inverse of :func:`network_order`; leading axes (channels) stay in front."""
    lead: int = fed.ndim - 3
    axes = (*range(lead), *(lead + k for k in (1, 2, 0)))
    return fed.transpose(axes) if isinstance(fed, np.ndarray) else fed.permute(axes)


def starts(length: int, tile: int, step: int) -> list[int]:
    """First indices of tiles of one axis.

    >>> starts(9, 5, 3)
    [0, 3, 4]
    >>> starts(5, 5, 3)
    [0]
    """
    if tile > length:
        raise ValueError(f"expected a tile of at most {length} voxels, got {tile}")
    result = list(range(0, length - tile, step))
    return [*result, length - tile]


def boxes(shape: tuple[int, int, int], tile: tuple[int, int, int], overlap: int) -> Iterator[Box]:
    """Tiles that cover ``shape``; neighbours share at least ``overlap`` voxels."""
    axes = [starts(n, t, max(t - overlap, 1)) for n, t in zip(shape, tile, strict=True)]
    for corner in product(*axes):
        a, b, c = (slice(s, s + t) for s, t in zip(corner, tile, strict=True))
        yield a, b, c


def cores(
    shape: tuple[int, int, int], most: int, overlap: int, multiple: int
) -> list[tuple[Box, Box]]:
    """Cut a volume into as few cores as allow tiles of ``most`` voxels.

    A tile is a core and ``overlap`` voxels around it, within the volume.  Cores share nothing and
    are cut along the axis on which that makes the tiles smallest.

    Parameters
    ----------
    shape, overlap : voxels, multiples of ``multiple``
    most : of the voxels of a tile; where even cores of ``multiple`` voxels have larger tiles, those

    Returns
    -------
    (core, tile) of each, as boxes of the volume

    >>> [(c[0], t[0]) for c, t in cores((48, 8, 8), 32 * 64, 8, 8)]
    [(slice(0, 24, None), slice(0, 32, None)), (slice(24, 48, None), slice(16, 48, None))]
    """
    counts = [1, 1, 1]

    def edge(axis: int, number: int) -> int:
        core = math.ceil(shape[axis] / number / multiple) * multiple
        sides = min(number - 1, 2)  # with neighbours
        return min(core + sides * overlap, shape[axis])

    def size(numbers: list[int]) -> int:
        return int(np.prod([edge(k, n) for k, n in enumerate(numbers)]))

    while size(counts) > most:
        options = [
            [n + (k == axis) for k, n in enumerate(counts)]
            for axis in range(3)
            if shape[axis] > counts[axis] * multiple
        ]
        if not options:
            break
        counts = min(options, key=size)
    lines = []
    for n, number in zip(shape, counts, strict=True):
        length = math.ceil(n / number / multiple) * multiple
        lines.append(
            [
                (
                    slice(a, min(a + length, n)),
                    slice(max(a - overlap, 0), min(a + length + overlap, n)),
                )
                for a in range(0, n, length)
            ]
        )
    return [((a[0], b[0], c[0]), (a[1], b[1], c[1])) for a, b, c in product(*lines)]


def reference_grid(
    shape: tuple[int, int, int], patch: int = 40, stride: int = 18
) -> Iterator[Box]:
    """The published patches of a box: cubes of 40 voxels every 18, the last ones at its end.

    >>> [b[0].start for b in reference_grid((80, 40, 40))]
    [0, 18, 36, 40]
    """
    return boxes(shape, (patch, patch, patch), patch - stride)


@dataclass
class WeightedSum:
    """Running sums of tile results over a volume; memory is taken once."""

    total: NDArray[np.float32]  # (channels, D, H, W)
    weight: NDArray[np.float32]  # (D, H, W)

    @classmethod
    def zeros(cls, channels: int, shape: tuple[int, int, int]) -> WeightedSum:
        """An empty sum for ``channels`` values a voxel."""
        return cls(np.zeros((channels, *shape), np.float32), np.zeros(shape, np.float32))

    def add(self, box: Box, values: NDArray[np.float32], weight: NDArray[np.float32]) -> None:
        """Add (channels, …) values of one tile."""
        self.total[(slice(None), *box)] += values * weight
        self.weight[box] += weight

    def result(self) -> NDArray[np.float32]:
        """The weighted mean, (channels, D, H, W); zero where no tile was."""
        return np.divide(
            self.total, self.weight, out=np.zeros_like(self.total), where=self.weight > 0
        )
