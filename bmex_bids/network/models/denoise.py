# SPDX-License-Identifier: Apache-2.0
"""A network that tells the noise of an image, on any grid and in any unit.

Blocks of 2 × 2 × 2 voxels become channels, as in FFDNet (Zhang et al., IEEE Trans. Image Process.
2018), and the noise's standard deviation enters as a channel.  Each voxel is given twice: its
brightness, and how far it is from its neighbourhood in units of the noise.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bmex_bids.network.models.shapes import State, channels

#: voxels of a block, along an edge and in all
EDGE, PARTS = 2, 8
#: edges of an image are multiples of this
MULTIPLE = 2 * EDGE
#: units of the image: its mean and spread; usual noise
MEAN, SPREAD, USUAL = 400.0, 200.0, 25.0
#: of the detail, in standard deviations of the noise: a usual one
DETAIL = 2.0
#: widths of the two levels
WIDTHS = (48, 64)


def gathered(image: Tensor) -> Tensor:
    """(B, 1, X, Y, Z) → (B, 8, X/2, Y/2, Z/2): the voxels of blocks as channels."""
    b, _, x, y, z = image.shape
    view = image.reshape(b, x // EDGE, EDGE, y // EDGE, EDGE, z // EDGE, EDGE)
    return view.permute(0, 2, 4, 6, 1, 3, 5).reshape(b, PARTS, x // EDGE, y // EDGE, z // EDGE)


def spread_out(parts: Tensor) -> Tensor:
    """(B, 8, X, Y, Z) → (B, 1, 2X, 2Y, 2Z): what :func:`gathered` did, undone."""
    b, _, x, y, z = parts.shape
    view = parts.reshape(b, EDGE, EDGE, EDGE, x, y, z).permute(0, 4, 1, 5, 2, 6, 3)
    return view.reshape(b, 1, EDGE * x, EDGE * y, EDGE * z)


class Block(nn.Module):
    """Two convolutions whose result is added to what came in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv3d(width, width, 3, padding=1)
        self.second = nn.Conv3d(width, width, 3, padding=1)
        for parameter in self.second.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, X, Y, Z), the same shape."""
        return x + self.second(F.relu(self.first(F.relu(x))))


class DenoiseNet(nn.Module):
    """The noise of an image.

    Parameters
    ----------
    widths : channels of the fine and of the coarse level
    """

    def __init__(self, widths: tuple[int, int] = WIDTHS) -> None:
        super().__init__()
        fine, coarse = widths
        self.enter = nn.Conv3d(2 * PARTS + 2, fine, 3, padding=1)
        self.before = Block(fine)
        self.down = nn.Conv3d(fine, coarse, 2, stride=2)
        self.deep = nn.ModuleList([Block(coarse), Block(coarse)])
        self.up = nn.ConvTranspose3d(coarse, fine, 2, stride=2)
        self.after = Block(fine)
        self.conclude = nn.Conv3d(fine, PARTS, 3, padding=1)
        for parameter in self.conclude.parameters():
            nn.init.zeros_(parameter)

    def forward(self, image: Tensor, sigma: Tensor) -> Tensor:
        """Noise, (B, 1, X, Y, Z), in the image's units; take it off the image.

        Parameters
        ----------
        image : (B, 1, X, Y, Z), 0…1000, edges multiples of :data:`MULTIPLE`; 0 outside a mask
        sigma : (B,) standard deviation of the noise, same unit
        """
        sigma = sigma.view(-1, 1, 1, 1, 1)
        mean = F.avg_pool3d(image, 3, stride=1, padding=1, count_include_pad=False)
        detail = gathered((image - mean) / (DETAIL * sigma)).clamp(-10, 10)
        bright = gathered((image - MEAN) / SPREAD)
        known = F.avg_pool3d((image != 0).to(image.dtype), EDGE)
        level = torch.log(sigma / USUAL).expand_as(known)
        x = before = self.before(self.enter(torch.cat([bright, detail, known, level], 1)))
        x = self.down(x)
        for block in self.deep:
            x = block(x)
        x = self.after(before + self.up(x))
        return spread_out(self.conclude(F.relu(x))) * sigma


def build(state: State) -> DenoiseNet:
    """The network of a state dict."""
    return DenoiseNet((channels(state, "before.first.weight"), channels(state, "down.weight")))
