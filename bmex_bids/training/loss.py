# SPDX-License-Identifier: Apache-2.0
"""The joint loss of tissue classification and enhancement, taken inside the brain."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bmex_bids.network.compact import box_mean

RANGE = 1000.0  # template units
WINDOW = 7  # voxels, edge of the cube that SSIM compares


def ssim(image: Tensor, target: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004) of each voxel's cube, (N, 1, …), template units."""
    x, y = image.float() / RANGE, target.float() / RANGE
    parts = torch.cat([x, y, x * x, y * y, x * y], dim=1)
    mean_x, mean_y, square_x, square_y, both = box_mean(parts, WINDOW).split(1, dim=1)
    variances = (square_x - mean_x**2).clamp_min(0) + (square_y - mean_y**2).clamp_min(0)
    covariance = both - mean_x * mean_y
    brightness = (2 * mean_x * mean_y + 1e-4) / (mean_x**2 + mean_y**2 + 1e-4)
    return brightness * (2 * covariance + 9e-4) / (variances + 9e-4)


@dataclass(frozen=True)
class JointLoss:
    """Relative squared error of the image, its loss of structure, and the tissues' cross-entropy.

    ``loss = mean_i (mean (y − t)² / (mean (x − t)² + floor²)) + structure · mean_i (mean (1 −
    SSIM(y, t)) / (mean (1 − SSIM(x, t)) + structure_floor)) + histogram · mean_i (mean (sorted y −
    sorted t)² / (mean (x − t)² + floor²)) + tissue · CE``, x the degraded input,
    t the clean target, y the output.  Each patch counts by how much of its own fault is mended:
    with a plain distance a few patches of hopeless motion drowned everything that could be learnt
    (500 steps, no gain in any validation cell).

    Squares, because a change of two units to a clean patch must weigh little beside a fault of
    seventy in a moved one.

    Whoever is unsure and judged by squares says the mean of what it may be, so an image of bad motion came
    out with too few dark and bright voxels for a segmentation.  ``histogram`` asks for a target's
    distribution of intensities, wherever they are (squared Wasserstein distance in one dimension).

    Everything is averaged inside the brain only: outside, a mask empties the image anyway, and a
    loss taken there teaches the network to clean what nobody sees.
    """

    tissue: float = 0.1
    floor: float = 12.0  # template units; small ones let clean patches forbid any change
    structure: float = 0.3
    structure_floor: float = 0.1  # of SSIM, at full resolution; half of it at half, and so on
    scales: int = 3  # of the structure: full resolution, half, a quarter
    histogram: float = 0.0

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
        before, after = (_mean_inside((one - target) ** 2, inside) for one in (bad, image))
        before = before + self.floor**2
        loss = (after / before).mean()
        if self.histogram > 0:
            loss = loss + self.histogram * (_distribution(image, target, mask) / before).mean()
        if self.structure > 0:
            loss = loss + self.structure * self._structure(image, bad, target, inside)
        known = (labels != 255) & mask[:, 0]
        if self.tissue > 0 and bool(known.any()):
            wanted = torch.where(known, labels, torch.full_like(labels, 255)).long()
            loss = loss + self.tissue * F.cross_entropy(scores, wanted, ignore_index=255)
        return loss

    def _structure(self, image: Tensor, bad: Tensor, target: Tensor, inside: Tensor) -> Tensor:
        """Lost structure relative to the damaged image's, the mean over patches and scales."""
        total = image.new_zeros(())
        for scale in range(self.scales):
            if scale > 0:
                share = F.avg_pool3d(inside, 2)
                image, bad, target = (
                    F.avg_pool3d(one * inside, 2) / share.clamp_min(0.1)
                    for one in (image, bad, target)
                )
                inside = (share > 0.5).to(share.dtype)
            missing, lost = (
                _mean_inside(1 - ssim(one * inside, target * inside), inside)
                for one in (image, bad)
            )
            total = total + (missing / (lost + self.structure_floor / 2**scale)).mean()
        return total / self.scales


def _distribution(image: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Squared distance of the intensities of each patch from darkest to brightest, (N, 1, …) → (N,)."""
    distances = [
        F.mse_loss(one[where].sort().values, wanted[where].sort().values)
        if bool(where.any())
        else one.new_zeros(())
        for one, wanted, where in zip(image.float(), target.float(), mask, strict=True)
    ]
    return torch.stack(distances)


def _mean_inside(values: Tensor, inside: Tensor) -> Tensor:
    """Mean inside the brain of each patch, (N, 1, …) → (N,); 0 where there is none."""
    count = inside.flatten(1).sum(dim=1).clamp_min(1)
    return (values * inside).flatten(1).sum(dim=1) / count
