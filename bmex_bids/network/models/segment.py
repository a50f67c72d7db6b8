# SPDX-License-Identifier: Apache-2.0
"""A three-dimensional U-Net that labels the structures of a brain.

It sees the enhanced image, the probabilities of the tissues, and where in the brain's box each
voxel lies.  An atlas says how probable each structure is there; the network learns what to add.
Most of the arithmetic is at a quarter of the resolution and below; nothing is lost on the way in and out,
since blocks of 2 × 2 × 2 voxels become channels.  No normalisation: patches train the network, whole
brains are labelled by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bmex_bids.network.models.compact import Residual, shuffle, unshuffle
from bmex_bids.network.models.shapes import State, channels

#: channels at full resolution: image, CSF, GM, WM
INPUTS = 4
#: channels at half the resolution: place on three axes, share of brain
PLACES = 4
#: channels at 1/2, 1/4, 1/8 and 1/16 of the resolution
WIDTHS = (16, 48, 96, 128)
#: channels between the two layers of the head
HIDDEN = 64
#: sizes of a volume are multiples of this
MULTIPLE = 16
#: background and 13 structures
CLASSES = 14
#: the atlas has so many cells on each axis, from −REACH to REACH of the places
CELLS, REACH = 36, 1.2


class SegmentUNet(nn.Module):
    """Scores of the background and the structures.

    Parameters
    ----------
    widths : channels of the levels; each level has half the resolution of the one before, the
        first half that of the volume
    classes : structures and the background
    """

    atlas: Tensor

    def __init__(self, widths: Sequence[int] = WIDTHS, classes: int = CLASSES) -> None:
        super().__init__()
        first, *inner = widths
        self.stem = nn.Conv3d(8 * INPUTS + PLACES, first, 3, padding=1)
        self.register_buffer("atlas", torch.zeros(1, classes, CELLS, CELLS, CELLS))
        self.prior = nn.Conv3d(classes, inner[0], 1)
        self.down = nn.ModuleList(nn.Conv3d(a, b, 2, stride=2) for a, b in pairwise(widths))
        self.encoder = nn.ModuleList(Residual(width) for width in inner)
        self.up = nn.ModuleList(nn.ConvTranspose3d(b, a, 2, stride=2) for a, b in pairwise(widths))
        self.decoder = nn.ModuleList(Residual(width) for width in inner)
        self.hidden = nn.Conv3d(2 * first + PLACES, HIDDEN, 1)
        self.head = nn.Conv3d(HIDDEN, 8 * classes, 1)

    def expected(self, places: Tensor) -> Tensor:
        """Log probabilities of the atlas at places, (N, classes, D/2, H/2, W/2)."""
        where = (
            places[:, :3].flip(1).movedim(1, -1).float() / REACH
        )  # torch has the last axis first
        atlas = self.atlas.float().expand(len(places), -1, -1, -1, -1)
        found: Tensor = F.grid_sample(atlas, where, padding_mode="border", align_corners=False)
        return found

    def features(self, x: Tensor, places: Tensor) -> Tensor:
        """What the head gets of each block of voxels, (N, C, D/2, H/2, W/2).

        The last channels are those of :meth:`expected`.
        """
        first = F.relu(self.stem(torch.cat([unshuffle(x), places], dim=1)))  # (N, w0, D/2, …)
        expected = self.expected(places)
        y, skips = first, []
        for level, (down, block) in enumerate(zip(self.down, self.encoder, strict=True)):
            y = down(y)
            if level == 0:
                y = y + self.prior(F.avg_pool3d(expected, 2))
            y = block(y)
            skips.append(y)
        y = self.decoder[-1](skips.pop())
        for level in reversed(range(len(skips))):
            y = self.decoder[level](skips[level] + self.up[level + 1](F.relu(y)))
        return torch.cat([first, self.up[0](F.relu(y)), places, expected], dim=1)

    def scores(self, features: Tensor) -> Tensor:
        """The head, also of chosen blocks only, (N, C, …, 1, 1) → (N, 8 · classes, …, 1, 1)."""
        classes = self.atlas.shape[1]
        found: Tensor = self.head(F.relu(self.hidden(features[:, :-classes])))
        return found + features[:, -classes:].repeat_interleave(8, dim=1)

    def forward(self, x: Tensor, places: Tensor) -> Tensor:
        """Scores before softmax.

        Parameters
        ----------
        x : (N, INPUTS, D, H, W), sizes that are multiples of :data:`MULTIPLE`
        places : (N, PLACES, D/2, H/2, W/2)

        Returns
        -------
        (N, classes, D, H, W)
        """
        return self.full(self.scores(self.features(x, places)))

    @staticmethod
    def full(scores: Tensor) -> Tensor:
        """(N, 8 · classes, D, H, W) of blocks → (N, classes, 2 · D, 2 · H, 2 · W)."""
        return shuffle(scores)


def build(state: State) -> SegmentUNet:
    """The network of a file."""
    levels = sum(name.startswith("encoder.") and name.endswith("conv1.weight") for name in state)
    inner = [channels(state, f"encoder.{k}.conv1.weight") for k in range(levels)]
    widths = [channels(state, "stem.weight"), *inner]
    return SegmentUNet(widths, channels(state, "head.weight") // 8)
