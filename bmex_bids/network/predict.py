# SPDX-License-Identifier: Apache-2.0
"""Run an enhancement network over a brain, tile by tile."""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bmex_bids.exceptions import DeviceError, ImageError
from bmex_bids.network.checkpoints import load_network
from bmex_bids.network.registry import WeightRecord
from bmex_bids.network.tiling import (
    WeightedSum,
    boxes,
    fitted,
    network_order,
    tile_weight,
    volume_order,
)

LOGGER = logging.getLogger(__name__)

CLASSES = 4  # background, CSF, GM, WM
MULTIPLE = 8  # three halvings
MARGIN = 8  # voxels around the brain that the network may see
TILE = 96
OVERLAP = 24


@dataclass(frozen=True)
class Enhancement:
    """What the network made of one image; all on the input's grid.

    Attributes
    ----------
    image : (X, Y, Z) float32, template units, zero outside the mask
    labels : (X, Y, Z) uint8; 0 background, 1 CSF, 2 GM, 3 WM; zero outside the mask
    probabilities : (4, X, Y, Z) float32 in the labels' order; background is 1 outside the mask
    device, precision : where and how it was computed
    seconds : wall-clock time of the network
    """

    image: NDArray[np.float32]
    labels: NDArray[np.uint8]
    probabilities: NDArray[np.float32]
    device: str
    precision: str
    seconds: float


def resolve_device(name: str = "auto") -> torch.device:
    """``auto`` takes a GPU when there is one; one asked for and absent is a DeviceError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(
            f"expected a device of auto, cpu, cuda or cuda:N, got {name!r}"
        ) from error
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise DeviceError(
                f"expected a CUDA device {name!r}, found {count} on this machine; use --device "
                "cpu, or run the container with --gpus all (Docker) or --nv (Singularity)"
            )
    elif device.type != "cpu":
        raise DeviceError(f"expected a device of auto, cpu, cuda or cuda:N, got {name!r}")
    return device


@functools.lru_cache(maxsize=2)
def _network(path: Path, variant: str, device: str) -> nn.Module:
    """Networks are loaded once a process."""
    network = load_network(path, variant).to(device)
    return network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload, no-any-return]


def brain_box(mask: NDArray[np.bool_], margin: int = MARGIN) -> tuple[slice, slice, slice]:
    """The mask's bounding box with a margin; an empty mask is an ImageError."""
    if not mask.any():
        raise ImageError("expected a brain mask with voxels in it, got an empty one")
    sides = []
    for axis in range(3):
        other = tuple(k for k in range(3) if k != axis)
        where = np.flatnonzero(mask.any(axis=other))
        sides.append(
            slice(
                max(int(where[0]) - margin, 0), min(int(where[-1]) + 1 + margin, mask.shape[axis])
            )
        )
    return sides[0], sides[1], sides[2]


def enhance(
    data: NDArray[np.float32],
    mask: NDArray[np.bool_],
    record: WeightRecord,
    *,
    device: str = "auto",
    threads: int | None = None,
    tile: int = TILE,
    overlap: int = OVERLAP,
) -> Enhancement:
    """Classify the tissues of a brain and make its enhanced image.

    Parameters
    ----------
    data : (X, Y, Z), axes LPS, template units, matched to the age's histogram
    mask : (X, Y, Z) brain
    record : which weights
    device : ``auto``, ``cpu``, ``cuda`` or ``cuda:N``
    threads : processor threads for the network; all that this process may use when None
    tile : largest edge of a tile in voxels, a multiple of 8
    overlap : voxels that neighbouring tiles share
    """
    where = resolve_device(device)
    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
    network = _network(record.path, record.variant, str(where))
    begun = time.monotonic()
    box, inside, brain = _fed(data, mask)

    def both(x: Tensor) -> Tensor:
        return torch.cat(network(x), dim=1)

    values = _run_tiles(both, CLASSES + 1, brain, where, tile, overlap)
    values = volume_order(values)[(slice(None), *_sides(inside))]
    scores, image = values[:CLASSES], values[CLASSES]
    probabilities = _tissue_probabilities(scores, inside)
    result = Enhancement(
        image=_embed(np.where(inside, np.clip(image, 0, None), 0), box, data.shape),
        labels=_embed(_labels(probabilities, inside), box, data.shape),
        probabilities=np.stack(
            [_embed(p, box, data.shape, fill=float(k == 0)) for k, p in enumerate(probabilities)]
        ),
        device=_describe(where),
        precision="float32",
        seconds=time.monotonic() - begun,
    )
    LOGGER.debug("network: %s, %.1f s", inside.shape, result.seconds)
    return result


