# SPDX-License-Identifier: Apache-2.0
"""A 2.5-D U-Net over whole slices.

A ghost of a moving head lies tens of millimetres from the edge that it copies, further than a
three-dimensional network sees at an affordable cost.  This network sees a whole slice and its
neighbours.  Attention along the first axis of the slice, which may be the phase-encoding one, compares
each voxel with all others of its column.  The network is used along three axes and the results are
averaged (:mod:`bmex_bids.network.inference.slices`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bmex_bids.common.contrasts import MEAN
from bmex_bids.network.models.shapes import State, channels

#: neighbouring slices that go in; the result is for the middle one
NEIGHBOURS = 5
#: voxels: edge of the box of the local mean
LOCAL = 7
#: units of the local mean, of the detail and of the correction
MEAN_UNIT, DETAIL_UNIT, CORRECTION_UNIT = 200.0, 40.0, 30.0
#: the log variance is that of an error in this unit
VARIANCE_UNIT = 10.0
#: slices are padded to multiples of this: one unshuffling and four halvings
MULTIPLE = 32
#: channels of the levels
WIDTHS = (32, 64, 128, 192, 256)
#: levels with attention along the columns, coded by the residual blocks before and after it
ATTENDED = (1, 2)
#: heads of the attention and channels of each; the latter a multiple of 2
HEADS, HEAD_WIDTH = 2, 24
#: radians a voxel of the rotary position code: from the fastest down to e⁻⁶ of it
FASTEST, FALL = 3.0, 6.0
#: tissues in the order of the scores: CSF, GM, WM
TISSUES = 3
#: channels of the result before the scores of the classes: correction, log variance
FIRST_SCORE = 2
#: channels of the result of a network without further classes
OUTPUTS = FIRST_SCORE + TISSUES
#: score of a further class, a lesion, in a network that has not learnt it yet
UNLIKELY = -6.0


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


class ColumnAttention(nn.Module):
    """Self-attention along the first axis of a slice, in each column by itself, added to the input.

    Positions are coded by rotation (Su et al., RoFormer, 2021), so that what counts is the distance
    between two voxels: that of a ghost from its source.  Written out, since the fused backward
    pass takes ten times as long on a processor for columns as short as these.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, channels)
        self.qkv = nn.Conv2d(channels, 3 * HEADS * HEAD_WIDTH, 1)
        self.out = nn.Conv2d(HEADS * HEAD_WIDTH, channels, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:  # (N, C, H, W) → the same
        n, _, height, width = x.shape
        qkv = self.qkv(self.norm(x)).reshape(n, 3, HEADS, HEAD_WIDTH, height, width)
        qkv = qkv.permute(1, 0, 5, 2, 4, 3).reshape(3, n * width * HEADS, height, HEAD_WIDTH)
        query, key, value = qkv.unbind(0)
        scores = torch.bmm(_turned(query) * HEAD_WIDTH**-0.5, _turned(key).transpose(1, 2))
        found = torch.bmm(torch.softmax(scores, dim=-1).to(value.dtype), value)
        found = found.reshape(n, width, HEADS, height, HEAD_WIDTH).permute(0, 2, 4, 3, 1)
        found = found.reshape(n, HEADS * HEAD_WIDTH, height, width)
        return x + self.out(found.contiguous(memory_format=torch.channels_last))  # type: ignore[no-any-return]


def _turned(x: Tensor) -> Tensor:
    """(M, H, HEAD_WIDTH), each pair of channels turned in proportion to the place along H."""
    half = x.shape[-1] // 2
    speed = FASTEST * torch.exp(-FALL * torch.arange(half, device=x.device) / half)
    angle = torch.outer(torch.arange(x.shape[-2], device=x.device, dtype=torch.float32), speed)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


class SliceUNet(nn.Module):
    """Correction, log variance and tissue scores of the middle slice of five.

    Parameters
    ----------
    widths : channels of the levels, multiples of 8; each level has half the resolution of the one
        before, the first half that of the slice
    attended : levels with attention along the columns
    classes : :data:`TISSUES`, or one more: lesions
    """

    def __init__(
        self,
        widths: Sequence[int] = WIDTHS,
        attended: Sequence[int] = ATTENDED,
        classes: int = TISSUES,
    ) -> None:
        super().__init__()
        self.attended = tuple(attended)
        self.classes = classes
        pairs = list(pairwise(widths))
        self.stem = nn.Conv2d(2 * NEIGHBOURS * 4, widths[0], 3, padding=1)
        self.encoder = nn.ModuleList(Residual(width) for width in widths)
        self.encoder_attention = nn.ModuleList(ColumnAttention(widths[k]) for k in attended)
        self.decoder_attention = nn.ModuleList(ColumnAttention(widths[k]) for k in attended)
        self.down = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in pairs)
        self.up = nn.ModuleList(nn.Conv2d(b, 4 * a, 1) for a, b in pairs)
        self.decoder = nn.ModuleList(Residual(width) for width in widths[:-1])
        self.head_norm = nn.GroupNorm(8, widths[0])
        self.head = nn.Conv2d(widths[0], 4 * (FIRST_SCORE + classes), 3, padding=1)
        # a network that has learnt nothing changes nothing
        nn.init.zeros_(self.head.weight)
        bias = torch.zeros(4 * (FIRST_SCORE + classes))
        bias[4 * OUTPUTS :] = UNLIKELY
        self.head.bias = nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 2 · NEIGHBOURS, H, W), of :func:`features` → (N, 2 + classes, H, W) float32."""
        x = self.stem(F.pixel_unshuffle(x, 2))  # (N, widths[0], H/2, W/2)
        skips = []
        for level, (block, down) in enumerate(zip(self.encoder, self.down, strict=False)):
            x = block(x)
            if level in self.attended:
                x = self.encoder_attention[self.attended.index(level)](x)
            skips.append(x)
            x = down(x)  # half the size
        x = self.encoder[-1](x)
        for level in reversed(range(len(self.up))):
            x = F.pixel_shuffle(self.up[level](x), 2) + skips[level]  # twice the size
            if level in self.attended:
                x = self.decoder_attention[self.attended.index(level)](x)
            x = self.decoder[level](x)
        x = self.head(F.silu(self.head_norm(x)))
        return F.pixel_shuffle(x.float(), 2)


def build(state: State) -> SliceUNet:
    """The network of a file."""
    levels = sum(name.startswith("encoder.") and name.endswith("conv1.weight") for name in state)
    widths = [channels(state, f"encoder.{k}.conv1.weight") for k in range(levels)]
    attended = ATTENDED if any("attention" in name for name in state) else ()
    classes = channels(state, "head.weight") // 4 - FIRST_SCORE
    return SliceUNet(widths, attended, classes)
