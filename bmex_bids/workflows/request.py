# SPDX-License-Identifier: Apache-2.0
"""What a workflow is built from, besides the planned image."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bmex_bids.network.weights.registry import WeightRecord


@dataclass(frozen=True)
class Networks:
    """Which networks work on an image.

    Attributes
    ----------
    enhance : weights of the enhancement network
    strip : weights of the stripping network; None where the image needs none
    structures : weights of the network that labels structures; None where they are not wanted
    halving : weights of the network that halves the edges of voxels; None where it is not wanted
    geometry, mirroring, precision : of the enhancement network, see ``network.predict``
    max_change : largest change of a voxel, % of the range of the reference; None: no limit
    """

    enhance: WeightRecord
    strip: WeightRecord | None = None
    structures: WeightRecord | None = None
    halving: WeightRecord | None = None
    geometry: str = "fast"
    mirroring: bool = True
    precision: str = "auto"
    max_change: float | None = None


@dataclass(frozen=True)
class Machine:
    """What the nodes of an image may take.

    Attributes
    ----------
    device, use_gpu : for the networks; nodes with ``use_gpu`` wait for a GPU slot
    low_mem : small tiles
    memory_limit_gb : what a run may take, 2^30 bytes; tiles become smaller for it
    omp_nthreads : threads of one node
    """

    device: str = "auto"
    use_gpu: bool = False
    low_mem: bool = False
    memory_limit_gb: float | None = None
    omp_nthreads: int = 1


@dataclass(frozen=True)
class Target:
    """Where the results go, and which are wanted.

    Attributes
    ----------
    bids_dir, output_dir : the two datasets
    output_res, qc_only, uncertainty, segment : what is written; see ``outputs.sidecar.chosen_products``
    fingerprint : what the products are made from; see ``outputs.resume``
    """

    bids_dir: Path
    output_dir: Path
    output_res: Sequence[str] = ("native", "0p8")
    qc_only: bool = False
    uncertainty: str = "learnt"
    segment: str = "tissues"
    fingerprint: Mapping[str, str] | None = None


def as_table(record: WeightRecord) -> dict[str, Any]:
    """A weight record as plain values, so that Nipype can hash and store it."""
    table = dataclasses.asdict(record)
    return {
        key: str(value)
        if isinstance(value, Path)
        else list(value)
        if isinstance(value, tuple)
        else value
        for key, value in table.items()
    }