def classify(
    data: NDArray[np.float32],
    mask: NDArray[np.bool_],
    record: WeightRecord,
    *,
    device: str = "auto",
    threads: int | None = None,
    tile: int = TILE,
    overlap: int = OVERLAP,
) -> NDArray[np.uint8]:
    """Classify the tissues of a brain and leave it at that: a part of what :func:`enhance` costs.

    The labels are those of ``enhance`` for the same image, (X, Y, Z) uint8: 0 background, 1 CSF,
    2 GM, 3 WM; zero outside the mask.  The parameters are those of ``enhance``.
    """
    where = resolve_device(device)
    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
    network = _network(record.path, record.variant, str(where))
    box, inside, brain = _fed(data, mask)
    scores = _run_tiles(network.classify, CLASSES, brain, where, tile, overlap)  # type: ignore[arg-type]
    scores = volume_order(scores)[(slice(None), *_sides(inside))]
    return _embed(_labels(_tissue_probabilities(scores, inside), inside), box, data.shape)


def _fed(
    data: NDArray[np.float32], mask: NDArray[np.bool_]
) -> tuple[tuple[slice, slice, slice], NDArray[np.bool_], NDArray[np.float32]]:
    """Where the brain lies, the mask there, and what a network is fed.

    The last has the axes (z, x, y), sizes that are multiples of 8, and zeros outside the mask.
    """
    if data.shape != mask.shape or data.ndim != 3:
        raise ImageError(
            "expected an image and a mask of one three-dimensional shape, got "
            f"{data.shape} and {mask.shape}"
        )
    mask = np.asarray(mask, dtype=bool)
    box = brain_box(mask)
    inside = mask[box]
    brain = network_order(np.where(inside, data[box], 0).astype(np.float32))
    return box, inside, np.pad(brain, [(0, -n % MULTIPLE) for n in brain.shape])


def _sides(part: NDArray[np.bool_]) -> tuple[slice, ...]:
    """The slices that take the padding off again."""
    return tuple(slice(0, n) for n in part.shape)


def _run_tiles(
    function: Callable[[Tensor], Tensor],
    channels: int,
    brain: NDArray[np.float32],
    device: torch.device,
    tile: int,
    overlap: int,
) -> NDArray[np.float32]:
    """What a function makes of a volume whose sizes are multiples of 8, (channels, D, H, W).

    The function takes (1, 1, d, h, w) and returns (1, channels, d, h, w).
    """
    shape = (brain.shape[0], brain.shape[1], brain.shape[2])
    a, b, c = (fitted(n, tile, overlap, MULTIPLE) for n in shape)
    sums = WeightedSum.zeros(channels, shape)
    weight = tile_weight((a, b, c), overlap // 2)
    with torch.inference_mode():
        for box in boxes(shape, (a, b, c), overlap):
            part = brain[box]
            if not part.any():
                continue
            x = torch.from_numpy(np.ascontiguousarray(part))[None, None].to(device)
            sums.add(box, function(x)[0].float().cpu().numpy(), weight)
    return sums.result()


def _tissue_probabilities(
    scores: NDArray[np.float32], inside: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Softmax of the scores; outside the mask the background is certain.

    Inside the mask the background's share is given to the tissues, since a mask says that there is
    one.
    """
    tissues = np.exp(scores[1:] - scores[1:].max(axis=0))
    tissues /= tissues.sum(axis=0)
    return np.concatenate([(~inside)[np.newaxis], np.where(inside, tissues, 0)]).astype(np.float32)


def _labels(probabilities: NDArray[np.float32], inside: NDArray[np.bool_]) -> NDArray[np.uint8]:
    return np.where(inside, probabilities[1:].argmax(axis=0) + 1, 0).astype(np.uint8)


def _embed(
    part: NDArray, box: tuple[slice, slice, slice], shape: tuple[int, ...], fill: float = 0
) -> NDArray:  # type: ignore[type-arg]
    whole = np.full(shape, fill, dtype=part.dtype if part.dtype == np.uint8 else np.float32)
    whole[box] = part
    return whole


def _describe(device: torch.device) -> str:
    """``cpu``, or the name of the GPU."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return "cpu"
