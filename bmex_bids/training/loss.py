# SPDX-License-Identifier: Apache-2.0
"""The joint loss of tissue classification and enhancement, taken inside the brain."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bmex_bids.network.compact import SCALE


@dataclass(frozen=True)
class JointLoss:
    """Charbonnier distance of the image plus weighted cross-entropy of the tissues.

    ``loss = mean sqrt(((y − t) / SCALE)² + eps²) − eps + gradient · mean |∇y − ∇t| / SCALE + tissue · CE``

    Everything is averaged inside the brain only: outside, a mask empties the image anyway, and a loss
    taken there teaches the network to clean what nobody sees.
    """

    tissue: float = 0.05
    gradient: float = 0.1
    eps: float = 0.1

    def __call__(self, scores: Tensor, image: Tensor, target: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        """Scores (N, 4, …), image and target (N, 1, …) in template units, mask (N, 1, …), labels (N, …).

        A label of 255 means "not known" and costs nothing.
        """
        inside = mask.to(image.dtype)
        count = inside.sum().clamp_min(1)
        error = (image - target) / SCALE * inside
        distance = (torch.sqrt(error**2 + self.eps**2) - self.eps).sum() / count
        slope = sum(torch.diff(error, dim=d).abs().sum() for d in (2, 3, 4)) / (3 * count)
        loss = distance + self.gradient * slope
        known = labels != 255
        if self.tissue > 0 and bool(known.any()):
            entropy = F.cross_entropy(scores, labels.long(), ignore_index=255)
            loss = loss + self.tissue * entropy
        return loss
