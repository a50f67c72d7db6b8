# SPDX-License-Identifier: Apache-2.0
"""A network that tells what lies within a slice from its neighbourhood in the slices around.

One voxel at a time: the slices nearest to it, a few voxels of each, and where in its slice it lies.
The first layer's filters depend on that place.  Brightness is taken out before and put back after,
so that the same network serves every contrast and scanner.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bmex_bids.network.models.shapes import State, channels

#: slices that are looked at, and the edge of the window within each, in voxels
SLICES = 5
EDGE = 7
#: of the layers
HIDDEN = (128, 96, 48)
#: share of the image's deviation that is added to a neighbourhood's: where it is flat
FLAT = 0.02
#: logarithm of a usual thickness in voxels
USUAL = 1.1
#: facts of a voxel beside its neighbourhood, and those of them that steer the filters
FACTS, STEERING = 8, 6


class WithinSlices(nn.Module):
    """Correction of an estimate, voxel by voxel.

    Parameters
    ----------
    hidden : widths of the layers
    """

    def __init__(self, hidden: tuple[int, ...] = HIDDEN) -> None:
        super().__init__()
        widths = (SLICES * EDGE * EDGE + FACTS, *hidden)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.steer = nn.Linear(STEERING, hidden[0])
        self.conclude = nn.Linear(hidden[-1], 1)
        nn.init.zeros_(self.conclude.weight)
        nn.init.zeros_(self.conclude.bias)

    def forward(
        self, around: Tensor, place: Tensor, estimate: Tensor, thickness: Tensor, deviation: Tensor
    ) -> Tensor:
        """Values of voxels, in the units of the slices.

        Parameters
        ----------
        around : (N, SLICES, EDGE²) neighbourhood; the slice of the voxel is the middle one
        place : (N,) where it lies from the slice's centre, 0 to 0.5 thicknesses; where it lies
            before the centre, the order of the slices is turned round
        estimate : (N,) value without the network
        thickness, deviation : scalars; of a slice in voxels, and standard deviation of the image
        """
        mean = around.mean((1, 2))
        around = around - mean[:, None, None]
        scale = (around.pow(2).mean((1, 2)) + (FLAT * deviation) ** 2).sqrt()
        thick = torch.log(thickness).expand_as(place) - USUAL
        steering = torch.stack(
            [place, place**2, thick, place * thick, thick**2, torch.ones_like(place)], 1
        )
        facts = torch.stack([(estimate - mean) / scale, torch.log(scale / deviation)], 1)
        hidden = torch.cat([(around / scale[:, None, None]).flatten(1), facts, steering], 1)
        for number, layer in enumerate(self.layers):
            hidden = layer(hidden)
            if number == 0:
                hidden = hidden * (1 + self.steer(steering))
            hidden = F.silu(hidden)
        return estimate + scale * self.conclude(hidden)[:, 0]


def neighbourhoods(
    slices: Tensor, nearest: int, turned: bool, where: Tensor | None = None
) -> Tensor:
    """Of voxels of a plane, (n, SLICES, EDGE²), as :class:`WithinSlices` takes them.

    Parameters
    ----------
    slices : (X, Y, K)
    nearest : slice in which the plane lies
    turned : whether the plane lies before that slice's centre
    where : (X × Y,) of which; None: of all
    """
    reach = SLICES // 2
    places = (torch.arange(SLICES) - reach + nearest).clamp(0, slices.shape[2] - 1)
    planes = slices[:, :, places.flip(0) if turned else places].permute(2, 0, 1)
    padded = F.pad(planes[None], [EDGE // 2] * 4, mode="replicate")
    windows = F.unfold(padded, EDGE)[0]
    if where is not None:
        windows = windows[:, where]
    return windows.T.reshape(-1, SLICES, EDGE * EDGE)


def build(state: State) -> WithinSlices:
    """The network of a state dict."""
    count = sum(name.startswith("layers.") and name.endswith(".weight") for name in state)
    return WithinSlices(tuple(channels(state, f"layers.{k}.weight") for k in range(count)))
