# SPDX-License-Identifier: Apache-2.0
"""Where a layer has to be computed: near the brain, and no further than its readers reach.

Everything is counted in voxels of the full grid, axes (D, H, W), sizes multiples of 8.  A layer
whose result is read by a 3×3×3 convolution is needed one voxel further out than that one's, and so
on back to the input: after the last convolution the brain alone, before the first of the last ten
the brain and nine voxels.  Further back the reach is capped (``CONTEXT``): what lies further from
the brain is empty, and is taken to look as an endless emptiness does in that layer.

A region is cut into slabs of a few planes and rows; in each, one run of voxels along W, from the
first to the last that is needed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bmex_bids.network.models.topology import PERIOD

Box = tuple[slice, slice, slice]
SLAB = 16  # planes and rows
CONTEXT = 8  # voxels around the brain in which the deeper layers are computed


def _rows(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First voxel and the one after the last of each row along W; (W, 0) of an empty one."""
    width = mask.shape[2]
    some = mask.any(axis=2)
    first = np.where(some, mask.argmax(axis=2), width)
    last = np.where(some, width - mask[:, :, ::-1].argmax(axis=2), 0)
    return first.astype(np.int64), last.astype(np.int64)


@dataclass(frozen=True)
class Run:
    """The part of a slab that is computed (``box``) and the strips beside it, in layer voxels."""

    box: Box | None
    around: tuple[Box, ...]


class Regions:
    """The regions of one volume.

    Parameters
    ----------
    wanted : (D, H, W), the voxels that the last layer has to give
    context : (D, H, W), the voxels that are not empty; ``wanted`` is a part of it.  None: the same
    whole : compute every layer everywhere, as the plain network does
    slab : planes and rows of a slab, the same at all scales (so that where a layer is computed,
        the one that it reads is either computed or filled), a multiple of 8
    """

    def __init__(
        self,
        wanted: NDArray[np.bool_],
        context: NDArray[np.bool_] | None = None,
        *,
        reach: int = CONTEXT,
        whole: bool = False,
        slab: int = SLAB,
    ) -> None:
        self.shape: tuple[int, int, int] = wanted.shape  # type: ignore[assignment]
        if any(n % PERIOD for n in self.shape):
            raise ValueError(f"expected sizes that are multiples of {PERIOD}, got {self.shape}")
        self.reach, self.whole = reach, whole
        self.slab = slab
        self._wanted = _rows(wanted)
        self._context = self._wanted if context is None else _rows(context)
        self._known: dict[tuple[int, int], list[Run]] = {}

    def runs(self, scale: int, need: int) -> list[Run]:
        """The slabs of a layer at 1/scale that is needed ``need`` voxels beyond ``wanted``."""
        need = min(need, max(self.shape))
        if (scale, need) not in self._known:
            self._known[scale, need] = self._find(scale, need)
        return self._known[scale, need]

    def _find(self, scale: int, need: int) -> list[Run]:
        depth, height, width = self.shape
        step = self.slab
        tops, lefts = range(0, depth, step), range(0, height, step)
        spans = [[self._span(d, h, step, need) for h in lefts] for d in tops]
        result = []
        for i, d in enumerate(tops):
            for j, h in enumerate(lefts):
                near = [
                    spans[m][n]
                    for m in range(max(i - 1, 0), min(i + 2, len(tops)))
                    for n in range(max(j - 1, 0), min(j + 2, len(lefts)))
                ]
                low = max(min(a for a, b in near) - PERIOD, 0)
                high = min(max(b for a, b in near) + PERIOD, width)
                if high <= low:
                    continue
                slab = (
                    slice(d // scale, min(d + step, depth) // scale),
                    slice(h // scale, min(h + step, height) // scale),
                )
                a, b = spans[i][j]
                if b <= a:
                    strips = [(low, high)]
                else:
                    strips = [(x, y) for x, y in ((low, a), (b, high)) if y > x]
                result.append(
                    Run(
                        box=(*slab, slice(a // scale, b // scale)) if b > a else None,
                        around=tuple((*slab, slice(x // scale, y // scale)) for x, y in strips),
                    )
                )
        return result

    def _span(self, d: int, h: int, step: int, need: int) -> tuple[int, int]:
        """The run along W of one slab; (W, 0) when there is none."""
        width = self.shape[2]
        if self.whole:
            return 0, width
        bounds = []
        for (first, last), beyond in (
            (self._wanted, need),
            (self._context, min(need, self.reach)),
        ):
            part = (
                slice(max(d - beyond, 0), d + step + beyond),
                slice(max(h - beyond, 0), h + step + beyond),
            )
            low, high = int(first[part].min()), int(last[part].max())
            if high <= low:
                return width, 0
            low, high = max(low - beyond, 0), min(high + beyond, width)
            bounds.append((low // PERIOD * PERIOD, -(-high // PERIOD) * PERIOD))
        low, high = max(a for a, _ in bounds), min(b for _, b in bounds)
        return (low, high) if high > low else (width, 0)
