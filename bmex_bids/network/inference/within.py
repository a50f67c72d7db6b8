# SPDX-License-Identifier: Apache-2.0
"""What lies within thick slices, estimated by the network of :mod:`bmex_bids.network.models.within`."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from torch import Tensor

from bmex_bids.network.models.within import WithinSlices, neighbourhoods
from bmex_bids.network.weights.checkpoints import load_network_as
from bmex_bids.network.weights.registry import WeightRecord


@functools.lru_cache(maxsize=1)
def _network(path: Path, variant: str) -> WithinSlices:
    return load_network_as(path, variant, WithinSlices, "within slices")


@torch.inference_mode()
def within_slices(
    slices: Tensor, estimate: Tensor, first: float, thickness: float, *, record: WeightRecord
) -> Tensor:
    """A better estimate of the voxels between slices.

    Parameters
    ----------
    slices : (X, Y, K) mean of each slice, any unit
    estimate : (X, Y, N), the same unit; NaN where nothing is wanted
    first, thickness : centre of the first slice, and distance of two, in voxels along the last axis
    record : weights of kind ``"within"``

    Returns
    -------
    (X, Y, N), the estimate where nothing is wanted
    """
    network = _network(record.path, record.variant)
    wanted = estimate.isfinite()
    if not bool(wanted.any()):
        return estimate
    deviation = estimate[wanted].std().clamp(min=1e-3)
    thick = torch.tensor(thickness)
    result = estimate.clone()
    for plane in range(estimate.shape[2]):
        here = wanted[:, :, plane].flatten()
        if not bool(here.any()):
            continue
        place = (plane - first) / thickness
        nearest = min(max(round(place), 0), slices.shape[2] - 1)
        around = neighbourhoods(slices, nearest, place < nearest, here)
        distance = torch.full((len(around),), abs(place - nearest))
        values = estimate[:, :, plane].flatten().clone()
        values[here] = network(around, distance, values[here], thick, deviation)
        result[:, :, plane] = values.reshape(estimate.shape[:2])
    return result
