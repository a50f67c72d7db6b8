# SPDX-License-Identifier: Apache-2.0
"""A network that estimates how an image was spoiled: motion, noise, resolution.

Its input are figures of the detail in single slices (:func:`statistics`): how strong it is at each
scale and brightness, and how it repeats itself along the slice's axes, as ripples of motion do,
over the brain and over its even parts.  Figures of a plane are averaged over its slices; the
network describes each plane, compares the three, and answers with a mean and a variance of each
quantity.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bmex_bids.common.contrasts import MEAN
from bmex_bids.network.models.shapes import State, channels

#: quantities, in the order of the answer: severity, logarithm of noise and of resolution
QUANTITIES = ("motion", "noise", "resolution")
#: what an untrained network answers: means, log variances
USUAL = (1.0, 2.3, 0.3, -1.0, -1.0, -2.0)
#: voxels: edge of the box of the local mean, and the share of it that must be brain
LOCAL, INSIDE = 7, 0.7
#: change of the local mean over two voxels, at which a place is no longer even
EVEN = 30.0
#: voxels over which the detail is compared with itself
LAGS = 8
#: limits of the bands of brightness
BANDS = (220.0, 380.0, 480.0)
#: figures of a slice
STATISTICS = 18 + 2 * (4 + 2 * LAGS)
#: of a plane, and of the image
EMBEDDED, HIDDEN = 48, 64
#: standardised figures are kept within ± this
FARTHEST = 6.0


def statistics(slices: Tensor, mask: Tensor) -> Tensor:
    """Figures of the detail in slices.

    Parameters
    ----------
    slices : (N, H, W), brain mean :data:`MEAN`
    mask : the same shape, 1 in the brain and 0 outside

    Returns
    -------
    (N, STATISTICS): logarithms of sizes, shares, autocorrelations
    """
    found = []
    for step in (1, 2):  # diagonal bands: noise more than anatomy
        rows, within = slices[:, step:] - slices[:, :-step], mask[:, step:] * mask[:, :-step]
        band = (rows[:, :, step:] - rows[:, :, :-step]).abs() / 2
        within = within[:, :, step:] * within[:, :, :-step]
        found += [_mean((band + 1).log(), within), (_mean(band, within) + 1).log()]
    share = _box_mean(mask)
    mean = _box_mean(slices * mask) / share.clamp(min=1e-3)
    inside = mask * (share > INSIDE)
    detail = (slices - mean) * inside
    even = inside * torch.exp(-_squared_slope(mean) / (2 * EVEN**2))
    square = detail * detail
    variance, even_variance = _mean(square, inside), _mean(square, even)
    found += [(variance + 1).log() / 2, (even_variance + 1).log() / 2]
    for weight, second in ((inside, variance), (even, even_variance)):  # as kurtosis
        ratio = _mean(square * square, weight) / (second * second + 1)
        found.append(ratio.clamp(min=1e-2).log())
    found.append((_mean(detail.abs(), even) + 1).log())
    for low, high in zip((-1e9, *BANDS), (*BANDS, 1e9), strict=True):
        weight = inside * ((mean > low) & (mean <= high))
        part = weight.sum((1, 2)) / inside.sum((1, 2)).clamp(min=1)
        found += [(_mean(square, weight) + 1).log() / 2, 4 * part]
    found.append((_mean((mean - MEAN) ** 2, mask) + 1).log() / 2)
    for turn in (False, True):
        x, m, d, i, e = (
            part.mT if turn else part for part in (slices, mask, detail, inside, even)
        )
        for step in (1, 2, 4):
            difference = (x[:, step:] - x[:, :-step]).abs()
            found.append(_mean((difference + 1).log(), m[:, step:] * m[:, :-step]))
        bend = (x[:, 2:] - 2 * x[:, 1:-1] + x[:, :-2]).abs()
        found.append(_mean((bend + 1).log(), m[:, 2:] * m[:, 1:-1] * m[:, :-2]))
        for lag in range(1, LAGS + 1):
            product = d[:, lag:] * d[:, :-lag]
            for weight, second in ((i, variance), (e, even_variance)):
                both = weight[:, lag:] * weight[:, :-lag]
                found.append(3 * _mean(product, both) / (second + 1))
    return torch.stack(found, dim=1)


def _box_mean(x: Tensor) -> Tensor:
    return F.avg_pool2d(x[:, None], LOCAL, stride=1, padding=LOCAL // 2)[:, 0]


def _squared_slope(x: Tensor) -> Tensor:
    rows = F.pad((x[:, 2:] - x[:, :-2]).abs(), (0, 0, 1, 1))
    columns = F.pad((x[:, :, 2:] - x[:, :, :-2]).abs(), (1, 1))
    return rows**2 + columns**2


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    return (values * weight).sum((1, 2)) / weight.sum((1, 2)).clamp(min=1)


class ScoreNet(nn.Module):
    """Mean and log variance of each of :data:`QUANTITIES`.

    ``centre`` and ``scale`` standardise the figures; ``spread`` widens the standard deviations to
    what is found on brains that do not train.
    """

    centre: Tensor
    scale: Tensor
    spread: Tensor

    def __init__(self, embedded: int = EMBEDDED, hidden: int = HIDDEN, dropout: float = 0.1):
        super().__init__()
        self.register_buffer("centre", torch.zeros(STATISTICS))
        self.register_buffer("scale", torch.ones(STATISTICS))
        self.register_buffer("spread", torch.ones(len(QUANTITIES)))
        self.describe = nn.Sequential(
            nn.Linear(STATISTICS, embedded), nn.SiLU(), nn.Dropout(dropout)
        )
        last = nn.Linear(hidden, 2 * len(QUANTITIES))
        with torch.no_grad():
            last.bias.copy_(torch.tensor(USUAL))
        self.conclude = nn.Sequential(
            nn.Linear(3 * embedded, hidden), nn.SiLU(), nn.Dropout(dropout), last
        )

    def standardise(self, figures: Tensor) -> None:
        """Take centre and scale from figures (N, 3, STATISTICS) of many images."""
        flat = figures.flatten(0, 1)
        self.centre.copy_(flat.mean(0))
        self.scale.copy_(flat.std(0) + 0.05)

    def forward(self, figures: Tensor) -> Tensor:
        """(N, 3, STATISTICS) figures of three planes → (N, 2, QUANTITIES)."""
        standard = ((figures.float() - self.centre) / self.scale).clamp(-FARTHEST, FARTHEST)
        plane = self.describe(standard)
        image = torch.cat([plane.mean(1), plane.amax(1), plane.amin(1)], dim=1)
        found = self.conclude(image).float().unflatten(1, (2, len(QUANTITIES)))
        return torch.stack([found[:, 0], found[:, 1].clamp(-7, 3)], dim=1)


def build(state: State) -> ScoreNet:
    """The network of a file."""
    return ScoreNet(channels(state, "describe.0.weight"), channels(state, "conclude.0.weight"))
