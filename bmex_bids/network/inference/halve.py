# SPDX-License-Identifier: Apache-2.0
"""Halve the edges of voxels, by the network of :mod:`bmex_bids.network.models.halve`."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bmex_bids.common.splines import halving_weights
from bmex_bids.network.devices import or_on_processor, resolve_device
from bmex_bids.network.inference.volumes import Fed, fed
from bmex_bids.network.models.halve import PARTS, HalvedEdges, blocks, windows
from bmex_bids.network.weights.checkpoints import load_network_as
from bmex_bids.network.weights.registry import WeightRecord

Array = NDArray[np.float32]

#: axes of a block along which the image is mirrored, of each pass; the mean is taken
MIRRORS: tuple[tuple[int, ...], ...] = ((), (2, 3), (1, 3), (1, 2))
#: planes whose voxels are divided at once, and voxels that go through the network at once
PLANES, VOXELS = 8, 30_000


def spline_halves(image: Tensor, axes: tuple[int, ...] = (0, 1, 2)) -> Tensor:
    """(2X, 2Y, 2Z): cubic splines through an image (X, Y, Z), whose blocks have its values as means.

    ``axes`` are those that are halved.
    """
    for axis in axes:
        weights = torch.from_numpy(halving_weights(image.shape[axis]).astype(np.float32))
        image = (image.movedim(axis, -1) @ weights.T).movedim(-1, axis)
    return image.contiguous()


@functools.lru_cache(maxsize=1)
def _network(path: Path, variant: str) -> HalvedEdges:
    return load_network_as(path, variant, HalvedEdges, "that halves edges")


def halve(
    image: Array,
    mask: NDArray[np.bool_],
    record: WeightRecord,
    *,
    device: str = "auto",
    threads: int | None = None,
) -> Array:
    """A brain on voxels of half the edge, (2X, 2Y, 2Z); the mean of each eight is the voxel's value.

    Parameters
    ----------
    image : (X, Y, Z), any unit and contrast
    mask : (X, Y, Z) brain; outside it the result is zero
    record : weights of kind ``"super"``
    device, threads : as for :func:`bmex_bids.network.inference.predict.enhance`

    Raises
    ------
    ImageError
        Shapes that do not fit, an empty mask, values of the brain that are not finite.
    """
    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
    brain = fed(image, mask)
    fine = np.zeros([2 * n for n in image.shape], dtype=np.float32)
    part = fine[tuple(slice(2 * side.start, 2 * side.stop) for side in brain.box)]
    network = _network(record.path, record.variant)
    or_on_processor(
        resolve_device(device), lambda where: _fill(part, brain, network.to(where), where)
    )
    return fine


@torch.inference_mode()
def _fill(part: Array, brain: Fed, network: HalvedEdges, where: torch.device) -> None:
    """Write the parts of all voxels of a brain.

    Parameters
    ----------
    part : (2X, 2Y, 2Z) of its box, zeros
    """
    coarse, inside = torch.from_numpy(brain.part), torch.from_numpy(brain.inside)
    around = windows(coarse)
    half = spline_halves(coarse, (0,))
    deviation = coarse[inside].std(correction=0).clamp(min=1e-3).to(where)
    lowest = min(float(coarse.min()), 0.0)
    for first in range(0, len(coarse), PLANES):
        last = min(first + PLANES, len(coarse))
        voxels = inside[first:last].nonzero()
        if not len(voxels):
            continue
        planes = slice(2 * first, 2 * last)
        start = blocks(spline_halves(half[planes], (1, 2)))
        result = torch.zeros_like(start)
        for some in voxels.split(VOXELS):
            x, y, z = some.T
            seen, begun = around[x + first, y, z].to(where), start[x, y, z].to(where)
            parts = _parts(network, seen, begun, deviation)
            value = coarse[x + first, y, z].to(where)[:, None]
            result[x, y, z] = above(parts, value, lowest).reshape(-1, 2, 2, 2).cpu()
        part[planes] = result.permute(0, 3, 1, 4, 2, 5).reshape(-1, *part.shape[1:]).numpy()


def _parts(network: HalvedEdges, seen: Tensor, begun: Tensor, deviation: Tensor) -> Tensor:
    """(N, PARTS): the mean over mirror images."""
    total = torch.zeros_like(begun)
    for axes in MIRRORS:
        values = network(seen.flip(axes).flatten(1), begun.flip(axes).flatten(1), deviation)
        total += values.reshape(begun.shape).flip(axes)
    return (total / len(MIRRORS)).flatten(1)


def above(parts: Tensor, value: Tensor, lowest: float) -> Tensor:
    """Parts of voxels, none below a value, whose means are those of the voxels.

    Parameters
    ----------
    parts : (N, PARTS)
    value : (N, 1), of the voxels, ``lowest`` or more
    """
    height = (parts - lowest).clamp(min=0)
    mean = height.mean(1, keepdim=True)
    scaled = height * ((value - lowest) / mean.clamp(min=1e-6))
    return torch.where(mean > 1e-6, scaled + lowest, value.expand(-1, PARTS))
