# SPDX-License-Identifier: Apache-2.0
"""The parts of a layer that are computed at once: how its region is cut, and put together.

A processor wants pieces that are neither long (its library multiplies long rows of many results in another,
slower way) nor tiny (what a call costs, and the neighbours that are read beside them).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from bmex_bids.network.engine.regions import Box
from bmex_bids.network.engine.winograd import BLOCK, values_needed

#: the boxes of a region → those that are computed at once
Arrange = Callable[[list[Box]], list[Box]]


@dataclass(frozen=True)
class Piece:
    """A part of a layer that is computed at once, and what is to be done with it, before it."""

    box: Box
    first: Callable[[], None] | None = None


def voxels(box: Box) -> int:
    """How many there are in it."""
    return math.prod(s.stop - s.start for s in box)


def halved(box: Box) -> Box:
    """The voxels of half the grid."""
    a, b, c = (slice(s.start // 2, s.stop // 2) for s in box)
    return a, b, c


def doubled(box: Box) -> Box:
    """The voxels of twice the grid."""
    a, b, c = (slice(s.start * 2, s.stop * 2) for s in box)
    return a, b, c


def cut(box: Box, longest: int) -> list[Box]:
    """A box in parts of nearly one length along W, no longer than that; cuts lie at even voxels.

    >>> [part[2] for part in cut((slice(0, 4), slice(0, 4), slice(2, 52)), 20)]
    [slice(2, 20, None), slice(20, 38, None), slice(38, 52, None)]
    """
    width = box[2].stop - box[2].start
    length = -(-width // -(-width // longest))
    length += length % 2
    return [
        (box[0], box[1], slice(at, min(at + length, box[2].stop)))
        for at in range(box[2].start, box[2].stop, length)
    ]


def shortened(boxes: Iterable[Box], longest: Callable[[Box], int]) -> list[Box]:
    """Each of them cut into parts that are no longer than it says."""
    return [part for box in boxes for part in cut(box, longest(box))]


def longest_of_winograd(channels: int, most: int) -> Callable[[Box], int]:
    """How long a part may be whose work arrays hold ``most`` numbers each, as nearly as lengths of 8 allow."""

    def longest(box: Box) -> int:
        depth, height, width = (s.stop - s.start for s in box)
        tall = -(-depth // BLOCK) * BLOCK, -(-height // BLOCK) * BLOCK
        number = -(-values_needed(*tall, width, channels) // most)
        return max(-(-width // number), min(width, 8))

    return longest


def joined(boxes: Iterable[Box]) -> list[Box]:
    """Boxes that lie side by side and have the same length as one, two by two along H and then along D.

    >>> a, b = ((slice(0, 4), slice(h, h + 4), slice(0, 8)) for h in (0, 4))
    >>> joined([a, b])
    [(slice(0, 4, None), slice(0, 8, None), slice(0, 8, None))]
    """
    return _pairs(_pairs(boxes, 1), 0)


def _pairs(boxes: Iterable[Box], axis: int) -> list[Box]:
    """Two and two as one: the first of a pair lies at an even multiple of its size."""
    left = {tuple((s.start, s.stop) for s in box): None for box in boxes}
    result = []
    for place in list(left):
        if place not in left:
            continue
        (first, end), merged = place[axis], list(place)
        size = end - first
        even = first // size % 2 == 0
        other = list(place)
        other[axis] = (end, end + size) if even else (first - size, first)
        if tuple(other) in left:
            del left[tuple(other)]
            merged[axis] = (min(first, other[axis][0]), max(end, other[axis][1]))
        del left[place]
        a, b, c = (slice(*s) for s in merged)
        result.append((a, b, c))
    return result
