# SPDX-License-Identifier: Apache-2.0
"""What the enhancement network over slices would correct in an image that is not prepared for it.

As a hint at motion, the image need not be matched to a reference.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy.ndimage
import torch
from torch import Tensor

from bmex_bids.common.boxes import bounding_box
from bmex_bids.network.devices import native_dtype
from bmex_bids.network.inference.slices import FEW_PLANES, run_slices
from bmex_bids.network.inference.stripper import brain_probability
from bmex_bids.network.models.slices import SliceUNet
from bmex_bids.network.weights.checkpoints import load_network_as
from bmex_bids.network.weights.registry import WeightRecord

#: the outermost voxels of a brain that was found in a head: the head may have moved
RIM = 1


@functools.lru_cache(maxsize=1)
def _network(path: Path, variant: str) -> SliceUNet:
    network = load_network_as(path, variant, SliceUNet, "over slices")
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def brain_of(image: Tensor, spacing: Sequence[float], *, record: WeightRecord) -> Tensor:
    """The brain in a head, (X, Y, Z), 1 or 0.

    Parameters
    ----------
    image : (X, Y, Z), axes LPS
    spacing : mm
    record : weights of kind ``"strip"``
    """
    x, y, z = spacing
    threads = torch.get_num_threads()
    found = brain_probability(image.numpy(), (x, y, z), record, device="cpu", threads=threads)
    inside = scipy.ndimage.binary_erosion(found > 0.5, iterations=RIM)
    return torch.from_numpy(inside.astype(np.float32))


def correction_of(image: Tensor, brain: Tensor, *, record: WeightRecord) -> Tensor:
    """What the network would add to a brain, (X, Y, Z), in the image's unit; 0 outside.

    Parameters
    ----------
    image, brain : (X, Y, Z), axes LPS; 1 in the brain and 0 outside
    record : weights of an enhancement network over slices
    """
    mask = brain.numpy() > 0
    box = bounding_box(mask)
    device = torch.device("cpu")
    found = run_slices(
        _network(record.path, record.variant),
        np.ascontiguousarray(image.numpy()[box]),
        np.ascontiguousarray(mask[box]),
        device=device,
        dtype=native_dtype(device),
        planes=FEW_PLANES,
    )
    result = torch.zeros_like(image)
    result[box] = torch.from_numpy(found.correction)
    return result
