# SPDX-License-Identifier: Apache-2.0
"""A network over slices, used on a volume in six ways, whose results are averaged.

A plane is spanned by an axis that may be the phase-encoding one and one of the two others.  Which
axis the scan encoded is not known, so all six ordered pairs are used; three of them mirrored left
to right, which costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from bmex_bids.common.contrasts import MEAN
from bmex_bids.network.models.slices import (
    CORRECTION_UNIT,
    FIRST_SCORE,
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
#: each axis across the slices once; the others are mirrored
FEW_PLANES = PLANES[::2]
#: percentile of the brain, and times it: what the network sees is no brighter
BRIGHT, BRIGHTEST = 99.5, 1.5


@dataclass(frozen=True)
class SliceResult:
    """What the network says of a volume; all of its shape, zero outside the mask.

    Attributes
    ----------
    correction : (X, Y, Z), to be added to the image, in its unit
    deviation : (X, Y, Z), expected error of the corrected image (standard deviation), same unit
    scores : (classes, X, Y, Z), logarithms of the probabilities of CSF, GM and WM, and of lesions
        where the network knows them
    few_scores : the same of :data:`FEW_PLANES` alone; zero where none of them was used
    """

    correction: Array
    deviation: Array
    scores: Array
    few_scores: Array


def run_slices(
    network: SliceUNet,
    data: Array,
    mask: NDArray[np.bool_],
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    planes: tuple[tuple[int, int, int], ...] = PLANES,
    batch: int = BATCH,
) -> SliceResult:
    """Average the network's results over planes.

    Parameters
    ----------
    data, mask : (X, Y, Z), axes LPS; any unit, zero outside the mask, which has voxels
    device, dtype : of the convolutions: ``torch.float32`` or ``torch.bfloat16``
    planes : of :data:`PLANES`
    batch : slices that go through the network together
    """
    scale = MEAN / max(float(data[mask].mean()), 1e-6)
    # the network normalises a slice as a whole: a few hot voxels would make all else look flat
    seen = np.minimum(data, BRIGHTEST * max(float(np.percentile(data[mask], BRIGHT)), 0.0))
    volume = torch.from_numpy(np.ascontiguousarray(seen * scale, dtype=np.float32)).to(device)
    inside = torch.from_numpy(np.ascontiguousarray(mask)).to(device)
    volume = volume * inside
    shape = (data.shape[0], data.shape[1], data.shape[2])
    mean, square, variance = (torch.zeros(shape, device=device) for _ in range(3))
    classes = getattr(network, "classes", TISSUES)
    few, others = (torch.zeros((classes, *shape), device=device) for _ in range(2))
    for plane in planes:
        mirrored = [] if plane in FEW_PLANES else [0]
        stack = _Stack(volume.flip(mirrored), inside.flip(mirrored), plane, classes)
        found = stack.through(network, dtype, batch).flip([axis + 1 for axis in mirrored])
        correction = CORRECTION_UNIT * found[0]
        mean += correction
        square += correction**2
        variance += VARIANCE_UNIT**2 * found[1].clamp(-12, 12).exp()
        scores = others if mirrored else few
        scores += found[FIRST_SCORE:].log_softmax(dim=0)
    count, of_few = len(planes), max(len(set(planes) & set(FEW_PLANES)), 1)
    mean /= count
    spread = (square / count - mean**2).clamp(min=0)
    deviation = (variance / count + spread).sqrt()
    return SliceResult(
        correction=_host(mean * inside) / np.float32(scale),
        deviation=_host(deviation * inside) / np.float32(scale),
        scores=_host((few + others) / count * inside),
        few_scores=_host(few / of_few * inside),
    )


def _host(x: Tensor) -> Array:
    return np.asarray(x.float().cpu().numpy(), dtype=np.float32)


@dataclass(frozen=True)
class _Stack:
    """A volume (X, Y, Z) and its mask as slices across ``plane[2]``."""

    volume: Tensor
    inside: Tensor
    plane: tuple[int, int, int]
    classes: int

    def through(self, network: SliceUNet, dtype: torch.dtype, batch: int) -> Tensor:
        """Results (2 + classes, X, Y, Z) of all slices with brain in them, zero elsewhere."""
        order = (self.plane[2], *self.plane[:2])
        stack = self.volume.permute(order)  # (slices, H, W)
        brain = self.inside.permute(order).float()
        height, width = stack.shape[1:]
        padding = (0, -width % MULTIPLE, 0, -height % MULTIPLE)
        stack, brain = F.pad(stack, padding), F.pad(brain, padding)
        results = stack.new_zeros((FIRST_SCORE + self.classes, *stack.shape))
        around = torch.arange(NEIGHBOURS, device=stack.device) - NEIGHBOURS // 2
        filled = torch.nonzero(brain.flatten(1).any(dim=1)).flatten()
        half = dtype != torch.float32
        with torch.inference_mode(), torch.autocast(stack.device.type, dtype, enabled=half):
            for chosen in filled.split(batch):
                index = (chosen[:, None] + around).clamp(0, len(stack) - 1)  # (n, NEIGHBOURS)
                x = features(stack[index], brain[index])
                found = network(x.to(memory_format=torch.channels_last)).float()
                results[:, chosen] = found.transpose(0, 1)
        back = [order.index(axis) for axis in range(3)]
        return results[:, :, :height, :width].permute(0, *(k + 1 for k in back))
