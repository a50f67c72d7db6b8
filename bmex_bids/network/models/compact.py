# SPDX-License-Identifier: Apache-2.0
"""The compact network whose weights we train and bundle.

It keeps the idea of BME-X, tissues first and the image from them, and spends the arithmetic where
two processor cores can train it:

* features live at half resolution and below; a voxel-unshuffle moves each 2×2×2 block of voxels
  into eight channels, so nothing is lost on the way in or out;
* no batch statistics anywhere, so that training and inference compute the same function, whatever
  the tile (batches of two to four made batch normalisation disagree with itself);
* the enhancement network returns a correction that is added to its input: a clean image asks for
  nothing.

* the image enters as two channels of unit size, its local mean and the detail on top of it, and
  the correction leaves in units of detail.  Fed as one channel, the brightness (some 400 template
  units) hid the noise and blur (some 30) that is to be mended, and training hardly moved.

Intensities are in template units (roughly 0…1000).
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bmex_bids.network.models.shapes import State, channels

CENTRE, BRIGHTNESS = 400.0, 150.0  # template units: of the local mean
DETAIL = 30.0  # template units: of what is left, and of the correction
WINDOW = 5  # voxels, edge of the cube that the local mean is taken over


def box_mean(x: Tensor, window: int = WINDOW) -> Tensor:
    """Mean over a cube of ``window`` voxels, (N, C, D, H, W), zeros beyond the edge.

    One axis after the other, each as a product with a banded matrix: processors do those many times
    faster than torch's average pooling, which took half of a training step.
    """
    depth, height, width = x.shape[2:]
    with _in_full(x):
        whole = x if x.dtype == torch.float64 else x.float()
        whole = _band(height, window, whole) @ whole @ _band(width, window, whole)
        flat = _band(depth, window, whole) @ whole.flatten(3)
    return flat.reshape(x.shape).to(x.dtype)


def _in_full(x: Tensor) -> AbstractContextManager[Any]:
    """Products with ``x`` keep its precision, where mixed precision is on too; its rounding would show."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def _band(size: int, window: int, like: Tensor) -> Tensor:
    """(size, size): row i has 1/window at the columns within half a window of i."""
    place = torch.arange(size, device=like.device)
    near = (place[:, None] - place).abs() <= window // 2
    return near.to(like.dtype) / window


def split(x: Tensor) -> Tensor:
    """(N, 1, …) template units → (N, 2, …): local mean and detail, about unit size, zero outside.

    The mean is taken over brain voxels only (those above zero), so a mask's edge makes no edge
    here.
    """
    inside = (x > 0).to(x.dtype)
    mean = box_mean(x * inside) / box_mean(inside).clamp_min(1e-3)
    return torch.cat([(mean - CENTRE) / BRIGHTNESS, (x - mean) / DETAIL], dim=1) * inside


