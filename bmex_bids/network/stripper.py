# SPDX-License-Identifier: Apache-2.0
"""Brain extraction: the probability of brain at each voxel, whatever the contrast.

First a network sees the whole head at 3 mm and says roughly where the brain is.  A second one, if
the weights have it, then looks closer: at a window that the brain fills, with voxels of some 1.9 mm
for an adult and half of that for a fetus, and with the first one's answer.  Of the first one's
errors four in five lay within one of its voxels of the true outline, and small heads had twice as
many.  The answer is brought back to the image's grid by linear interpolation, and a threshold of
one half then cuts with sub-voxel accuracy.

The first network always sees a window of one size, :data:`~.headgrid.WINDOW`, around the head, as
in training: its instance normalisation and its notion of place depend on how much air there is
around (with 24 mm more on each side the Dice of synthetic heads fell from 0.916 to 0.877, with 48 mm to
0.797).  The second always sees brains of one size for the same reason.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bmex_bids.exceptions import ImageError
from bmex_bids.network.checkpoints import load_network
from bmex_bids.network.compact import TwoStageStripper
from bmex_bids.network.headgrid import (
    GRID_MM,
    PRESENT,
    linear,
    normalise,
    place_window,
    resize,
    window,
)
from bmex_bids.network.predict import resolve_device
from bmex_bids.network.registry import WeightRecord
from bmex_bids.network.tiling import network_order, volume_order

CLOSE = (96, 112, 96)  # voxels of the closer look, (X, Y, Z), multiples of 8
ROOM = 10  # voxels of it that the brain leaves free on each side
FINEST_MM = 0.8
SURE = 8.0  # logits are kept within ±SURE


@dataclass(frozen=True)
class View:
    """A window of :data:`CLOSE` voxels: their size, and the first one on each axis."""

    spacing_mm: float
    first: tuple[int, ...]


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
        if isinstance(network, TwoStageStripper):
            rough = coarse_logits(network.coarse, full, spacing_mm)
            logits = refined_logits(network.refine, full, spacing_mm, rough)
        else:
            logits = coarse_logits(network, full, spacing_mm)
        result = torch.sigmoid(linear(logits, full.shape))
    return np.ascontiguousarray(result.cpu().numpy(), dtype=np.float32)


def coarse_logits(
    network: nn.Module, image: Tensor, spacing_mm: float | tuple[float, float, float]
) -> Tensor:
    """What the first network says: logits at 3 mm, as they are (X, Y, Z) of that grid."""
    coarse = resize(image, _zoom(spacing_mm, GRID_MM))
    first = place_window(normalise(coarse))
    seen = window(coarse, first, float(coarse.min()))
    logits = volume_order(network(network_order(normalise(seen))[None, None])[0, 0])
    back = tuple(-s for s in first)
    return window(logits.clamp(-SURE, SURE), back, -SURE, tuple(coarse.shape))


def closer_view(
    logits: Tensor, *, zoom: float = 1.0, shift: tuple[int, ...] = (0, 0, 0)
) -> View | None:
    """The window that a brain fills; None where there is none.

    Parameters
    ----------
    logits : of the first network, on its grid
    zoom, shift : voxels that much larger, and a window so many of them off; for training
    """
    brain = (logits > 0).float()
    if not bool(brain.any()):
        return None
    middles, spacings = [], []
    for axis, size in enumerate(CLOSE):
        profile = brain.sum(dim=[k for k in range(3) if k != axis])
        planes = torch.nonzero(profile > PRESENT * profile.max()).flatten()
        low, high = GRID_MM * int(planes[0]), GRID_MM * (int(planes[-1]) + 1)
        middles.append((low + high) / 2)
        spacings.append((high - low) / (size - 2 * ROOM))
    spacing = zoom * min(max(*spacings, FINEST_MM), GRID_MM)
    first = tuple(
        round(middle / spacing - size / 2) + off
        for middle, size, off in zip(middles, CLOSE, shift, strict=True)
    )
    return View(spacing, first)


def look_closer(
    image: Tensor, spacing_mm: float | tuple[float, float, float], logits: Tensor, view: View
) -> tuple[Tensor, Tensor]:
    """What the second network gets, both (X, Y, Z) of :data:`CLOSE`.

    The image is scaled by what the first network takes for brain, which varies less than a head.

    Parameters
    ----------
    image : (X, Y, Z), any intensity unit
    logits : of the first network, on its grid

    Returns
    -------
    image, logits : in the window
    """
    fine = resize(image, _zoom(spacing_mm, view.spacing_mm))
    part = window(fine, view.first, float(fine.min()), CLOSE)
    known = window(linear(logits, fine.shape), view.first, -SURE, CLOSE)
    return normalise(part, known > 0), known


def refined_logits(
    refine: Callable[[Tensor, Tensor], Tensor],
    image: Tensor,
    spacing_mm: float | tuple[float, float, float],
    logits: Tensor,
) -> Tensor:
    """What the second network makes of it: logits on the grid of its view, over the whole image.

    Parameters
    ----------
    refine : the second network: (1, 1, D, H, W) image and logits → logits
    image : (X, Y, Z), any intensity unit
    spacing_mm : its voxel sizes
    logits : of the first network, on its own grid; they hold where the second does not look
    """
    view = closer_view(logits)
    if view is None:
        return logits
    part, known = look_closer(image, spacing_mm, logits, view)
    seen = (network_order(v)[None, None] for v in (part, known))
    refined = volume_order(refine(*seen)[0, 0])
    zoom = _zoom(spacing_mm, view.spacing_mm)
    shape = tuple(max(1, round(n * z)) for n, z in zip(image.shape, zoom, strict=True))
    result = linear(logits, shape)
    inside = [
        slice(max(first, 0), min(first + size, n))
        for first, size, n in zip(view.first, CLOSE, shape, strict=True)
    ]
    back = [slice(i.start - f, i.stop - f) for i, f in zip(inside, view.first, strict=True)]
    result[tuple(inside)] = refined[tuple(back)]
    return result


def _zoom(spacing_mm: float | tuple[float, float, float], wanted_mm: float) -> tuple[float, ...]:
    spacing = (spacing_mm,) * 3 if isinstance(spacing_mm, float) else spacing_mm
    return tuple(s / wanted_mm for s in spacing)
