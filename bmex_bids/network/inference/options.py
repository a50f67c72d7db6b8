# SPDX-License-Identifier: Apache-2.0
"""How a network is to be run over a brain."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

OVERLAP = 24  # voxels that a tile sees beyond its core
GEOMETRIES = ("fast", "reference")
PRECISIONS = ("auto", "float32", "bfloat16")


@dataclass(frozen=True)
class Options:
    """How a network is to be run over a brain.

    Attributes
    ----------
    device : ``auto``, ``cpu``, ``cuda`` or ``cuda:N``
    threads : processor threads for the network; all that this process may use when None
    geometry : ``fast``, or ``reference``: the published cubes, in float32, for comparison
    memory_mb : what this process may take in all, 2^20 bytes; what is free when None
    tile : largest edge of a tile in voxels, a multiple of 8; as large as memory allows when None
    overlap : voxels that a tile sees beyond its core, a multiple of 8
    precision : ``float32``, ``bfloat16``, or ``auto``: bfloat16 where the device has it in
        hardware, except where the network's record says float32
    mirroring : average over the brain and its mirror images along the axes ``record.mirrored``,
        with as many passes of the network; the published weights have none.  Or along these axes
    clock : that the seconds are taken from
    """

    device: str = "auto"
    threads: int | None = None
    geometry: str = "fast"
    memory_mb: float | None = None
    tile: int | None = None
    overlap: int = OVERLAP
    precision: str = "auto"
    mirroring: bool | Sequence[str] = True
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        for name, allowed in (("geometry", GEOMETRIES), ("precision", PRECISIONS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"expected a {name} of {allowed}, got {getattr(self, name)!r}")
