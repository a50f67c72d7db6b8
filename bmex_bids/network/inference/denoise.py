# SPDX-License-Identifier: Apache-2.0
"""The noise of an image, by the network of :mod:`bmex_bids.network.models.denoise`."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from bmex_bids.network.devices import native_dtype
from bmex_bids.network.inference.tiling import cores
from bmex_bids.network.models.denoise import MULTIPLE, DenoiseNet
from bmex_bids.network.weights.checkpoints import load_network_as
from bmex_bids.network.weights.registry import WeightRecord

#: order of the axes of a pass, and those along which it is mirrored; the mean is taken
TURNS: tuple[tuple[tuple[int, int, int], tuple[int, ...]], ...] = (
    ((0, 1, 2), ()),
    ((1, 2, 0), (0, 2)),
    ((2, 0, 1), (1,)),
)
#: voxels of a tile, and around its core: what the network sees on each side
TILE, AROUND = 96**3, 16


@functools.lru_cache(maxsize=1)
def _network(path: Path, variant: str) -> DenoiseNet:
    return load_network_as(path, variant, DenoiseNet, "that tells noise")


@torch.inference_mode()
def noise_of(image: Tensor, sigma: float, *, record: WeightRecord) -> Tensor:
    """The noise of an image, (X, Y, Z), to be taken off; zero where a tile is all zero.

    Parameters
    ----------
    image : (X, Y, Z), 0…1000; 0 outside a mask
    sigma : standard deviation of the noise, same unit, above 0
    record : weights of kind ``"denoise"``
    """
    network = _network(record.path, record.variant)
    told = torch.tensor([sigma], dtype=torch.float32)
    total = torch.zeros_like(image)
    dtype = native_dtype(torch.device("cpu"))
    with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
        for order, mirrored in TURNS:
            back = [order.index(axis) for axis in range(3)]
            noise = _in_tiles(network, image.permute(order).flip(mirrored), told)
            total += noise.flip(mirrored).permute(back)
    return total / len(TURNS)


def _in_tiles(network: DenoiseNet, image: Tensor, sigma: Tensor) -> Tensor:
    room = [side for n in reversed(image.shape) for side in (0, -n % MULTIPLE)]
    padded = F.pad(image, room)
    noise = torch.zeros_like(padded)
    x, y, z = padded.shape
    for core, tile in cores((x, y, z), TILE, AROUND, MULTIPLE):
        seen = padded[tile]
        if bool(seen.any()):
            found = network(seen.contiguous()[None, None], sigma)[0, 0].float()
            inner = tuple(
                slice(c.start - t.start, c.stop - t.start) for c, t in zip(core, tile, strict=True)
            )
            noise[core] = found[inner]
    return noise[tuple(slice(0, n) for n in image.shape)]
