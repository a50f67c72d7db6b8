# SPDX-License-Identifier: Apache-2.0
"""The network of LifespanStrip (Wang et al., Nat. Biomed. Eng. 2025)."""

from __future__ import annotations

import torch
from torch import Tensor

from bmex_bids.network.models.adunet import ADUNet


class LifespanStrip(ADUNet):
    """One ADU-Net with a softmax: (N, 1, D, H, W) → class probabilities (N, 4, D, H, W)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__(width, 1, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(super().forward(x), dim=1)