def unshuffle(x: Tensor) -> Tensor:
    """(N, C, D, H, W) → (N, 8C, D/2, H/2, W/2): each 2×2×2 block becomes channels."""
    n, c, d, h, w = x.shape
    x = x.reshape(n, c, d // 2, 2, h // 2, 2, w // 2, 2)
    return x.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(n, c * 8, d // 2, h // 2, w // 2)


def shuffle(x: Tensor) -> Tensor:
    """The inverse of :func:`unshuffle`."""
    n, c, d, h, w = x.shape
    x = x.reshape(n, c // 8, 2, 2, 2, d, h, w)
    return x.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(n, c // 8, d * 2, h * 2, w * 2)


class ChannelNorm(nn.GroupNorm):
    """Instance normalisation: one group a channel, (N, C, D, H, W).

    While it trains, sums are products with a row of ones: going back through torch's own took two
    thirds of a step on channels-last memory.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width, width)

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return super().forward(x)
        found: Tensor = _Normalise.apply(x, self.weight, self.bias, self.eps)
        return found


class _Normalise(torch.autograd.Function):
    """``(x − mean) / sqrt(variance + eps) · weight + bias`` of each sample and channel, in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        flat = x.movedim(1, -1).flatten(
            1, 3
        )  # (N, voxels, C), in the same memory where that is last
        whole = flat.float()
        mean = _mean(whole)
        centred = whole - mean
        rate = torch.rsqrt(_mean(centred * centred) + eps)
        y = torch.addcmul(bias, centred, rate * weight).to(x.dtype)
        ctx.save_for_backward(flat, weight, mean, rate)
        return y.unflatten(1, x.shape[2:]).movedim(-1, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        flat, weight, mean, rate = ctx.saved_tensors
        shape = grads[0].shape
        grad = grads[0].movedim(1, -1).flatten(1, 3).float()
        unit = (flat.float() - mean).mul_(rate)
        of_bias, of_weight = _mean(grad), _mean(grad * unit)
        down = (grad - of_bias).sub_(unit.mul_(of_weight)).mul_(rate * weight)
        voxels = flat.shape[1]
        return (
            down.to(flat.dtype).unflatten(1, shape[2:]).movedim(-1, 1),
            voxels * of_weight.sum(dim=(0, 1)),
            voxels * of_bias.sum(dim=(0, 1)),
            None,
        )


def _mean(x: Tensor) -> Tensor:
    """(N, voxels, C) float32 → (N, 1, C)."""
    with _in_full(x):
        return x.new_full((x.shape[0], 1, x.shape[1]), 1 / x.shape[1]) @ x


class Residual(nn.Module):
    """x + conv(relu(conv(relu(x)))), the second convolution starting at zero.

    With ``norm``, instance normalisation comes before each relu; only for networks that see a
    whole volume at once, since its statistics would differ from tile to tile.
    """

    def __init__(self, width: int, norm: bool = False) -> None:
        super().__init__()
        self.norm1 = ChannelNorm(width) if norm else nn.Identity()
        self.norm2 = ChannelNorm(width) if norm else nn.Identity()
        self.conv1 = nn.Conv3d(width, width, 3, padding=1)
        self.conv2 = nn.Conv3d(width, width, 3, padding=1)
        if not self.conv1.weight.is_meta:  # there, drawing would import torch's whole compiler
            nn.init.kaiming_normal_(self.conv1.weight, nonlinearity="relu")
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv1.bias)  # type: ignore[arg-type]
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.conv1(F.relu(self.norm1(x)))
        return x + self.conv2(F.relu(self.norm2(x1)))


class HalfUNet(nn.Module):
    """A U-Net whose finest features are at half resolution; input sizes are multiples of 8.

    ``width`` channels at 1/2, twice that at 1/4, four times at 1/8; ``norm`` as in
    :class:`Residual`.
    """

    def __init__(
        self, in_channels: int, out_channels: int, width: int, blocks: int = 1, norm: bool = False
    ) -> None:
        super().__init__()
        w1, w2, w3 = width, 2 * width, 4 * width

        def stack(channels: int, count: int) -> nn.Sequential:
            return nn.Sequential(*[Residual(channels, norm) for _ in range(count)])

        self.stem = nn.Conv3d(8 * in_channels, w1, 3, padding=1)
        self.enc1 = stack(w1, blocks)
        self.down1 = nn.Conv3d(w1, w2, 2, stride=2)
        self.enc2 = stack(w2, blocks)
        self.down2 = nn.Conv3d(w2, w3, 2, stride=2)
        self.mid = stack(w3, 2)
        self.up2 = nn.ConvTranspose3d(w3, w2, 2, stride=2)
        self.dec2 = stack(w2, blocks)
        self.up1 = nn.ConvTranspose3d(w2, w1, 2, stride=2)
        self.dec1 = stack(w1, blocks)
        self.head = nn.Conv3d(w1, 8 * out_channels, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:  # x          (N, C, D, H, W)
        a = self.enc1(self.stem(unshuffle(x)))  #             (N, w, D/2, …)
        b = self.enc2(self.down1(a))  #                       (N, 2w, D/4, …)
        c = self.mid(self.down2(b))  #                        (N, 4w, D/8, …)
        b = self.dec2(b + self.up2(c))  #                     (N, 2w, D/4, …)
        a = self.dec1(a + self.up1(b))  #                     (N, w, D/2, …)
        return shuffle(self.head(F.relu(a)))  #               (N, out, D, H, W)


class CompactBMEX(nn.Module):
    """Tissue classification, then tissue-aware enhancement.

    ``forward`` takes template units, (N, 1, D, H, W) with sizes that are multiples of 8, and
    returns the tissue scores (N, classes, D, H, W) before softmax and the enhanced image (N, 1, D, H, W)
    in template units.  ``tissue_width=0`` leaves the tissue module out (the paper's ablation); its
    scores are zero.
    """

    def __init__(
        self, width: int = 32, tissue_width: int = 16, blocks: int = 1, classes: int = 4
    ) -> None:
        super().__init__()
        self.classes = classes
        self.tissue = HalfUNet(2, classes, tissue_width) if tissue_width else None
        self.enhance = HalfUNet(2 + (classes if tissue_width else 0), 1, width, blocks)

    def _scores(self, scaled: Tensor) -> Tensor:
        if self.tissue is None:
            return scaled.new_zeros((scaled.shape[0], self.classes, *scaled.shape[2:]))
        scores: Tensor = self.tissue(scaled)
        return scores

    def classify(self, x: Tensor) -> Tensor:
        """The tissue scores alone, as :meth:`forward` returns them."""
        return self._scores(split(x))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scaled = split(x)
        scores = self._scores(scaled)
        if self.tissue is None:
            correction = self.enhance(scaled)
        else:
            tissues = torch.softmax(scores, dim=1)
            correction = self.enhance(torch.cat([scaled, tissues], dim=1))
        return scores, x + correction * DETAIL


class Members(nn.Module):
    """Networks of one kind, trained apart, that share the mirror images of a brain.

    What is averaged over mirror images is so averaged over networks too, at no further cost: their errors
    differ more than those of one network.  Each runs by itself, see :func:`whose_turn`.
    """

    def __init__(self, members: Iterable[CompactBMEX]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)


def whose_turn(network: nn.Module, flips: int) -> nn.Module:
    """The network for a mirror image that is flipped along so many axes."""
    if not isinstance(network, Members):
        return network
    return network.members[flips % len(network.members)]


def build_enhancer(state: State) -> nn.Module:
    """The network of a file; of a file with several, ``members.0.…``, all of them."""
    count = len({name.split(".")[1] for name in state if name.startswith("members.")})
    if not count:
        return _one_enhancer(state)
    prefixes = [f"members.{k}." for k in range(count)]
    return Members(
        _one_enhancer(
            {n.removeprefix(p): tensor for n, tensor in state.items() if n.startswith(p)}
        )
        for p in prefixes
    )


def _one_enhancer(state: State) -> CompactBMEX:
    width = channels(state, "enhance.stem.weight")
    blocks = sum(key.startswith("enhance.enc1.") and key.endswith("conv1.weight") for key in state)
    if "tissue.stem.weight" not in state:
        return CompactBMEX(width, 0, blocks)
    classes = channels(state, "tissue.head.weight") // 8
    return CompactBMEX(width, channels(state, "tissue.stem.weight"), blocks, classes)


def build_stripper(state: State) -> HalfUNet:
    """The stripping network of a file."""
    return HalfUNet(
        1,
        1,
        channels(state, "stem.weight"),
        blocks=sum(name.startswith("enc1.") and name.endswith("conv1.weight") for name in state),
        norm="mid.0.norm1.weight" in state,
    )
