# SPDX-License-Identifier: Apache-2.0
"""The grids and windows on which a head is looked at, and the scaling of its intensities.

Training and inference share these, so that a network meets in use what it met in training.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

GRID_MM = 3.0
WINDOW = (72, 80, 72)  # voxels of GRID_MM, (X, Y, Z): 216 × 240 × 216 mm, multiples of 8
PRESENT = 0.02  # share of the fullest plane's foreground that makes a plane part of the head
PERCENTILES = (1.0, 99.5)


def normalise(data: Tensor) -> Tensor:
    """Scale a head to about 0…1 by the 1st and 99.5th percentile of its voxels above the minimum.

    Used alike in training and inference.  Works on a sample of the voxels, which is plenty.

    Parameters
    ----------
    data : (X, Y, Z)
    """
    flat = data.flatten()
    flat = flat[flat > flat.min()]
    if flat.numel() == 0:
        return torch.zeros_like(data)
    flat = flat[:: max(flat.numel() // 50_000, 1)]
    low, high = torch.quantile(
        flat, torch.tensor([q / 100 for q in PERCENTILES], device=flat.device)
    )
    return ((data - low) / (high - low).clamp_min(1e-6)).clamp(-0.5, 2.0)


def present(foreground: Tensor, axis: int) -> tuple[int, int]:
    """First plane of an axis with foreground and the one after the last; a few stray voxels do not count.

    All of the axis where there is none.

    Parameters
    ----------
    foreground : (X, Y, Z), numbers: 1 where it is, else 0
    """
    profile = foreground.sum(dim=[k for k in range(3) if k != axis])
    planes = torch.nonzero(profile > PRESENT * profile.max()).flatten()
    if len(planes) == 0:
        return 0, foreground.shape[axis]
    return int(planes[0]), int(planes[-1]) + 1


def place_window(head: Tensor, size: tuple[int, ...] = WINDOW) -> tuple[int, ...]:
    """First voxel of the window on each axis; negative where it begins before the volume does.

    The window is centred on the head, that is the planes with foreground (above the mean).  A head longer
    than the window, one with its neck, keeps its top.  Neither air nor head is left out needlessly.

    Parameters
    ----------
    head : (X, Y, Z), axes LPS
    size : of the window, voxels
    """
    foreground = (head > head.mean()).float()
    starts = []
    for axis, (length, n) in enumerate(zip(head.shape, size, strict=True)):
        low, high = present(foreground, axis)
        top_counts = axis == 2 and high - low > n  # LPS: high z is superior
        start = high - n if top_counts else (low + high - n) // 2
        first, last = sorted((0, length - n))
        starts.append(min(max(start, first), last))
    return tuple(starts)


def background(head: Tensor) -> float:
    """What air looks like in an image: the median of what is darker than the mean.

    Where an image is smaller than a window, this is put around it.  With the least value instead, the
    noise of a small field of view stood out from the emptiness around, and was taken for a head.
    """
    dark = head[head <= head.mean()]
    return float(dark.median()) if dark.numel() else 0.0


def window(
    volume: Tensor, starts: tuple[int, ...], fill: float, size: tuple[int, ...] = WINDOW
) -> Tensor:
    """``volume[start:start + n]`` on each axis, ``fill`` where there is no volume."""
    result = volume.new_full(size, fill)
    cut, put = [], []
    for start, n, length in zip(starts, size, volume.shape, strict=True):
        low, high = max(start, 0), max(min(start + n, length), max(start, 0))
        cut.append(slice(low, high))
        put.append(slice(low - start, high - start))
    result[tuple(put)] = volume[tuple(cut)]
    return result


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
    return linear(
        smooth, tuple(max(1, round(n * z)) for n, z in zip(volume.shape, zoom, strict=True))
    )


def linear(volume: Tensor, size: tuple[int, ...] | torch.Size) -> Tensor:
    """Trilinear resampling to (X, Y, Z); both grids span the same field of view, edge to edge."""
    return F.interpolate(
        volume[None, None], size=tuple(size), mode="trilinear", align_corners=False
    )[0, 0]
