# SPDX-License-Identifier: Apache-2.0
"""A network that estimates from slices of one image how it was spoiled: motion, noise, resolution.

A small convolutional network describes each slice by means and deviations over the brain; figures
of the finest detail, on a logarithmic scale, stand beside them.  Slices of a plane are averaged,
planes are compared, and the answer is a mean and a variance of each quantity.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bmex_bids.network.models.shapes import State, channels

#: brain mean that an image is scaled to before it goes in
MEAN = 400.0
#: slices are padded to multiples of this
MULTIPLE = 16
#: quantities, in the order of the answer: severity, logarithm of noise and of resolution
QUANTITIES = ("motion", "noise", "resolution")
#: channels of the levels at a half, a quarter, an eighth and a sixteenth of the resolution
WIDTHS = (16, 32, 48, 64)
#: what an untrained network answers: means, log variances
USUAL = (1.0, 2.3, 0.3, -1.0, -1.0, -2.0)
#: figures of a slice's finest detail
STATISTICS = 12
#: of a slice, and of the image
EMBEDDED, HIDDEN = 48, 64
#: voxels: edge of the box of the local mean
LOCAL = 7
_INPUTS = 4


def inputs(slices: Tensor, mask: Tensor) -> Tensor:
    """Local mean, detail on a linear and on a bounded scale, and mask.

    Parameters
    ----------
    slices : (N, H, W), brain mean :data:`MEAN`
    mask : the same shape, 1 in the brain and 0 outside

    Returns
    -------
    (N, 4, H, W)
    """
    slices, mask = slices[:, None], mask[:, None]
    share = F.avg_pool2d(mask, LOCAL, stride=1, padding=LOCAL // 2)
    mean = F.avg_pool2d(slices * mask, LOCAL, stride=1, padding=LOCAL // 2)
    mean = torch.where(mask > 0, mean / share.clamp(min=1e-3), torch.full_like(mean, MEAN))
    detail = (slices - mean) * mask
    return torch.cat([(mean - MEAN) / 200, detail / 50, torch.tanh(detail / 10), mask], dim=1)


def statistics(slices: Tensor, mask: Tensor) -> Tensor:
    """Sizes of the finest detail on a logarithmic scale: diagonal bands, differences, bends.

    Parameters
    ----------
    slices : (N, H, W), brain mean :data:`MEAN`
    mask : the same shape, 1 in the brain and 0 outside

    Returns
    -------
    (N, STATISTICS), about 0, of a spread of about 1
    """
    found = []
    for step in (1, 2):
        rows, inside = slices[:, step:] - slices[:, :-step], mask[:, step:] * mask[:, :-step]
        band = (rows[:, :, step:] - rows[:, :, :-step]).abs() / 2
        inside = inside[:, :, step:] * inside[:, :, :-step]
        found += [_mean((band + 1).log(), inside), (_mean(band, inside) + 1).log()]
    for x, m in ((slices, mask), (slices.mT, mask.mT)):
        for step in (1, 2, 4):
            inside = m[:, step:] * m[:, :-step]
            found.append(_mean(((x[:, step:] - x[:, :-step]).abs() + 1).log(), inside))
        bend = (x[:, 2:] - 2 * x[:, 1:-1] + x[:, :-2]).abs()
        found.append(_mean((bend + 1).log(), m[:, 2:] * m[:, 1:-1] * m[:, :-2]))
    return torch.stack(found, dim=1) - 2.5


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    return (values * weight).sum((1, 2)) / weight.sum((1, 2)).clamp(min=1)


class Residual(nn.Module):
    """Two 3 × 3 convolutions, added to the input.

    Without normalisation: how strong the detail is, is what is asked.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:  # (N, C, H, W) → the same
        return x + self.conv2(F.silu(self.conv1(F.silu(x))))  # type: ignore[no-any-return]


class ScoreNet(nn.Module):
    """Mean and log variance of each of :data:`QUANTITIES`.

    ``spread`` widens the standard deviations to what is found on brains that do not train.
    """

    spread: Tensor

    def __init__(self, widths: tuple[int, ...] = WIDTHS) -> None:
        super().__init__()
        first, *rest = widths
        self.stem = nn.Conv2d(4 * _INPUTS, first, 3, padding=1)
        self.down = nn.ModuleList(
            nn.Conv2d(a, b, 2, stride=2) for a, b in zip(widths, rest, strict=False)
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(*(Residual(width) for _ in range(1 + (width == rest[-1]))))
            for width in rest
        )
        described = 2 * sum(rest) + STATISTICS
        self.describe = nn.Sequential(nn.Linear(described, EMBEDDED), nn.SiLU())
        last = nn.Linear(HIDDEN, 2 * len(QUANTITIES))
        with torch.no_grad():
            last.bias.copy_(torch.tensor(USUAL))
        self.conclude = nn.Sequential(nn.Linear(3 * EMBEDDED, HIDDEN), nn.SiLU(), last)
        self.register_buffer("spread", torch.ones(len(QUANTITIES)))

    def slices(self, image: Tensor, mask: Tensor) -> Tensor:
        """(N, H, W) slices of brain mean :data:`MEAN`, and masks → (N, EMBEDDED)."""
        x = F.silu(self.stem(F.pixel_unshuffle(inputs(image, mask), 2)))
        weight = F.avg_pool2d(mask[:, None], 2)
        found = [statistics(image, mask)]
        for down, block in zip(self.down, self.blocks, strict=True):
            x, weight = block(down(x)), F.avg_pool2d(weight, 2)
            y, total = x.float(), weight.sum((2, 3)).clamp(min=1)
            mean = (y * weight).sum((2, 3)) / total
            square = ((y - mean[:, :, None, None]) ** 2 * weight).sum((2, 3)) / total
            found += [mean, (square + 1e-4).log()]
        return self.describe(torch.cat(found, dim=1))  # type: ignore[no-any-return]

    def planes(self, described: Tensor) -> Tensor:
        """(N, 3 planes, K slices, EMBEDDED) → (N, 2, QUANTITIES): means and log variances."""
        plane = described.mean(dim=2)
        image = torch.cat([plane.mean(1), plane.amax(1), plane.amin(1)], dim=1)
        found = self.conclude(image).float().unflatten(1, (2, len(QUANTITIES)))
        return torch.stack([found[:, 0], found[:, 1].clamp(-7, 3)], dim=1)

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        """(N, 3, K, H, W) slices of three planes → (N, 2, QUANTITIES)."""
        flat = self.slices(image.flatten(0, 2), mask.flatten(0, 2))
        return self.planes(flat.unflatten(0, image.shape[:3]))


def build(state: State) -> ScoreNet:
    """The network of a file."""
    levels = sum(name.startswith("down.") and name.endswith("weight") for name in state)
    widths = [channels(state, "stem.weight")]
    widths += [channels(state, f"down.{k}.weight") for k in range(levels)]
    return ScoreNet(tuple(widths))
