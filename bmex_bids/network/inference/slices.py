# SPDX-License-Identifier: Apache-2.0
"""A network over slices, used on a volume in six ways, whose results are averaged.

A plane is spanned by an axis that may be the phase-encoding one and one of the two others.  Which
axis the scan encoded is not known, so all six ordered pairs are used; every other one is mirrored
left to right, which costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from bmex_bids.network.models.slices import (
    CORRECTION_UNIT,
    MEAN,
    MULTIPLE,
    NEIGHBOURS,
    TISSUES,
    VARIANCE_UNIT,
    SliceUNet,
    features,
)

Array = NDArray[np.float32]
#: slices that go through the network together
BATCH = 8
#: (phase-encoding axis, other axis of the plane, axis across the slices) of LPS
PLANES = ((1, 2, 0), (1, 0, 2), (0, 1, 2), (0, 2, 1), (2, 0, 1), (2, 1, 0))
#: each axis across the slices once
FEW_PLANES = PLANES[::2]


@dataclass(frozen=True)
class SliceResult:
    """What the network says of a volume; all of its shape, zero outside the mask.

    Attributes
    ----------
    correction : (X, Y, Z), to be added to the image, in its unit
    deviation : (X, Y, Z), expected error of the corrected image (standard deviation), same unit
    scores : (3, X, Y, Z), logarithms of the probabilities of CSF, GM and WM
    """

    correction: Array
    deviation: Array
    scores: Array


def run_slices(
    network: SliceUNet,
    data: Array,
    mask: NDArray[np.bool_],
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    planes: tuple[tuple[int, int, int], ...] = PLANES,
) -> SliceResult:
    """Average the network's results over planes.

    Parameters
    ----------
    data, mask : (X, Y, Z), axes LPS; any unit, zero outside the mask, which has voxels
    device, dtype : of the convolutions: ``torch.float32`` or ``torch.bfloat16``
    planes : of :data:`PLANES`
    """
    scale = MEAN / max(float(data[mask].mean()), 1e-6)
    volume = torch.from_numpy(np.ascontiguousarray(data * scale, dtype=np.float32)).to(device)
    inside = torch.from_numpy(np.ascontiguousarray(mask)).to(device)
    volume = volume * inside
    shape = (data.shape[0], data.shape[1], data.shape[2])
    mean, square, variance = (torch.zeros(shape, device=device) for _ in range(3))
    scores = torch.zeros((TISSUES, *shape), device=device)
    for number, plane in enumerate(planes):
        mirrored = [0] if number % 2 else []
        found = _along_plane(
            network, volume.flip(mirrored), inside.flip(mirrored), plane, dtype
        ).flip([axis + 1 for axis in mirrored])
        correction = CORRECTION_UNIT * found[0]
        mean += correction
        square += correction**2
        variance += VARIANCE_UNIT**2 * found[1].clamp(-12, 12).exp()
        scores += found[2:].log_softmax(dim=0)
    count = len(planes)
    mean /= count
    spread = (square / count - mean**2).clamp(min=0)
    deviation = (variance / count + spread).sqrt()
    return SliceResult(
        correction=_host(mean * inside) / np.float32(scale),
        deviation=_host(deviation * inside) / np.float32(scale),
        scores=_host(scores / count * inside),
    )


def _host(x: Tensor) -> Array:
    return np.asarray(x.float().cpu().numpy(), dtype=np.float32)


def _along_plane(
    network: SliceUNet,
    volume: Tensor,
    inside: Tensor,
    plane: tuple[int, int, int],
    dtype: torch.dtype,
) -> Tensor:
    """Results (OUTPUTS, X, Y, Z) of all slices across ``plane[2]``."""
    across = plane[2]
    order = (across, plane[0], plane[1])
    stack = volume.permute(order)  # (slices, H, W)
    brain = inside.permute(order).float()
    height, width = stack.shape[1:]
    padding = (0, -width % MULTIPLE, 0, -height % MULTIPLE)
    stack, brain = F.pad(stack, padding), F.pad(brain, padding)
    results: Tensor | None = None
    with torch.inference_mode(), torch.autocast(stack.device.type, dtype, dtype != torch.float32):
        for chosen in _batches(brain):
            index = (chosen[:, None] + torch.arange(NEIGHBOURS, device=chosen.device)).sub(
                NEIGHBOURS // 2
            )
            index = index.clamp(0, len(stack) - 1)  # (n, NEIGHBOURS)
            x = features(stack[index], brain[index])
            found = network(x.to(memory_format=torch.channels_last)).float()
            if results is None:
                results = found.new_zeros((found.shape[1], *stack.shape))
            results[:, chosen] = found.transpose(0, 1)
    if results is None:
        raise ValueError("expected a mask with voxels, got an empty one")
    back = [order.index(axis) for axis in range(3)]
    return results[:, :, :height, :width].permute(0, *(k + 1 for k in back))


def _batches(brain: Tensor) -> Iterator[Tensor]:
    """Numbers of the slices with brain in them, a few at a time."""
    filled = torch.nonzero(brain.flatten(1).any(dim=1)).flatten()
    yield from filled.split(BATCH)
