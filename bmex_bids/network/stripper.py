# SPDX-License-Identifier: Apache-2.0
"""Brain extraction: the probability of brain at each voxel, whatever the contrast.

The network sees the whole head at 3 mm; the probability is brought back to the image's grid by
linear interpolation, and a threshold of one half then cuts with sub-voxel accuracy.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from bmex_bids.exceptions import ImageError
from bmex_bids.network.checkpoints import load_network
from bmex_bids.network.predict import resolve_device
from bmex_bids.network.registry import WeightRecord
from bmex_bids.network.tiling import network_order, volume_order

GRID_MM = 3.0
MULTIPLE = 8
PERCENTILES = (1.0, 99.5)


def normalise(data: Tensor) -> Tensor:
    """Scale a head to about 0…1 by the 1st and 99.5th percentile of its voxels above the minimum.

    Used alike in training and inference.  Works on a sample of the voxels, which is plenty.
    """
    flat = data.flatten()
    flat = flat[flat > flat.min()]
    if flat.numel() == 0:
        return torch.zeros_like(data)
    flat = flat[:: max(flat.numel() // 200_000, 1)]
    low, high = torch.quantile(
        flat, torch.tensor([q / 100 for q in PERCENTILES], device=flat.device)
    )
    return ((data - low) / (high - low).clamp_min(1e-6)).clamp(-0.5, 2.0)


@functools.lru_cache(maxsize=1)
def _network(path: Path, variant: str, device: str) -> nn.Module:
    return load_network(path, variant).to(device)


def brain_probability(
    data: NDArray[np.float32],
    spacing_mm: tuple[float, float, float],
    record: WeightRecord,
    *,
    device: str = "auto",
    threads: int | None = None,
) -> NDArray[np.float32]:
    """Probability of brain, (X, Y, Z), 0…1, on the input's grid.

    Parameters
    ----------
    data : (X, Y, Z), axes LPS, any intensity unit
    spacing_mm : voxel sizes
    record : weights of kind ``"strip"``
    device, threads : as for :func:`bmex_bids.network.predict.enhance`
    """
    if data.ndim != 3:
        raise ImageError(f"expected a three-dimensional image, got shape {data.shape}")
    where = resolve_device(device)
    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
    network = _network(record.path, record.variant, str(where))
    with torch.inference_mode():
        full = torch.from_numpy(np.ascontiguousarray(data, dtype=np.float32)).to(where)
        coarse = resize(full, tuple(s / GRID_MM for s in spacing_mm))
        x = network_order(normalise(coarse))[None, None]
        pad = [(-n) % MULTIPLE + 2 * MULTIPLE for n in x.shape[2:]]
        margins = [(p // 2, p - p // 2) for p in pad]
        x = F.pad(x, [m for side in reversed(margins) for m in side], mode="replicate")
        logits = network(x)[0, 0]
        crop = tuple(slice(a, n - b) for (a, b), n in zip(margins, logits.shape, strict=True))
        probability = volume_order(torch.sigmoid(logits[crop]))
        result = _linear(probability, full.shape)
    return np.ascontiguousarray(result.cpu().numpy(), dtype=np.float32)


def resize(volume: Tensor, zoom: tuple[float, ...]) -> Tensor:
    """Linear resampling of an (X, Y, Z) volume, averaging first where it gets coarser."""
    window = [max(1, round(1 / z)) for z in zoom]
    if max(window) > 1:
        pad = [(w - n % w) % w if n % w else 0 for n, w in zip(volume.shape, window, strict=True)]
        if not any(pad) and all(abs(1 / z - w) < 1e-6 for z, w in zip(zoom, window, strict=True)):
            return F.avg_pool3d(volume[None, None], window)[0, 0]
        kernel = [w + 1 - w % 2 for w in window]  # odd: the grid keeps its place
        smooth = F.avg_pool3d(
            volume[None, None],
            kernel,
            stride=1,
            padding=[k // 2 for k in kernel],
            count_include_pad=False,
        )[0, 0]
    else:
        smooth = volume
    size = [max(1, round(n * z)) for n, z in zip(volume.shape, zoom, strict=True)]
    return _linear(smooth, tuple(size))


def _linear(volume: Tensor, size: tuple[int, ...] | torch.Size) -> Tensor:
    """Both grids span the same field of view, edge to edge."""
    return F.interpolate(
        volume[None, None], size=tuple(size), mode="trilinear", align_corners=False
    )[0, 0]
