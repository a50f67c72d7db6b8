# SPDX-License-Identifier: Apache-2.0
"""The joint loss of tissue classification and enhancement, taken inside the brain."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bmex_bids.network.models.compact import box_mean

RANGE = 1000.0  # template units
WINDOW = 7  # voxels, edge of the cube that SSIM compares
CLASSES = 3  # dark, middle and bright
BINS = 64  # of the histogram that is cut into them


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
    sorted t)² / (mean (x − t)² + floor²)) + classes · mean_i (disagreement of the classes of y and t /
    (that of x and t + classes_floor)) + tissue · CE``, x the degraded input, t the clean target, y the
    output.  Each patch counts by how much of its own fault is mended:
    with a plain distance a few patches of hopeless motion drowned everything that could be learnt
    (500 steps, no gain in any validation cell).

    Squares, because a change of two units to a clean patch must weigh little beside a fault of
    seventy in a moved one.

    Whoever is unsure and judged by squares says the mean of what it may be, so an image of bad motion came
    out with too few dark and bright voxels for a segmentation.  ``histogram`` asks for a target's
    distribution of intensities, wherever they are (squared Wasserstein distance in one dimension),
    ``classes`` for the three classes that a segmentation by intensity finds, where they are (see
    :func:`disagreement`).

    Everything is averaged inside the brain only: outside, a mask empties the image anyway, and a
    loss taken there teaches the network to clean what nobody sees.
    """

    tissue: float = 0.1
    floor: float = 12.0  # template units; small ones let clean patches forbid any change
    structure: float = 0.3
    structure_floor: float = 0.1  # of SSIM, at full resolution; half of it at half, and so on
    scales: int = 3  # of the structure: full resolution, half, a quarter
    histogram: float = 0.0
    classes: float = 0.0
    classes_floor: float = 0.1

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
        if self.classes > 0:
            apart, once = disagreement((image, bad), target, mask)
            loss = loss + self.classes * (apart / (once + self.classes_floor)).mean()
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


def disagreement(images: Sequence[Tensor], target: Tensor, mask: Tensor) -> Tensor:
    """How much the classes of images differ from their target's, 0 to 1, (N, 1, …) each → (images, N).

    Dark, middle and bright are cut out of the target's histogram by Otsu's criterion.  What a voxel
    is, is a share of each (Gaussians about the classes' means with the spread that all have), and
    what differs is 1 − 2 Σ p q / Σ (p² + q²), the mean of the classes: Dice's coefficient for shares
    (Milletari et al. 2016), which is 0 for equal images only.  0 where a patch has no classes.
    """
    found = []
    for wanted, where, *ones in zip(target.float(), mask, *images, strict=True):
        true = wanted[where]
        fitted = _classes(true) if true.numel() else None
        if fitted is None:
            found.append(true.new_zeros(len(ones)))
            continue
        mean, spread = fitted
        aim, *shares = (
            torch.softmax(-0.5 * ((v[:, None] - mean) / spread) ** 2, dim=1)
            for v in (true, *(one.float()[where] for one in ones))
        )
        found.append(torch.stack([1 - _dice(share, aim).mean() for share in shares]))
    return torch.stack(found, dim=1)


def _dice(share: Tensor, aim: Tensor) -> Tensor:
    """Dice's coefficient of each class, (voxels, classes) → (classes,)."""
    both, each = (share * aim).sum(dim=0), (share**2 + aim**2).sum(dim=0)
    return 2 * both / each.clamp_min(1e-6)


@torch.no_grad()
def _classes(values: Tensor) -> tuple[Tensor, Tensor] | None:
    """Means of three classes (the cuts of least spread within, Otsu 1979) and that spread, or None."""
    low, high = float(values.min()), float(values.max())
    if not high > low:
        return None
    count = torch.histc(values, BINS, low, high).double().cpu()
    centre = low + (torch.arange(BINS, dtype=torch.float64) + 0.5) * ((high - low) / BINS)
    sums = torch.zeros(3, BINS + 1, dtype=torch.float64)  # voxels, their sum and their squares
    sums[:, 1:] = torch.stack([count, count * centre, count * centre**2]).cumsum(dim=1)
    first, second = torch.triu_indices(BINS - 1, BINS - 1, offset=1) + 1
    cuts = [torch.zeros_like(first), first, second, torch.full_like(first, BINS)]
    parts = torch.stack([sums[:, b] - sums[:, a] for a, b in itertools.pairwise(cuts)])
    number, total, squares = parts.unbind(dim=1)  # (classes, cuts) each
    within = (squares - total**2 / number.clamp_min(1)).sum(dim=0)
    best = int(torch.where((number > 0).all(dim=0), within, torch.inf).argmin())
    if not bool((number[:, best] > 0).all()):
        return None
    spread = math.sqrt(max(float(within[best]), 0.0) / values.numel()) + (high - low) / BINS
    mean = (total[:, best] / number[:, best]).to(values)
    return mean, mean.new_tensor(spread)


def _mean_inside(values: Tensor, inside: Tensor) -> Tensor:
    """Mean inside the brain of each patch, (N, 1, …) → (N,); 0 where there is none."""
    count = inside.flatten(1).sum(dim=1).clamp_min(1)
    return (values * inside).flatten(1).sum(dim=1) / count
