# SPDX-License-Identifier: Apache-2.0
"""Net_c: does a slice show a lesion, and where?  Trained on the first question alone.

Its last layer is a 1×1 convolution, whose output is the class activation map (Zhou et al., CVPR
2016); a pooling of the map is the score.  The mean would drown small lesions, so it is the smooth
maximum, or the mean of the highest :data:`TOP_SHARE`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: share of the map that top-k pooling averages
TOP_SHARE = 0.005
#: edges of the boxes whose means are taken off: what is left shows spots of that size
BOXES = (5, 11, 21)
#: log odds against a lesion in one place of the map; for the smooth maximum, which adds places up
PRIOR = 9.0
#: of the activations below 0
SLOPE = 0.1
#: lines and columns of an image must be a multiple of it
MULTIPLE = 4


def top(scores: Tensor) -> Tensor:
    """Mean of the highest values: (B, 1, H, W) → (B,)."""
    flat = scores.flatten(1)
    return flat.topk(max(round(TOP_SHARE * flat.shape[1]), 1), dim=1).values.mean(1)


def log_sum_exp(scores: Tensor) -> Tensor:
    """Smooth maximum: (B, 1, H, W) → (B,)."""
    return scores.flatten(1).logsumexp(1)


def mean(scores: Tensor) -> Tensor:
    """Mean: (B, 1, H, W) → (B,)."""
    return scores.flatten(1).mean(1)


POOLINGS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "top": top,
    "log-sum-exp": log_sum_exp,
    "mean": mean,
}


class Classifier(nn.Module):
    """Magnitude (B, 1, H, W) → score (B,), a logit, and activation map (B, 1, H/2, W/2).

    Parameters
    ----------
    width : channels at half resolution; a quarter has twice as many
    pooling : see :data:`POOLINGS`
    """

    def __init__(self, width: int = 16, pooling: str = "log-sum-exp") -> None:
        super().__init__()
        self.pool = POOLINGS[pooling]
        self.prior = PRIOR if pooling == "log-sum-exp" else 0.0
        wide = 2 * width
        self.fine = nn.Sequential(_block(4 * (1 + len(BOXES)), width), _block(width, width))
        self.coarse = nn.Sequential(
            nn.MaxPool2d(2), _block(width, wide), _block(wide, wide), _block(wide, wide)
        )
        self.merge = _block(width + wide, width)
        self.map = nn.Conv2d(width, 1, 1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Score and map of normalised magnitudes; sides are multiples of :data:`MULTIPLE`."""
        local = [image - _box_mean(image, n) for n in BOXES]
        fine = self.fine(F.pixel_unshuffle(torch.cat([image, *local], 1), 2))
        coarse = F.interpolate(self.coarse(fine), scale_factor=2, mode="nearest")
        scores = self.map(self.merge(torch.cat([fine, coarse], 1))).float() - self.prior
        return self.pool(scores), scores


def _box_mean(image: Tensor, size: int) -> Tensor:
    """Means of boxes, one axis after the other: much less to add than in a box."""
    rows = F.avg_pool2d(image, (size, 1), 1, (size // 2, 0))
    return F.avg_pool2d(rows, (1, size), 1, (0, size // 2))


def _block(before: int, after: int) -> nn.Sequential:
    # not normalised: a small lesion beside bright skin must not lose by it
    convolution = nn.Conv2d(before, after, 3, padding=1)
    nn.init.kaiming_normal_(convolution.weight, SLOPE)
    nn.init.zeros_(convolution.get_parameter("bias"))
    return nn.Sequential(convolution, nn.LeakyReLU(SLOPE))
