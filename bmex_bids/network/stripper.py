# SPDX-License-Identifier: Apache-2.0
"""Brain extraction: the probability of brain at each voxel, whatever the contrast.

A network sees the whole head at 3 mm and says roughly where the brain is.  Where that is smaller than
an adult's, it looks again, at voxels as much smaller as the brain is: small heads had twice as many
errors, and most lay within one voxel of the true outline.  The weights may have a second network
(``bmex-train refine``; the bundled ones do not), which looks closer at brains of all sizes and gets
the first answer.  The last answer is brought back to the image's grid by linear interpolation, and
a threshold of one half then cuts with sub-voxel accuracy.

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
    WINDOW,
    background,
    linear,
    normalise,
    place_window,
    present,
    resize,
    resized,
    window,
)
from bmex_bids.network.predict import resolve_device
from bmex_bids.network.registry import WeightRecord
from bmex_bids.network.tiling import network_order, volume_order

CLOSE = (96, 112, 96)  # voxels of the closer look, (X, Y, Z), multiples of 8
ROOM = 10  # voxels of it that the brain leaves free on each side
FINEST_MM = 0.8
AGAIN_ROOM, AGAIN_FINEST_MM = 6, 1.2  # the same of a second look through WINDOW
SURE = 8.0  # logits are kept within ±SURE


@dataclass(frozen=True)
class View:
    """A window: the size of its voxels, and the first one on each axis."""

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
            again = second_view(logits)
            if again is not None:
                logits = logits_at(network, full, spacing_mm, again)
        result = torch.sigmoid(linear(logits, full.shape))
    return np.ascontiguousarray(result.cpu().numpy(), dtype=np.float32)


def coarse_logits(
    network: nn.Module, image: Tensor, spacing_mm: float | tuple[float, float, float]
) -> Tensor:
    """What the first network says: logits at 3 mm, as they are (X, Y, Z) of that grid."""
    return logits_at(network, image, spacing_mm, first_view(image, spacing_mm))


def logits_at(
    network: nn.Module,
    image: Tensor,
    spacing_mm: float | tuple[float, float, float],
    view: View,
) -> Tensor:
    """Logits of the first network at the voxels of a view, (X, Y, Z) of the whole image."""
    logits = volume_order(network(network_order(seen(image, spacing_mm, view))[None, None])[0, 0])
    back = tuple(-s for s in view.first)
    shape = resized(image.shape, _zoom(spacing_mm, view.spacing_mm))
    return window(logits.clamp(-SURE, SURE), back, -SURE, shape)


def seen(image: Tensor, spacing_mm: float | tuple[float, float, float], view: View) -> Tensor:
    """What the first network gets, (X, Y, Z) of :data:`~.headgrid.WINDOW`."""
    grid = resize(image, _zoom(spacing_mm, view.spacing_mm))
    return normalise(window(grid, view.first, background(grid)))


def first_view(image: Tensor, spacing_mm: float | tuple[float, float, float]) -> View:
    """Where the first network looks first: at 3 mm, around the head."""
    return View(GRID_MM, place_window(normalise(resize(image, _zoom(spacing_mm, GRID_MM)))))


def second_view(
    logits: Tensor, *, zoom: float = 1.0, shift: tuple[int, ...] = (0, 0, 0)
) -> View | None:
    """Where the first network looks again: the brain fills the window.  None where there is no brain.

    Parameters
    ----------
    logits : of its first look, at 3 mm
    zoom, shift : voxels that much larger, and a window so many of them off; for training
    """
    return _filled(logits, WINDOW, AGAIN_ROOM, AGAIN_FINEST_MM, zoom, shift)


def _extent(logits: Tensor) -> list[tuple[float, float]]:
    """Where the brain begins and ends on each axis, mm."""
    brain = (logits > 0).float()
    planes = (present(brain, axis) for axis in range(3))
    return [(GRID_MM * low, GRID_MM * high) for low, high in planes]


def _filled(
    logits: Tensor,
    size: tuple[int, ...],
    room: int,
    finest_mm: float,
    zoom: float,
    shift: tuple[int, ...],
) -> View | None:
    """A window of ``size`` voxels that a brain fills but for ``room`` voxels on each side."""
    if not bool((logits > 0).any()):
        return None
    extent = _extent(logits)
    needed = max(
        (high - low) / (n - 2 * room) for (low, high), n in zip(extent, size, strict=True)
    )
    spacing = zoom * min(max(needed, finest_mm), GRID_MM)
    first = (
        round((low + high) / 2 / spacing - n / 2) + off
        for (low, high), n, off in zip(extent, size, shift, strict=True)
    )
    return View(spacing, tuple(first))


def closer_view(
    logits: Tensor, *, zoom: float = 1.0, shift: tuple[int, ...] = (0, 0, 0)
) -> View | None:
    """The window of :data:`CLOSE` voxels that a brain fills; None where there is none.

    Parameters
    ----------
    logits : of the first network, on its grid
    zoom, shift : voxels that much larger, and a window so many of them off; for training
    """
    return _filled(logits, CLOSE, ROOM, FINEST_MM, zoom, shift)


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
    part = window(fine, view.first, background(fine), CLOSE)
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
    shape = resized(image.shape, _zoom(spacing_mm, view.spacing_mm))
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
