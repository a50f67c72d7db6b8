# SPDX-License-Identifier: Apache-2.0
"""BME-X: one network classifies tissues, a second makes the image from them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bmex_bids.network.models.adunet import ADUNet
from bmex_bids.network.models.shapes import State, base_width, channels

CONNECTION = 32  # channels each of tissue and image features handed to the second network


class BMEX(nn.Module):
    """The published pair of networks, base width w (64 in the PyTorch release, 32 in Caffe's).

    With ``caffe=True`` it is the pair of the older release: the scores themselves go into the
    connection, not their softmax; what the connection makes goes straight into dense A of the
    second network; and see :class:`~bmex_bids.network.models.adunet.ADUNet`.

    ``forward`` takes template units, (N, 1, D, H, W) with sizes that are multiples of 8, and
    returns the rectified tissue scores (N, classes, D, H, W) and the enhanced image (N, 1, D, H, W),
    template units.
    """

    def __init__(self, width: int = 64, *, classes: int = 4, caffe: bool = False) -> None:
        super().__init__()
        self.caffe, self.classes = caffe, classes
        self.tissue = ADUNet(width, 1, classes, caffe=caffe)
        self.conv1_con = nn.Conv3d(classes, CONNECTION, 3, padding=1)
        self.bn1_con = nn.BatchNorm3d(CONNECTION)
        self.conv2_con = nn.Conv3d(1, CONNECTION, 3, padding=1)
        self.bn2_con = nn.BatchNorm3d(CONNECTION)
        self.recon = ADUNet(width, 2 * CONNECTION, 1, caffe=caffe, stem=not caffe)

    def classify(self, x: Tensor) -> Tensor:
        """The tissue scores alone, as :meth:`forward` returns them."""
        scores: Tensor = self.tissue(x)
        return scores

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.classify(x)
        seen = scores if self.caffe else torch.softmax(scores, dim=1)
        tissue = F.relu(self.bn1_con(self.conv1_con(seen)))
        image = F.relu(self.bn2_con(self.conv2_con(x)))
        return scores, self.recon(torch.cat([tissue, image], dim=1))


def from_published(name: str) -> str:
    """The name of a published BME-X tensor in :class:`BMEX`.

    >>> from_published("conv4_1_recon.weight"), from_published("bn2.running_var")
    ('recon.conv4_1.weight', 'tissue.bn2.running_var')
    >>> from_published("conv1_con.bias")
    'conv1_con.bias'
    """
    layer, _, kind = name.rpartition(".")
    if layer.endswith("_con"):
        return name
    if layer.endswith("_recon"):
        return f"recon.{layer.removesuffix('_recon')}.{kind}"
    return f"tissue.{layer}.{kind}"


def build_pytorch(state: State) -> nn.Module:
    """The network of a file of the PyTorch release, by its published names."""
    return BMEX(base_width(state, "conv1.weight"), classes=channels(state, "conv32.weight"))


def build_caffe(state: State) -> nn.Module:
    """The network of the Caffe release, under our names (see ``weights.caffe``)."""
    width = base_width(state, "tissue.conv1.weight")
    return BMEX(width, classes=channels(state, "tissue.conv32.weight"), caffe=True)
