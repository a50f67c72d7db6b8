# SPDX-License-Identifier: Apache-2.0
"""The published network: a dense U-Net ("ADU-Net", Wang et al., MICCAI 2018) of base width w.

Written from a table of the published layers; layers carry the published numbers, so that a
published state dict loads by name (see :mod:`bmex_bids.network.weights.checkpoints`).  All convolutions
are 3×3×3 with padding 1 and a bias.  A dense step is BN → ReLU → convolution → dropout →
concatenation.

Two irregularities of the PyTorch release are kept, since its weights were trained with them:

1. dense B, first concatenation: the new features come before the old;
2. dense D: what enters the third concatenation is the activated tensor (after bn18 and ReLU), not
   the raw one.

The older Caffe release has neither, and pools without padding; ``caffe=True`` is that network.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DROPOUT = 0.1


def layer_table(w: int, in_channels: int, classes: int) -> dict[str, tuple[int, int]]:
    """Channels (in, out) of every numbered convolution, in order of evaluation."""
    q, h = w // 4, w // 2
    return {
        "1": (in_channels, w),
        # dense A, full resolution: w → 7w/4
        "2": (w, w), "3": (w, q), "4": (w + q, q), "4_1": (w + 2 * q, q),
        "5": (w + 3 * q, w),
        # dense B, half: w → 5w/2
        "6": (w, w), "7": (w, h), "8": (w + h, h), "9": (w + 2 * h, h),
        "10": (w + 3 * h, 2 * w),
        "11": (2 * w, 2 * w),
        # dense C, quarter: 4w → 11w/2
        "12": (4 * w, 4 * w), "13": (4 * w, h), "14": (4 * w + h, h), "15": (4 * w + 2 * h, h),
        # dense D, half: 4w → 11w/2
        "16": (4 * w, 4 * w), "17": (4 * w, h), "18": (4 * w + h, h), "19": (4 * w + 2 * h, h),
        # dense E, half: 11w/2 → 4w → 11w/2
        "20": (4 * w + 3 * h, 4 * w),
        "21": (4 * w, h), "22": (4 * w + h, h), "23": (4 * w + 2 * h, h),
        # dense F, full: 2w → 11w/4
        "24": (2 * w, 2 * w), "25": (2 * w, q), "26": (2 * w + q, q), "27": (2 * w + 2 * q, q),
        # dense G, full: 11w/4 → w → 7w/4
        "28": (2 * w + 3 * q, w), "29": (w, q), "30": (w + q, q), "31": (w + 2 * q, q),
        "32": (w + 3 * q, classes),
    }  # fmt: skip


def norm_widths(table: dict[str, tuple[int, int]]) -> dict[str, int]:
    """Channels of each batch normalisation: of its own layer's output, or of the grown stack."""
    names = list(table)
    widths = {name: table[name][1] for name in names}
    dense = {
        "A": ("2", "3", "4", "4_1"), "B": ("6", "7", "8", "9"), "C": ("12", "13", "14", "15"),
        "D": ("16", "17", "18", "19"),
        "E": ("20", "21", "22", "23"), "F": ("24", "25", "26", "27"),
        "G": ("28", "29", "30", "31"),
    }  # fmt: skip
    for first, *grown in dense.values():
        total = table[first][1]
        for name in grown:
            total += table[name][1]
            widths[name] = total
    return widths


class ADUNet(nn.Module):
    """One dense U-Net: (N, in, D, H, W) → (N, classes, D, H, W); D, H, W multiples of 8.

    Parameters
    ----------
    width : base width w, a multiple of 4
    in_channels : channels of the input (1; 64 for the second network of BME-X)
    classes : channels of the head
    caffe : as in the Caffe release: all concatenations are (old, new) and raw; pooling is not
        padded and rounds the size up
    stem : whether conv1 and bn1 are there; without them the input goes straight into dense A
    """

    def __init__(
        self,
        width: int = 64,
        in_channels: int = 1,
        classes: int = 4,
        *,
        caffe: bool = False,
        stem: bool = True,
    ) -> None:
        super().__init__()
        w = width
        self.irregular = not caffe
        self.stem = stem
        table = layer_table(w, in_channels, classes)
        if not stem:
            del table["1"]
            table["2"] = (in_channels, w)
        for name, (n_in, n_out) in table.items():
            self.add_module(f"conv{name}", nn.Conv3d(n_in, n_out, 3, padding=1))
        for name, channels in norm_widths(table).items():
            self.add_module(f"bn{name}", nn.BatchNorm3d(channels))
        self.deconv11 = nn.ConvTranspose3d(2 * w, 2 * w, 4, stride=2, padding=1)
        self.deconv15 = nn.ConvTranspose3d(4 * w + 3 * (w // 2), 2 * w, 4, stride=2, padding=1)
        self.deconv23 = nn.ConvTranspose3d(4 * w + 3 * (w // 2), w, 4, stride=2, padding=1)
        self.pool = nn.MaxPool3d(3, stride=2, padding=0 if caffe else 1, ceil_mode=caffe)
        self.dropout = nn.Dropout(DROPOUT)

    def _conv(self, name: str, x: Tensor) -> Tensor:
        result: Tensor = self.get_submodule(f"conv{name}")(x)
        return result

    def _activate(self, name: str, x: Tensor) -> Tensor:
        return F.relu(self.get_submodule(f"bn{name}")(x))

    def _dense(
        self,
        x: Tensor,
        names: tuple[str, str, str, str],
        *,
        new_first: bool = False,
        carry_activated: bool = False,
    ) -> Tensor:
        """Four convolutions that grow a stack; the closing BN → ReLU is applied."""
        first, *grown = names
        stack = self._conv(first, x)
        for k, (before, name) in enumerate(zip(names, grown, strict=False)):
            active = self._activate(before, stack)
            new = self.dropout(self._conv(name, active))
            old = active if carry_activated and k == 2 else stack
            stack = torch.cat([new, old] if new_first and k == 0 else [old, new], dim=1)
        return self._activate(names[-1], stack)

    def forward(self, x: Tensor) -> Tensor:  # scale, channels of the result
        if self.stem:
            x = self._activate("1", self._conv("1", x))  # 1, w
        x = self._dense(x, ("2", "3", "4", "4_1"))  # 1, 7w/4
        skip1 = self._conv("5", x)  # 1, w
        x = self.pool(self._activate("5", skip1))  # 1/2, w
        x = self._dense(x, ("6", "7", "8", "9"), new_first=self.irregular)  # 1/2, 5w/2
        skip2 = self._conv("10", x)  # 1/2, 2w
        x = self.pool(self._activate("10", skip2))  # 1/4, 2w
        skip3 = self._conv("11", x)  # 1/4, 2w
        x = self.deconv11(self.pool(self._activate("11", skip3)))  # 1/4, 2w
        x = self._dense(torch.cat([skip3, x], 1), ("12", "13", "14", "15"))  # 1/4, 11w/2
        x = torch.cat([skip2, self.deconv15(x)], 1)  # 1/2, 4w
        x = self._dense(x, ("16", "17", "18", "19"), carry_activated=self.irregular)  # 1/2, 11w/2
        x = self._dense(x, ("20", "21", "22", "23"))  # 1/2, 11w/2
        x = torch.cat([skip1, self.deconv23(x)], 1)  # 1, 2w
        x = self._dense(x, ("24", "25", "26", "27"))  # 1, 11w/4
        x = self._dense(x, ("28", "29", "30", "31"))  # 1, 7w/4
        return self._activate("32", self._conv("32", x))  # 1, classes
