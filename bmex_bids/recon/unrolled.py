# SPDX-License-Identifier: Apache-2.0
"""LF-MRI: a cascade of denoising module, lesion-focused module and data consistency.

The objective is ½‖A X − Y‖² + μ1‖N(X)‖² + μ2‖H(X)‖² (Ju et al., Med. Image Anal. 107:103806, 2026)
with N(X) = X − D(X) and H(X) = X − G(X, CAM(X)) in MoDL's form (Aggarwal et al., IEEE Trans. Med.
Imaging 38:394-405, 2019).  A stage computes Z1 = D(X) and Z2 = G(Z1, CAM(Z1)), then solves
(AᴴA + (μ1 + μ2) I) X = AᴴY + μ1 Z1 + μ2 Z2.  Stages share their networks; each has its own μ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bmex_bids.recon.attention import POOLINGS, Classifier
from bmex_bids.recon.operators import SOLVERS, Encoding

#: what guides the lesion-focused module: the activation map; nothing; the true mask; the map of a
#: classifier whose labels were drawn by lot
ATTENTIONS = ("learnt", "none", "oracle", "shuffled")
#: lines and columns inside the networks are a multiple of it
MULTIPLE = 8
#: μ1 and μ2 of an untrained cascade
FIRST_WEIGHT = 0.05
#: quantile of the magnitude that an image is scaled to
SCALE_QUANTILE = 0.99


class Residual2d(nn.Module):
    """A small U-Net over a complex image and further maps, which predicts a correction.

    Parameters
    ----------
    maps : real maps beside the image
    width : channels at half resolution; the two coarser levels have two and four times as many
    """

    def __init__(self, maps: int = 0, width: int = 24) -> None:
        super().__init__()
        one, two, four = width, 2 * width, 4 * width
        self.down1 = _pair(4 * (2 + maps), one)
        self.down2 = _pair(one, two)
        self.bottom = _pair(two, four)
        self.up2 = _pair(two + four, two)
        self.up1 = _pair(one + two, one)
        self.last = nn.Conv2d(one, 8, 3, padding=1)
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)  # untrained, it returns its input

    def forward(self, image: Tensor, maps: Tensor | None = None) -> Tensor:
        """(B, H, W) complex → the same; ``maps`` are (B, M, H, W)."""
        parts = torch.view_as_real(image).permute(0, 3, 1, 2)
        inputs = parts if maps is None else torch.cat([parts, maps], 1)
        height, width = inputs.shape[-2:]
        padded = F.pad(inputs, (0, -width % MULTIPLE, 0, -height % MULTIPLE))
        fine = self.down1(F.pixel_unshuffle(padded, 2))
        middle = self.down2(F.avg_pool2d(fine, 2))
        coarse = self.bottom(F.avg_pool2d(middle, 2))
        middle = self.up2(torch.cat([middle, _twice(coarse)], 1))
        fine = self.up1(torch.cat([fine, _twice(middle)], 1))
        change = F.pixel_shuffle(self.last(fine), 2)[..., :height, :width].float()
        return image + torch.view_as_complex(change.permute(0, 2, 3, 1).contiguous())


@dataclass(frozen=True)
class Cascaded:
    """What a cascade makes of a batch.

    Attributes
    ----------
    images : (B, H, W) complex of each stage, the last one the result
    scores : (B,) logit that there is a lesion, of each stage; 0 with a guide, without a classifier
    attention : (B, 1, H, W) of the last stage, 0…1
    """

    images: list[Tensor]
    scores: list[Tensor]
    attention: Tensor


class Cascade(nn.Module):
    """The network.

    Parameters
    ----------
    stages : of the cascade
    width : channels, see :class:`Residual2d`
    solver : of the data consistency, ``"cg"`` or ``"gradient"``
    steps : of the solver in a stage
    pooling : of the classifier, see :data:`bmex_bids.recon.attention.POOLINGS`
    attention : one of :data:`ATTENTIONS`, with which it is trained
    """

    def __init__(
        self,
        stages: int = 4,
        width: int = 24,
        *,
        solver: str = "cg",
        steps: int = 4,
        pooling: str = "log-sum-exp",
        attention: str = "learnt",
    ) -> None:
        super().__init__()
        self.solve, self.steps, self.attention = SOLVERS[solver], steps, attention
        #: solver, its steps, pooling and attention, so that a file of weights says them
        choices = [
            list(SOLVERS).index(solver), steps, list(POOLINGS).index(pooling),
            ATTENTIONS.index(attention),
        ]  # fmt: skip
        self.register_buffer("choices", torch.tensor(choices, dtype=torch.float32))
        self.denoise = Residual2d(0, width)
        self.focus = Residual2d(1, width)
        self.classify = Classifier(pooling=pooling)
        #: logarithms of μ1 and μ2 of each stage
        self.weights = nn.Parameter(torch.full((stages, 2), FIRST_WEIGHT).log())

    @property
    def stages(self) -> int:
        """How many there are."""
        return len(self.weights)

    def forward(
        self, adjoint: Tensor, encoding: Encoding, guide: Tensor | None = None
    ) -> Cascaded:
        """Reconstruct a batch.

        Parameters
        ----------
        adjoint : (B, H, W), AᴴY
        encoding : A
        guide : (B, 1, H, W) that takes the place of the activation map, 0…1
        """
        if guide is None and self.attention == "none":
            guide = torch.zeros_like(adjoint.real)[:, None]
        scale = scale_of(adjoint)
        target = adjoint / scale
        image = self.solve(encoding, target, target.new_tensor(FIRST_WEIGHT).real, target, 4)
        images, scores = [], []
        attention = torch.zeros_like(target.real)[:, None]  # of no stages
        for first, second in self.weights.exp():
            denoised = self.denoise(image)
            if guide is None:
                score, attention = self.look(denoised)
            else:
                score, attention = guide.new_zeros(len(guide)), guide
            scores.append(score)
            focused = self.focus(denoised, attention)
            right = target + first * denoised + second * focused
            image = self.solve(encoding, right, first + second, image, self.steps)
            images.append(image * scale)
        return Cascaded(images, scores, attention)

    def look(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Score (B,) and activation map (B, 1, H, W), 0…1, of a scaled image."""
        magnitude = image.abs()[:, None]
        height, width = magnitude.shape[-2:]
        padded = F.pad(magnitude, (0, -width % MULTIPLE, 0, -height % MULTIPLE))
        score, scores = self.classify(padded)
        fine = F.interpolate(scores, scale_factor=2, mode="bilinear", align_corners=False)
        return score, torch.sigmoid(fine)[..., :height, :width]


def scale_of(image: Tensor) -> Tensor:
    """(B, 1, 1): the :data:`SCALE_QUANTILE` of the magnitude; 1 for no signal."""
    scale = image.abs().flatten(1).quantile(SCALE_QUANTILE, dim=1)
    return torch.where(scale > 0, scale, 1.0)[:, None, None]


def build(state: Mapping[str, Tensor]) -> Cascade:
    """The empty cascade that the tensors of a state dict fit."""
    solver, steps, pooling, attention = (int(value) for value in state["choices"])
    return Cascade(
        len(state["weights"]),
        len(state["denoise.last.weight"][0]),
        solver=list(SOLVERS)[solver],
        steps=steps,
        pooling=list(POOLINGS)[pooling],
        attention=ATTENTIONS[attention],
    )


def _pair(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, padding=1),
        nn.LeakyReLU(0.1),
        nn.Conv2d(after, after, 3, padding=1),
        nn.LeakyReLU(0.1),
    )


def _twice(image: Tensor) -> Tensor:
    return F.interpolate(image, scale_factor=2, mode="nearest")
