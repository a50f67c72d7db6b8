# SPDX-License-Identifier: Apache-2.0
"""A network that divides a voxel into eight, from its neighbourhood.

It looks at coarse voxels only and makes all eight at once, as ESPCN does (Shi et al., CVPR 2016;
for brains: Tanno et al., NeuroImage 2021).  Brightness is taken out before and put back after, so
that the same network serves every contrast and scanner.  The mean of the eight stays what it was.
"""

from __future__ import annotations

import functools
import itertools

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bmex_bids.network.models.shapes import State, channels

#: edge of the neighbourhood, in voxels
EDGE = 5
#: parts of a voxel
PARTS = 8
#: of the layers
HIDDEN = (256, 128, 128)
#: share of the image's deviation that is added to a neighbourhood's: where it is flat
FLAT = 0.02
#: exponent by which frequencies of a neighbourhood are raised, whose deviation falls with the square
#: of the frequency; and what brings them, and the parts, to a deviation of about 1
RAISED, LOWERED, PARTS_RAISED = 1.5, 7.0, 3.0


@functools.cache
def frequencies() -> Tensor:
    """(EDGE³, EDGE³): cosine transform of a neighbourhood, high frequencies raised.

    Neighbours are alike: what distinguishes them is small, and would be learnt last.
    """
    places, orders = np.arange(EDGE), np.arange(EDGE)
    basis = np.cos(np.pi * (places + 0.5) * orders[:, np.newaxis] / EDGE)
    basis /= np.linalg.norm(basis, axis=1, keepdims=True)
    whole = np.einsum("ai,bj,ck->ijkabc", basis, basis, basis).reshape(EDGE**3, EDGE**3)
    order = np.linalg.norm(np.indices((EDGE,) * 3).reshape(3, -1), axis=0)
    table = (whole * (1 + order) ** RAISED / LOWERED).astype(np.float32)
    with torch.inference_mode(False):  # what is kept may train later
        return torch.from_numpy(table)


class HalvedEdges(nn.Module):
    """Correction of the parts of voxels, voxel by voxel.

    Parameters
    ----------
    hidden : widths of the layers
    """

    def __init__(self, hidden: tuple[int, ...] = HIDDEN) -> None:
        super().__init__()
        widths = (EDGE**3 + PARTS + 1, *hidden)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.conclude = nn.Linear(hidden[-1], PARTS)
        nn.init.zeros_(self.conclude.weight)
        nn.init.zeros_(self.conclude.bias)

    def forward(self, around: Tensor, start: Tensor, deviation: Tensor) -> Tensor:
        """Values of the parts, (N, PARTS), in the units of the image.

        Parameters
        ----------
        around : (N, EDGE³) neighbourhood; the voxel itself is the middle one
        start : (N, PARTS) values without the network, in the order of :func:`blocks`
        deviation : scalar or (N,), standard deviation of the image
        """
        around = around - around.mean(1, keepdim=True)
        deviation = deviation.reshape(-1, 1)
        scale = (around.pow(2).mean(1, keepdim=True) + (FLAT * deviation) ** 2).sqrt()
        detail = PARTS_RAISED * (start - start.mean(1, keepdim=True))
        facts = torch.cat([detail / scale, torch.log(scale / deviation)], 1)
        first, *others = self.layers
        of_around, of_facts = first.weight.split([EDGE**3, PARTS + 1], 1)  # type: ignore[operator]
        seen = around @ (frequencies().to(around) @ of_around.T)  # one product of large matrices
        hidden = F.silu(seen / scale + F.linear(facts, of_facts, first.bias))  # type: ignore[arg-type]
        for layer in others:
            hidden = F.silu(layer(hidden))
        change = scale * self.conclude(hidden)
        return start + change - change.mean(1, keepdim=True)


def windows(image: Tensor) -> Tensor:
    """A view (X, Y, Z, EDGE, EDGE, EDGE): the neighbourhood of each voxel.

    Beyond the edges of the image (X, Y, Z) its last voxels go on.
    """
    padded = F.pad(image[None, None], [EDGE // 2] * 6, mode="replicate")[0, 0]
    return padded.unfold(0, EDGE, 1).unfold(1, EDGE, 1).unfold(2, EDGE, 1)


def blocks(fine: Tensor) -> Tensor:
    """A view (X, Y, Z, 2, 2, 2) of an image (2X, 2Y, 2Z): the parts of each voxel."""
    x, y, z = (n // 2 for n in fine.shape)
    return fine.view(x, 2, y, 2, z, 2).permute(0, 2, 4, 1, 3, 5)


def halved(image: Tensor) -> Tensor:
    """(X, Y, Z), the means of blocks of 2 × 2 × 2 voxels of an image (2X, 2Y, 2Z)."""
    return F.avg_pool3d(image[None], 2)[0]


def build(state: State) -> HalvedEdges:
    """The network of a state dict."""
    count = sum(name.startswith("layers.") and name.endswith(".weight") for name in state)
    return HalvedEdges(tuple(channels(state, f"layers.{k}.weight") for k in range(count)))
