# SPDX-License-Identifier: Apache-2.0
"""LifespanStrip (Wang et al., Nat. Biomed. Eng. 2025): how its network goes over a head."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from bmex_bids.exceptions import ImageError
from bmex_bids.network.devices import or_on_processor, resolve_device
from bmex_bids.network.inference.tiling import WeightedSum, boxes
from bmex_bids.network.weights.checkpoints import load_network

GRID_MM = 1.6
DIVISOR = 10_000.0  # template units → what the network is fed
WINDOW = 64  # voxels of GRID_MM
#: voxels that neighbouring windows share.  The release shares 85 % of a window, which takes about
#: twenty times as long over a head
OVERLAP = 32
GREY, WHITE = 2, 3  # brain is their sum


@functools.lru_cache(maxsize=1)
def _network(path: Path, device: str) -> nn.Module:
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
    device, threads : as for :func:`bmex_bids.network.inference.predict.enhance`
    overlap : voxels that neighbouring windows share; where they do, the mean is taken
    """
    if head.ndim != 3:
        raise ImageError(f"expected a three-dimensional image, got shape {head.shape}")
    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
    # as SimpleITK hands an array over: (z, y, x)
    fed = np.ascontiguousarray(head.transpose(2, 1, 0) / np.float32(DIVISOR), dtype=np.float32)
    fed, start = _at_least(fed, WINDOW)
    brain = or_on_processor(
        resolve_device(device), lambda where: _windows(fed, path, where, overlap)
    )
    kept = tuple(slice(s, s + n) for s, n in zip(start, head.shape[::-1], strict=True))
    return np.ascontiguousarray(brain[kept].transpose(2, 1, 0))


def _windows(
    fed: NDArray[np.float32], path: Path, device: torch.device, overlap: int
) -> NDArray[np.float32]:
    """Probability of brain, (z, y, x), of an array no smaller than a window."""
    network = _network(path, str(device))
    sums = WeightedSum.zeros(1, (fed.shape[0], fed.shape[1], fed.shape[2]))
    weight = np.ones((WINDOW,) * 3, np.float32)
    with torch.inference_mode():
        for box in boxes(sums.weight.shape, (WINDOW, WINDOW, WINDOW), overlap):  # type: ignore[arg-type]
            x = torch.from_numpy(np.ascontiguousarray(fed[box]))[None, None].to(device)
            classes = network(x)[0]
            brain = (classes[GREY] + classes[WHITE])[None].float().cpu().numpy()
            sums.add(box, brain, weight)
    return sums.result()[0]


def _at_least(fed: NDArray[np.float32], size: int) -> tuple[NDArray[np.float32], tuple[int, ...]]:
    """Zeros around an array that is smaller than a window, and where it begins in them."""
    lack = [max(size - n, 0) for n in fed.shape]
    return np.pad(fed, [(n // 2, n - n // 2) for n in lack]), tuple(n // 2 for n in lack)
