# SPDX-License-Identifier: Apache-2.0
"""A 2.5-D U-Net over whole slices.

A ghost of a moving head lies tens of millimetres from the edge that it copies, further than a
three-dimensional network sees at an affordable cost.  This network sees a whole slice and its
neighbours.  It is used along three axes and the results are averaged
(:mod:`bmex_bids.network.inference.slices`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: neighbouring slices that go in; the result is for the middle one
NEIGHBOURS = 5
#: voxels: edge of the box of the local mean
LOCAL = 7
#: brain mean that an image is scaled to before it goes in
MEAN = 400.0
#: units of the local mean, of the detail and of the correction
MEAN_UNIT, DETAIL_UNIT, CORRECTION_UNIT = 200.0, 40.0, 30.0
#: slices are padded to multiples of this: one unshuffling and four halvings
MULTIPLE = 32
#: channels of the levels
WIDTHS = (32, 64, 128, 192, 256)
#: tissues in the order of the scores: CSF, GM, WM
TISSUES = 3
#: channels of the result: correction, log variance, scores of the tissues
OUTPUTS = 2 + TISSUES


def features(slices: Tensor, mask: Tensor) -> Tensor:
    """Local mean and detail of each slice: brightness and texture enter apart.

    Parameters
    ----------
    slices : (N, NEIGHBOURS, H, W), brain mean :data:`MEAN`, zero outside the mask
    mask : the same shape, 1 in the brain and 0 outside

    Returns
    -------
    (N, 2 · NEIGHBOURS, H, W)
    """
    share = _box_mean(mask)
    mean = _box_mean(slices * mask) / share.clamp(min=1e-3)
    mean = torch.where(mask > 0, mean, torch.full_like(mean, MEAN))
    detail = (slices - mean) * mask
    return torch.cat([(mean - MEAN) / MEAN_UNIT, detail / DETAIL_UNIT], dim=1)


def _box_mean(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, LOCAL, stride=1, padding=LOCAL // 2)


class Residual(nn.Module):
    """Two 3 × 3 convolutions with group normalisation and SiLU, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(8, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(8, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:  # (N, C, H, W) → the same
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        return x + y  # type: ignore[no-any-return]


class SliceUNet(nn.Module):
    """Correction, log variance and tissue scores of the middle slice of five.

    Parameters
    ----------
    widths : channels of the levels, multiples of 8; each level has half the resolution of the one
        before, the first half that of the slice
    """

    def __init__(self, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        pairs = list(pairwise(widths))
        self.stem = nn.Conv2d(2 * NEIGHBOURS * 4, widths[0], 3, padding=1)
        self.encoder = nn.ModuleList(Residual(width) for width in widths)
        self.down = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in pairs)
        self.up = nn.ModuleList(nn.Conv2d(b, 4 * a, 1) for a, b in pairs)
        self.decoder = nn.ModuleList(Residual(width) for width in widths[:-1])
        self.head_norm = nn.GroupNorm(8, widths[0])
        self.head = nn.Conv2d(widths[0], 4 * OUTPUTS, 3, padding=1)
        # a network that has learnt nothing changes nothing
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """(N, 2 · NEIGHBOURS, H, W), of :func:`features` → (N, OUTPUTS, H, W) float32."""
        x = self.stem(F.pixel_unshuffle(x, 2))  # (N, widths[0], H/2, W/2)
        skips = []
        for block, down in zip(self.encoder, self.down, strict=False):
            x = block(x)
            skips.append(x)
            x = down(x)  # half the size
        x = self.encoder[-1](x)
        levels = zip(reversed(self.up), reversed(self.decoder), reversed(skips), strict=True)
        for up, block, skip in levels:
            x = block(F.pixel_shuffle(up(x), 2) + skip)  # twice the size
        x = self.head(F.silu(self.head_norm(x)))
        return F.pixel_shuffle(x.float(), 2)
