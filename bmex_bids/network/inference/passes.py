# SPDX-License-Identifier: Apache-2.0
"""One pass of a network over a volume: layer by layer, plain, or in the published patches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bmex_bids.common.boxes import bounding_box
from bmex_bids.network.devices import native_dtype
from bmex_bids.network.engine.regions import Regions
from bmex_bids.network.engine.run import bytes_per_voxel, run_layers, runs_in_layers
from bmex_bids.network.inference.tiling import WeightedSum, cores, reference_grid
from bmex_bids.network.inference.volumes import MULTIPLE
from bmex_bids.network.variants import Variant

#: the published way: cubes of 40 voxels every 18, of whose results the outer 5 are dropped
PATCH, STRIDE, CROP = 40, 18, 5
#: of the Caffe release, which drops nothing
CAFFE_STRIDE, CAFFE_CROP = 12, 0
PADDING = 5  # voxels around the brain's bounding box that patches cover too
#: planes and rows of a piece on a GPU, where calls cost more than arithmetic
GPU_SLAB, SLAB = 64, 16


@dataclass(frozen=True)
class Pass:
    """A network on a device, and what it is to make.

    Attributes
    ----------
    network : takes (1, 1, D, H, W), returns scores and image; ``classify`` returns the scores
    variant : its record
    dtype : of the features
    tissues_only : leave the image out
    """

    network: nn.Module
    variant: Variant
    device: torch.device
    dtype: torch.dtype
    tissues_only: bool

    @property
    def voxel_bytes(self) -> int:
        """Memory for each voxel of a tile."""
        if runs_in_layers(self.network):
            return bytes_per_voxel(self.network, self.dtype)
        return self.variant.bytes_per_voxel

    def over(
        self, brain: NDArray[np.float32], wanted: NDArray[np.bool_], most: int, overlap: int
    ) -> tuple[NDArray[np.float32], float]:
        """Values (D, H, W, channels) and the operations that were counted.

        Parameters
        ----------
        brain, wanted : (D, H, W), sizes that are multiples of 8
        most : voxels of a tile
        overlap : voxels that a tile sees beyond its core, at most; a small tile sees less
        """
        shape = (brain.shape[0], brain.shape[1], brain.shape[2])
        overlap = min(overlap, max(int(most ** (1 / 3)) // 4, MULTIPLE)) // MULTIPLE * MULTIPLE
        result, operations = np.zeros((*shape, 0), np.float32), 0.0
        for core, tile in cores(shape, most, overlap, MULTIPLE):
            if not wanted[core].any():
                continue
            here = np.zeros_like(wanted[tile])
            place = tuple(
                slice(c.start - t.start, c.stop - t.start) for c, t in zip(core, tile, strict=True)
            )
            here[place] = wanted[core]
            volume = torch.from_numpy(np.ascontiguousarray(brain[tile])).to(self.device)
            if runs_in_layers(self.network):
                slab = SLAB if self.device.type == "cpu" else GPU_SLAB
                made = run_layers(
                    self.network, volume, Regions(here, wanted[tile], slab=slab),
                    tissues_only=self.tissues_only, dtype=self.dtype,
                )  # fmt: skip
                values = made.values
                operations += made.operations
                del made
            else:
                values = self.plain(volume)
            if not result.shape[3]:
                result = np.zeros((*shape, values.shape[3]), np.float32)
            result[core] = values[place].float().cpu().numpy()
            del values
        return result, operations

    def plain(self, volume: Tensor) -> Tensor:
        """The network's own forward pass: (D, H, W) → (D, H, W, channels) float32.

        In bfloat16 only the convolutions are: what the image is added to stays float32.
        """
        half = self.dtype == torch.bfloat16
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=half),
        ):
            x = volume[None, None]
            if self.tissues_only:
                found: Tensor = self.network.classify(x)  # type: ignore[operator]
            else:
                found = torch.cat([part.float() for part in self.network(x)], dim=1)
        return found[0].float().permute(1, 2, 3, 0)

    def in_patches(
        self, brain: NDArray[np.float32], wanted: NDArray[np.bool_]
    ) -> NDArray[np.float32]:
        """The published geometry, one patch after the other, (D, H, W, channels).

        Each patch of the grid is computed, also where there is no brain, as in the published code.
        """
        caffe = bool(getattr(self.network, "caffe", False))
        stride, crop = (CAFFE_STRIDE, CAFFE_CROP) if caffe else (STRIDE, CROP)
        box = bounding_box(wanted, 0)
        low = [s.start - PADDING for s in box]
        sides = tuple(max(s.stop - s.start + 2 * PADDING, PATCH) for s in box)
        # room around the volume: the grid may begin before it and end behind it
        padded = np.pad(brain, PATCH)
        place = tuple(slice(a + PATCH, a + PATCH + n) for a, n in zip(low, sides, strict=True))
        grid = padded[place]
        weight = np.ones((PATCH - 2 * crop,) * 3, np.float32)
        kept = (slice(crop, PATCH - crop),) * 3
        sums: WeightedSum | None = None
        for patch in reference_grid((sides[0], sides[1], sides[2]), PATCH, stride):
            x = torch.from_numpy(np.ascontiguousarray(grid[patch])).to(self.device)
            values = self.plain(x)[kept].permute(3, 0, 1, 2).cpu().numpy()
            if sums is None:
                sums = WeightedSum.zeros(len(values), (sides[0], sides[1], sides[2]))
            a, b, c = (slice(s.start + crop, s.stop - crop) for s in patch)
            sums.add((a, b, c), values, weight)
        assert sums is not None  # noqa: S101 - for mypy: a grid has patches
        result = np.zeros((len(sums.total), *padded.shape), np.float32)
        result[(slice(None), *place)] = sums.result()
        back = (slice(None), *(slice(PATCH, PATCH + n) for n in brain.shape))
        return np.moveaxis(result[back], 0, -1)


def precision_of(name: str, variant: Variant, device: torch.device) -> torch.dtype:
    """The number format of a network's features; see :class:`.options.Options`."""
    if name != "auto":
        return getattr(torch, name)  # type: ignore[no-any-return]
    if device.type == "cpu" and not variant.bfloat16_on_processor:
        return torch.float32
    return native_dtype(device)
