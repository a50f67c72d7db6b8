# SPDX-License-Identifier: Apache-2.0
"""Label the structures of an enhanced brain."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from bmex_bids.exceptions import ImageError
from bmex_bids.network.devices import or_on_processor, resolve_device
from bmex_bids.network.inference.volumes import brain_box, embed
from bmex_bids.network.models.segment import MULTIPLE, SegmentUNet
from bmex_bids.network.weights.checkpoints import load_network_as
from bmex_bids.network.weights.registry import WeightRecord

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]

#: standardised intensities are kept within ± this
FARTHEST = 4.0


def standardised(image: Array, inside: Mask, mean: float, deviation: float) -> Array:
    """Intensities over the brain's mean and standard deviation, zero outside."""
    scaled = (image - np.float32(mean)) / np.float32(max(deviation, 1e-6))
    return np.asarray(np.clip(scaled, -FARTHEST, FARTHEST) * inside, dtype=np.float32)


def half_places(shape: Sequence[int], low: Sequence[float], high: Sequence[float]) -> Array:
    """Where blocks of 2 × 2 × 2 voxels lie: −1 and 1 at the ends of the brain's box on each axis.

    Parameters
    ----------
    shape : of the volume, even numbers
    low, high : first voxel of the box, and the one after its last

    Returns
    -------
    (3, X/2, Y/2, Z/2)
    """
    axes = [
        (2 * np.arange(0.5, n, 2) + 1 - a - b) / (b - a)
        for n, a, b in zip(shape, low, high, strict=True)
    ]
    return np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)


def with_share(places: Tensor, inside: Tensor) -> Tensor:
    """Places (3, …) with the share of brain in each block, (4, …)."""
    share = F.avg_pool3d(inside[None].float(), 2)
    return torch.cat([places, share])


def segment(
    image: Array,
    tissues: Array,
    mask: Mask,
    record: WeightRecord,
    *,
    device: str = "auto",
    threads: int | None = None,
) -> NDArray[np.uint8]:
    """Labels of :data:`bmex_bids.common.structures.STRUCTURES`, (X, Y, Z); 0 outside the mask.

    Parameters
    ----------
    image : (X, Y, Z) enhanced, LPS, about 0.8 mm, linear in any unit
    tissues : (3, X, Y, Z) probabilities of CSF, GM, WM
    mask : (X, Y, Z) brain
    record : weights of kind ``"segment"``
    device, threads : as for :func:`bmex_bids.network.inference.predict.enhance`
    """
    if not image.shape == tissues.shape[1:] == mask.shape:
        raise ImageError(
            "expected an image, probabilities and a mask of one shape, got "
            f"{image.shape}, {tissues.shape} and {mask.shape}"
        )
    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
    box = brain_box(mask, 0)
    inside = mask[box]
    part = image[box]
    mean, deviation = float(part[inside].mean()), float(part[inside].std())
    channels = np.concatenate(
        [standardised(part, inside, mean, deviation)[None], tissues[(slice(None), *box)] * inside]
    )
    room = [(0, -n % MULTIPLE) for n in inside.shape]
    fed = np.pad(channels, [(0, 0), *room]).astype(np.float32)
    places = half_places(fed.shape[1:], (0, 0, 0), inside.shape)
    whole = with_share(torch.from_numpy(places), torch.from_numpy(np.pad(inside, room)))
    labels = or_on_processor(
        resolve_device(device),
        lambda where: _labels(_network(record.path, str(where)), torch.from_numpy(fed), whole),
    )
    cut = tuple(slice(0, n) for n in inside.shape)
    found: NDArray[np.uint8] = embed(labels[cut] * inside, box, mask.shape)
    return found


@functools.lru_cache(maxsize=1)
def _network(path: Path, device: str) -> SegmentUNet:
    network = load_network_as(path, "bmex-segment", SegmentUNet, "that segments")
    return network.to(device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]


def most_probable(network: SegmentUNet, fed: Tensor, places: Tensor) -> Tensor:
    """The structure of the highest score, (X, Y, Z) uint8, never the background.

    The head runs on a few planes at a time: its scores of a whole brain take 400 MB.
    """
    device = next(network.parameters()).device
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16):
        features = network.features(
            fed[None].to(device, memory_format=torch.channels_last_3d),
            places[None].to(device, memory_format=torch.channels_last_3d),
        )
        parts = []
        for planes in features.split(8, dim=2):
            scores = network.full(network.scores(planes))[0, 1:]
            parts.append(scores.argmax(dim=0).to(torch.uint8) + 1)
    return torch.cat(parts)


def _labels(network: SegmentUNet, fed: Tensor, places: Tensor) -> NDArray[np.uint8]:
    return np.asarray(most_probable(network, fed, places).cpu().numpy())
