# SPDX-License-Identifier: Apache-2.0
"""BME-X: one network classifies tissues, a second makes the image from them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bmex_bids.network.models.adunet import ADUNet

CONNECTION = 32  # channels each of tissue and image features handed to the second network


class BMEX(nn.Module):
    """The published pair of networks, base width w (64 in the PyTorch release, 32 in Caffe's).

    With ``caffe=True`` it is the pair of the older release: the scores themselves go into the
    connection, not their softmax; what the connection makes goes straight into dense A of the
    second network; and see :class:`~bmex_bids.network.models.adunet.ADUNet`.

    ``forward`` takes template units, (N, 1, D, H, W) with sizes that are multiples of 8, and
    returns the rectified tissue scores (N, 4, D, H, W) and the enhanced image (N, 1, D, H, W),
    template units.
    """

    def __init__(self, width: int = 64, *, caffe: bool = False) -> None:
        super().__init__()
        self.caffe = caffe
        self.tissue = ADUNet(width, 1, 4, caffe=caffe)
        self.conv1_con = nn.Conv3d(4, CONNECTION, 3, padding=1)
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
