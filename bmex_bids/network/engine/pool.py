# SPDX-License-Identifier: Apache-2.0
"""Memory that is used again: a stretch in which large arrays come and go, and work arrays.

A processor's memory is given out in pages when they are first written to, which takes four times as
long as the writing; and what is freed goes back to the system.  A network that makes a new array
for every few layers spent a fifth of its time on that.  (Graphics cards need none of this: there
torch keeps what is freed.)
"""

from __future__ import annotations

import math
import weakref
from collections import deque
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ALIGNED = 4096  # bytes; arrays begin at multiples of it


class Pool:
    """Lends parts of one stretch of memory as tensors, from both of its ends.

    Large arrays at one end, small ones at the other: so that a small one that lives long leaves no
    gap between the large ones.  A part is free again when the tensor and all its views are gone.  What
    does not fit is made anew.

    Parameters
    ----------
    capacity : of the stretch, bytes; memory that is not written to takes none
    """

    def __init__(self, capacity: int) -> None:
        # not numpy's own, which asks for pages of 2 MB: to give out those takes longer here
        self._stretch: NDArray[np.uint8] = torch.empty(capacity, dtype=torch.uint8).numpy()
        self._free: list[tuple[int, int]] = [(0, capacity)]  # first byte, the one after the last
        self._returned: deque[tuple[int, int]] = deque()  # by whatever thread had the last view
        self.missed = 0  # arrays that did not fit
        self.capacity = capacity

    def is_free(self) -> bool:
        """Whether nothing is lent."""
        self._join()
        return self._free == [(0, self.capacity)]

    def take(self, shape: Sequence[int], dtype: torch.dtype, *, high: bool = False) -> Tensor:
        """A contiguous tensor with anything in it, on the CPU; ``high``: from the far end."""
        self._join()
        size = math.prod(shape) * dtype.itemsize
        whole = -(-size // ALIGNED) * ALIGNED
        fitting = [part for part in self._free if part[1] - part[0] >= whole]
        if not fitting:
            self.missed += 1
            return torch.empty(tuple(shape), dtype=dtype)
        part = fitting[-1 if high else 0]
        low = part[1] - whole if high else part[0]
        self._free.remove(part)
        rest = [(part[0], low), (low + whole, part[1])]
        self._free += [r for r in rest if r[0] < r[1]]
        lent = self._stretch[low : low + size]  # lives as long as the tensor's memory is used
        weakref.finalize(lent, self._returned.append, (low, low + whole)).atexit = False
        return torch.from_numpy(lent).view(dtype).view(*shape)

    def _join(self) -> None:
        """Take what was returned, and make neighbours one."""
        while self._returned:
            self._free.append(self._returned.popleft())
        joined: list[tuple[int, int]] = []
        for first, end in sorted(self._free):
            if joined and joined[-1][1] == first:
                joined[-1] = joined[-1][0], end
            else:
                joined.append((first, end))
        self._free = joined


class Memory:
    """The stretch of one run of a network, kept for the next one: of a mirror image, or of another tile.

    To be given its pages anew took a tenth of the time of a run on a virtual machine.
    """

    def __init__(self) -> None:
        self._pool: Pool | None = None

    def pool(self, capacity: int) -> Pool:
        """One of at least that many bytes, with nothing in it."""
        if self._pool is None or self._pool.capacity < capacity or not self._pool.is_free():
            self._pool = None  # before the next is made
            self._pool = Pool(capacity)
        return self._pool

    def release(self) -> None:
        """Give it back to the system, as soon as nobody uses it."""
        self._pool = None


class Workspace:
    """Memory that is taken once and lent again and again."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self._held: dict[str, Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], *, zeros: bool = False) -> Tensor:
        """A contiguous array of this shape with anything in it; the last of its name is void.

        ``zeros``: what has not been written to under this name is zero.
        """
        count = math.prod(shape)
        held = self._held.get(name)
        if held is None or held.numel() < count:
            self._held.pop(name, None)
            make = torch.zeros if zeros else torch.empty
            held = make(count, device=self.device, dtype=self.dtype)
            self._held[name] = held
        return held[:count].view(shape)
