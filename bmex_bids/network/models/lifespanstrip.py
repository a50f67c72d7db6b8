# SPDX-License-Identifier: Apache-2.0
"""The network of LifespanStrip (Wang et al., Nat. Biomed. Eng. 2025)."""

from __future__ import annotations

import torch
from torch import Tensor

from bmex_bids.network.models.adunet import ADUNet
from bmex_bids.network.models.shapes import State, base_width, channels


class LifespanStrip(ADUNet):
    """One ADU-Net with a softmax: (N, 1, D, H, W) → class probabilities (N, classes, D, H, W)."""

    def __init__(self, width: int = 32, classes: int = 4) -> None:
        super().__init__(width, 1, classes)

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(super().forward(x), dim=1)


def build(state: State) -> LifespanStrip:
    """The network of a published file."""
    return LifespanStrip(base_width(state, "conv1.weight"), channels(state, "conv32.weight"))
