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

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from bmex_bids.network.models.topology import INPUT, OUTPUT, Step, evaluate

DROPOUT = 0.1


def _dense(numbers: str, reads: tuple[str, ...], makes: str, scale: int, **how: Any) -> Step:
    return Step("dense", tuple(f"conv{n}" for n in numbers.split()), reads, makes, scale, **how)


#: the layers in order of evaluation
STEPS = (
    Step("conv", ("conv1",), (INPUT,), "x1", 1, after="bn1"),
    _dense("2 3 4 4_1", ("x1",), "a", 1),
    Step("conv", ("conv5",), ("a",), "skip1", 1, before="bn4_1"),
    Step("pool", ("pool",), ("skip1",), "x2", 2, before="bn5"),
    _dense("6 7 8 9", ("x2",), "b", 2, new_first=True),
    Step("conv", ("conv10",), ("b",), "skip2", 2, before="bn9"),
    Step("pool", ("pool",), ("skip2",), "x4", 4, before="bn10"),
    Step("conv", ("conv11",), ("x4",), "skip3", 4),
    Step("pool", ("pool",), ("skip3",), "x8", 8, before="bn11"),
    Step("up", ("deconv11",), ("x8",), "y4", 4),
    _dense("12 13 14 15", ("skip3", "y4"), "c", 4),
    Step("up", ("deconv15",), ("c",), "y2", 2, before="bn15"),
    _dense("16 17 18 19", ("skip2", "y2"), "d", 2, activated=True),
    _dense("20 21 22 23", ("d",), "e", 2, before="bn19"),
    Step("up", ("deconv23",), ("e",), "y1", 1, before="bn23"),
    _dense("24 25 26 27", ("skip1", "y1"), "f", 1),
    _dense("28 29 30 31", ("f",), "g", 1, before="bn27"),
    Step("conv", ("conv32",), ("g",), OUTPUT, 1, before="bn31", after="bn32"),
)
#: channels of what is made, in quarters of the base width; of a dense block those of its first
#: layer and of each of the three others
QUARTERS = {
    "x1": (4,), "a": (4, 1), "skip1": (4,), "b": (4, 2), "skip2": (8,), "skip3": (8,),
    "y4": (8,), "c": (16, 2), "y2": (8,), "d": (16, 2), "e": (16, 2), "y1": (4,), "f": (8, 1),
    "g": (4, 1),
}  # fmt: skip


def steps_of(*, caffe: bool = False, stem: bool = True) -> tuple[Step, ...]:
    """The layers of a release; see :class:`ADUNet`."""
    steps = list(STEPS)
    if caffe:
        steps = [replace(step, new_first=False, activated=False) for step in steps]
    if not stem:
        steps = [replace(steps[1], reads=(INPUT,)), *steps[2:]]
    return tuple(steps)


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
        self.classes = classes
        self.steps = steps_of(caffe=caffe, stem=stem)
        made = {INPUT: in_channels}
        for step in self.steps:
            read = sum(made[name] for name in step.reads)
            if step.kind != "pool":
                read = self._add(step, read, width, classes)
            made[step.makes] = read
        self.pool = nn.MaxPool3d(3, stride=2, padding=0 if caffe else 1, ceil_mode=caffe)
        self.dropout = nn.Dropout(DROPOUT)

    def _add(self, step: Step, read: int, width: int, classes: int) -> int:
        """Make the layers of a step that reads so many channels; return how many it makes."""
        wide, *narrow = [n * width // 4 for n in QUARTERS.get(step.makes, ())] or [classes]
        total = 0
        for name, made in zip(step.layers, (wide, *narrow * 3), strict=True):
            if step.kind == "up":
                self.add_module(name, nn.ConvTranspose3d(read, made, 4, stride=2, padding=1))
            else:
                self.add_module(name, nn.Conv3d(total or read, made, 3, padding=1))
            total += made
            norm = name.replace("conv", "bn")
            if step.kind != "up":
                self.add_module(norm, nn.BatchNorm3d(total))
        return total

    def forward(self, x: Tensor) -> Tensor:
        return evaluate(self, self.steps, x)
