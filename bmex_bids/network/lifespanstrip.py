# SPDX-License-Identifier: Apache-2.0
"""LifespanStrip (Wang et al., Nat. Biomed. Eng. 2025): its network and how it goes over a head."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bmex_bids.exceptions import ImageError
from bmex_bids.network.adunet import ADUNet
from bmex_bids.network.tiling import WeightedSum, boxes

GRID_MM = 1.6
DIVISOR = 10_000.0  # template units → what the network is fed
WINDOW = 64  # voxels of GRID_MM
#: voxels that neighbouring windows share.  The release shares 85 % of a window, which takes about
#: twenty times as long over a head
OVERLAP = 32
GREY, WHITE = 2, 3  # brain is their sum


class LifespanStrip(ADUNet):
    """One ADU-Net with a softmax: (N, 1, D, H, W) → class probabilities (N, 4, D, H, W)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__(width, 1, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(super().forward(x), dim=1)


@functools.lru_cache(maxsize=1)
def _network(path: Path, device: str) -> nn.Module:
    from bmex_bids.network.checkpoints import load_network

    return load_network(path, "lifespanstrip").to(device)


def head_probability(
    head: NDArray[np.float32],
    path: Path,
    *,
    device: str = "auto",
    threads: int | None = None,
    overlap: int = OVERLAP,
) -> NDArray[np.float32]:
    """Probability of brain at each voxel of a head, (X, Y, Z), 0…1.

    Parameters
    ----------
    head : (X, Y, Z), axes LPS, voxels of :data:`GRID_MM`, matched to the network's template
    path : the weight file
    device, threads : as for :func:`bmex_bids.network.predict.enhance`
    overlap : voxels that neighbouring windows share; where they do, the mean is taken
    """
    from bmex_bids.network.predict import resolve_device

    if head.ndim != 3:
        raise ImageError(f"expected a three-dimensional image, got shape {head.shape}")
    where = resolve_device(device)
    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
    network = _network(path, str(where))
    # as SimpleITK hands an array over: (z, y, x)
    fed = np.ascontiguousarray(head.transpose(2, 1, 0) / np.float32(DIVISOR), dtype=np.float32)
    fed, start = _at_least(fed, WINDOW)
    a, b, c = fed.shape
    sums = WeightedSum.zeros(1, (a, b, c))
    weight = np.ones((WINDOW,) * 3, np.float32)
    with torch.inference_mode():
        for box in boxes((a, b, c), (WINDOW, WINDOW, WINDOW), overlap):
            x = torch.from_numpy(np.ascontiguousarray(fed[box]))[None, None].to(where)
            classes = network(x)[0]
            brain = (classes[GREY] + classes[WHITE])[None].float().cpu().numpy()
            sums.add(box, brain, weight)
    kept = tuple(slice(s, s + n) for s, n in zip(start, head.shape[::-1], strict=True))
    return np.ascontiguousarray(sums.result()[0][kept].transpose(2, 1, 0))


def _at_least(fed: NDArray[np.float32], size: int) -> tuple[NDArray[np.float32], tuple[int, ...]]:
    """Zeros around an array that is smaller than a window, and where it begins in them."""
    lack = [max(size - n, 0) for n in fed.shape]
    return np.pad(fed, [(n // 2, n - n // 2) for n in lack]), tuple(n // 2 for n in lack)
