# SPDX-License-Identifier: Apache-2.0
"""The joint loss of tissue classification and enhancement, taken inside the brain."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class JointLoss:
    """Relative absolute error of the image plus weighted cross-entropy of the tissues.

    ``loss = mean_i (mean |y − t| / (mean |x − t| + floor)) + tissue · CE``, x the degraded input,
    t the clean target, y the output.  Each patch counts by how much of its own fault is mended:
    with a plain distance a few patches of hopeless motion drowned everything that could be learnt
    (500 steps, no gain in any validation cell).

    Everything is averaged inside the brain only: outside, a mask empties the image anyway, and a
    loss taken there teaches the network to clean what nobody sees.
    """

    tissue: float = 0.1
    floor: float = 20.0  # template units; small ones let clean patches forbid any change

    def __call__(
        self,
        scores: Tensor,
        image: Tensor,
        bad: Tensor,
        target: Tensor,
        mask: Tensor,
        labels: Tensor,
    ) -> Tensor:
        """Scores (N, 4, …); image, bad and target (N, 1, …), template units; mask; labels (N, …).

        A label of 255 means "not known" and costs nothing.
        """
        inside = mask.to(image.dtype)
        count = inside.flatten(1).sum(dim=1).clamp_min(1)
        before = ((bad - target).abs() * inside).flatten(1).sum(dim=1) / count
        after = ((image - target).abs() * inside).flatten(1).sum(dim=1) / count
        loss = (after / (before + self.floor)).mean()
        known = (labels != 255) & mask[:, 0]
        if self.tissue > 0 and bool(known.any()):
            wanted = torch.where(known, labels, torch.full_like(labels, 255)).long()
            loss = loss + self.tissue * F.cross_entropy(scores, wanted, ignore_index=255)
        return loss
