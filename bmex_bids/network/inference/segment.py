# SPDX-License-Identifier: Apache-2.0
"""Label the structures of an enhanced brain."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from bmex_bids.common.structures import TISSUE_OF
from bmex_bids.exceptions import ImageError
from bmex_bids.network.devices import or_on_processor, resolve_device
from bmex_bids.network.inference.mixture import FLAT, most_probable_class, refined
from bmex_bids.network.inference.volumes import brain_box
from bmex_bids.network.models.segment import MULTIPLE, SegmentUNet
from bmex_bids.network.weights.checkpoints import load_network_as
from bmex_bids.network.weights.registry import WeightRecord

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]

#: standardised intensities are kept within ± this
FARTHEST = 4.0
#: times the usual spread from the median: what lies further counts as so far
OUTLYING = 10.0


def standardised(image: Array, inside: Mask, mean: float, deviation: float) -> Array:
    """Intensities over the brain's mean and standard deviation, zero outside."""
    spread = max(deviation, abs(mean) * FLAT) or 1.0
    scaled = (np.where(inside, image, mean) - np.float32(mean)) / np.float32(spread)
    return np.asarray(np.clip(scaled, -FARTHEST, FARTHEST), dtype=np.float32)


def without_outliers(values: Array) -> Array:
    """Brightness (N,) of a brain, where a few very bright vessels do not decide its spread.

    ImageError for values that are not finite.
    """
    wrong = int((~np.isfinite(values)).sum())
    if wrong:
        raise ImageError(
            f"expected finite intensities in the brain, got NaN or infinity in {wrong} voxels"
        )
    low, middle, high = np.percentile(values, (16, 50, 84))
    room = OUTLYING * (high - low) / 2
    if not room > 0:
        return values
    return np.clip(values, middle - room, middle + room).astype(np.float32)


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

    The structures' probabilities are joined with their brightness in this image
    (:mod:`~bmex_bids.network.inference.mixture`).

    Parameters
    ----------
    image : (X, Y, Z) enhanced, LPS, about 0.8 mm, linear in any unit
    tissues : (3, X, Y, Z) probabilities of CSF, GM, WM; zeros where they are not known
    mask : (X, Y, Z) brain
    record : weights of kind ``"segment"``
    device, threads : as for :func:`bmex_bids.network.inference.predict.enhance`
    """
    if not image.shape == tissues.shape[1:] == mask.shape:
        raise ImageError(
            "expected an image, probabilities and a mask of one shape, got "
            f"{image.shape}, {tissues.shape} and {mask.shape}"
        )
    here = _fed(image, tissues, mask)
    logs = here.through(record, device, threads, structure_logs)[:, here.inside]
    found = np.zeros(mask.shape, np.uint8)
    found[mask] = most_probable_class(here.values, logs)
    return found


def tissues_of(
    image: Array,
    mask: Mask,
    record: WeightRecord,
    *,
    device: str = "auto",
    threads: int | None = None,
) -> Array:
    """Probabilities of background, CSF, GM and WM by the image alone, (4, X, Y, Z).

    Each tissue is the sum of its structures, found as by :func:`segment`, whose parameters these are.
    """
    if image.shape != mask.shape:
        raise ImageError(
            f"expected an image and a mask of one shape, got {image.shape} and {mask.shape}"
        )
    here = _fed(image, np.zeros((3, *mask.shape), np.float32), mask)
    logs = here.through(record, device, threads, structure_logs)[:, here.inside]
    shares = refined(here.values, logs, TISSUE_OF[1:])
    found = np.zeros((len(shares) + 1, *mask.shape), np.float32)
    found[0] = ~mask
    for tissue, share in enumerate(shares, start=1):
        found[tissue][mask] = share
    return found


@dataclass(frozen=True)
class _Fed:
    """A brain as the network is fed: its box, the mask there, brightness, channels and places."""

    box: tuple[slice, slice, slice]
    inside: Mask
    values: Array
    channels: Tensor
    places: Tensor

    def through(
        self,
        record: WeightRecord,
        device: str,
        threads: int | None,
        read: Callable[[SegmentUNet, Tensor, Tensor], Tensor],
    ) -> NDArray[Any]:
        """What ``read`` makes of the network's scores, (…, X, Y, Z) of the box."""
        torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
        found = or_on_processor(
            resolve_device(device),
            lambda where: read(_network(record.path, str(where)), self.channels, self.places),
        )
        x, y, z = self.inside.shape
        return np.asarray(found.cpu().numpy())[..., :x, :y, :z]


def _fed(image: Array, tissues: Array, mask: Mask) -> _Fed:
    box = brain_box(mask, 0)
    inside = mask[box]
    part = image[box]
    values = without_outliers(part[inside])
    mean, deviation = float(values.mean()), float(values.std())
    channels = np.concatenate(
        [standardised(part, inside, mean, deviation)[None], tissues[(slice(None), *box)] * inside]
    )
    room = [(0, -n % MULTIPLE) for n in inside.shape]
    fed = np.pad(channels, [(0, 0), *room]).astype(np.float32)
    places = half_places(fed.shape[1:], (0, 0, 0), inside.shape)
    whole = with_share(torch.from_numpy(places), torch.from_numpy(np.pad(inside, room)))
    return _Fed(box, inside, values, torch.from_numpy(fed), whole)


@functools.lru_cache(maxsize=1)
def _network(path: Path, device: str) -> SegmentUNet:
    network = load_network_as(path, "bmex-segment", SegmentUNet, "that segments")
    return network.to(device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]


def most_probable(network: SegmentUNet, fed: Tensor, places: Tensor) -> Tensor:
    """The structure of the highest score, (X, Y, Z) uint8, never the background."""
    return _planes(network, fed, places, lambda scores: scores.argmax(dim=0).to(torch.uint8) + 1)


def structure_logs(network: SegmentUNet, fed: Tensor, places: Tensor) -> Tensor:
    """Logarithms of the structures' probabilities, (structures, X, Y, Z) float16."""
    return _planes(
        network, fed, places, lambda scores: scores.float().log_softmax(dim=0).to(torch.float16)
    )


def _planes(
    network: SegmentUNet, fed: Tensor, places: Tensor, read: Callable[[Tensor], Tensor]
) -> Tensor:
    """What is read from the scores of the structures, (…, X, Y, Z).

    The head runs on a few planes at a time: its scores of a whole brain take 400 MB.
    """
    device = next(network.parameters()).device
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16):
        features = network.features(
            fed[None].to(device, memory_format=torch.channels_last_3d),
            places[None].to(device, memory_format=torch.channels_last_3d),
        )
        parts = [
            read(network.full(network.scores(planes))[0, 1:])
            for planes in features.split(8, dim=2)
        ]
    return torch.cat(parts, dim=-3)
