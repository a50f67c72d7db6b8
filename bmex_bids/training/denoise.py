# SPDX-License-Identifier: Apache-2.0
"""Train the network that tells the noise of an image (``bmex-train denoise``).

It learns from real images on their scanner's grid, as brains and as whole heads, whose own noise is
taken off by non-local means and whose contrast is bent or turned round.  The noise is Rician:
white, with the g-factor of a parallel reconstruction, or of a k-space that was filled up with
zeros.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

from bmex_bids.common.noise import noise_sigma
from bmex_bids.degrade.noise import Alias, parallel, rician
from bmex_bids.imaging.noise import non_local_means
from bmex_bids.network.models.denoise import WIDTHS, DenoiseNet
from bmex_bids.refocus.kspace import is_masked
from bmex_bids.training.growth import begin
from bmex_bids.training.images import require
from bmex_bids.training.linear import TRAINING
from bmex_bids.training.loop import Schedule, begin_run, export_half, fit
from bmex_bids.training.volumes import Chunks
from bmex_bids.training.within import (
    BACKGROUND,
    REMEMBERED,
    bent,
    darkest,
    picture,
    real,
    with_held,
)

LOGGER = logging.getLogger(__name__)
Array = NDArray[np.float32]
#: noisy image, noise, weight, standard deviation
Parts = tuple[Tensor, ...]

#: units of a range of 1000: standard deviation of each channel's noise
NOISE = (8.0, 110.0)
#: units: more noise is taken off an image that trains; strength of the filter, half its search
OWN, STRENGTH, SEARCH = 9.0, 0.6, 2
#: shares of volumes: with a g-factor, of these with k-space filled up
PARALLEL, FILLED = 0.45, 0.5
#: largest g-factor; least share of k-space that was read
GAIN, KEPT = 2.5, 0.75
#: share of volumes with larger voxels; times as long, along one axis and perhaps along the others
COARSE, LONG, WIDE = 0.25, (2, 5), 2
#: of the logarithm of the noise that the network is told: how wrong it may be
UNSURE = 0.1
#: least noise that the network is told, units
LEAST = 4.0
#: voxels: longest edge of what is taken of an image, edge of a patch, and what counts of it
BLOCK, PATCH, RIM = 128, 32, 4
#: share of the patches that are drawn anywhere, and weight of the background
ANYWHERE, DARK = 0.05, 0.1
#: volumes that a chunk takes patches from; the next one exchanges one of them
WINDOW = 12
#: patches of a volume that validates
VALIDATING = 24


@dataclass(frozen=True)
class DenoiseConfig:
    """Everything that decides the weights, besides the data."""

    start_from: Path | None = None  # weights to begin with
    per_volume: int = 16  # patches that a chunk takes from a volume
    schedule: Schedule = field(
        default_factory=lambda: Schedule(
            steps=20_000,
            batch=8,
            rate=1e-3,
            warmup=100,
            final_rate=0.001,
            weight_decay=1e-4,
            average=0.997,
            minutes=60.0,
            timed=True,
            validate_every=500,
            threads=1,
            precision="bfloat16",
        )
    )


@dataclass(frozen=True)
class Noisy:
    """A part of an image with noise.

    Attributes
    ----------
    image, truth : (X, Y, Z), 0…1000
    inside : (n, 3) voxels of the head
    sigma : standard deviation of the noise, as the network is told
    usual : that of the noise that was added, as a mean over the head
    masked : whether the image is zero around a brain
    """

    image: Array
    truth: Array
    inside: NDArray[np.int64]
    sigma: float
    usual: float
    masked: bool


@functools.lru_cache(maxsize=REMEMBERED)
def quiet_picture(path: Path) -> Array:
    """An image, 0…1000, on its own grid, axes LPS, with little noise."""
    image, _ = picture(path)
    sigma = noise_sigma(image, image > darkest(image))
    if sigma <= OWN:
        return image
    quiet = non_local_means(image, sigma, strength=STRENGTH, search=SEARCH)
    return np.where(image > 0, quiet, 0).astype(np.float32)


def part(size: int, rng: np.random.Generator) -> slice:
    """Voxels of an axis, :data:`BLOCK` at most, from anywhere."""
    low = int(rng.integers(max(size - BLOCK, 0) + 1))
    return slice(low, low + min(size, BLOCK))


def gain_map(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """A smooth g-factor, 1 to :data:`GAIN`."""
    top = rng.uniform(1, GAIN)
    axes = [np.linspace(-1, 1, n, dtype=np.float32) for n in shape]
    centre, width = rng.uniform(-0.5, 0.5, 3), rng.uniform(0.3, 1.0, 3)
    hill = [np.exp(-(((a - c) / w) ** 2)) for a, c, w in zip(axes, centre, width, strict=True)]
    return np.asarray(1 + (top - 1) * np.einsum("i,j,k->ijk", *hill), dtype=np.float32)


def with_noise(image: Array, sigma: float, rng: np.random.Generator) -> Array:
    """An image with Rician noise of one of the kinds."""
    if rng.random() >= PARALLEL:
        return rician(image, sigma, rng)
    kept = [1.0, 1.0, 1.0]
    if rng.random() < FILLED:
        for axis in rng.permutation(3)[: rng.integers(1, 3)]:
            kept[axis] = float(rng.uniform(KEPT, 1))
    alias = Alias(int(rng.integers(3)), int(rng.integers(1, 4)), float(rng.uniform(0, 0.5)))
    gain = gain_map(image.shape, rng)
    return parallel(image, sigma, gain, rng, alias=alias, kept=(kept[0], kept[1], kept[2]))


def coarse(image: Array, rng: np.random.Generator) -> Array:
    """An image of larger voxels: means of blocks, most often longer along one axis (slices)."""
    low, high = LONG
    sizes = np.full(3, WIDE if rng.random() < 0.5 else 1)
    sizes[rng.integers(3)] = rng.integers(low, high + 1)
    cut = image[tuple(slice(0, n // k * k) for n, k in zip(image.shape, sizes, strict=True))]
    shape = [m for n, k in zip(cut.shape, sizes, strict=True) for m in (n // k, k)]
    return cut.reshape(shape).mean(axis=(1, 3, 5))


def noisy(data: Array, rng: np.random.Generator) -> Noisy:
    """Put noise into a part of an image.

    Parameters
    ----------
    data : (X, Y, Z), 0…1000; 0 outside a brain without its head
    """
    masked, dark = is_masked(torch.from_numpy(data)), darkest(data)
    if rng.random() < COARSE:
        data = coarse(data, rng)
        data = np.pad(data, [(0, max(PATCH - n, 0)) for n in data.shape])
    data = data[tuple(part(n, rng) for n in data.shape)]
    head = data > dark
    truth = bent(data, rng)
    low, high = NOISE
    image = with_noise(truth, math.exp(rng.uniform(math.log(low), math.log(high))), rng)
    if masked:
        image = np.where(head, image, 0).astype(np.float32)
    told = noise_sigma(image, head) * math.exp(UNSURE * rng.standard_normal())
    usual = float((image - truth)[head].std()) if head.any() else 1.0
    return Noisy(image, truth, np.argwhere(head), max(told, LEAST), max(usual, 1.0), masked)


def drawn(volume: Noisy, count: int, rng: np.random.Generator) -> Parts:
    """Patches of a volume, turned and mirrored, with their noise and weight."""
    patches = []
    shape = np.array(volume.image.shape)
    for _ in range(count):
        centre = volume.inside[rng.integers(len(volume.inside))]
        if rng.random() < ANYWHERE:
            centre = rng.integers(shape)
        low = np.clip(centre - PATCH // 2 + rng.integers(-8, 9, 3), 0, shape - PATCH)
        box = tuple(slice(a, a + PATCH) for a in low)
        image, truth = volume.image[box], volume.truth[box]
        known = (
            image > 0 if volume.masked else np.where(truth > BACKGROUND, 1.0, DARK)
        ) / volume.usual**2
        both = np.stack([image, image - truth, known]).astype(np.float32)
        axes = rng.permutation(3)
        flips = tuple(1 + axis for axis in range(3) if rng.random() < 0.5)
        patches.append(np.flip(both.transpose(0, *(1 + axes)), flips).copy())
    whole = torch.from_numpy(np.stack(patches))[:, :, None]
    return whole[:, 0], whole[:, 1], whole[:, 2], torch.full((count,), volume.sigma)


class DenoiseChunks(Chunks[Noisy], Dataset[Parts]):
    """Chunk ``i`` → patches of the volumes ``i … i + WINDOW − 1`` of a row, shuffled.

    Parameters
    ----------
    paths : images
    others : as :class:`~bmex_bids.training.volumes.Chunks` has them
    """

    def __init__(
        self, paths: Sequence[Path], seed: int, per_volume: int, streams: int = 1
    ) -> None:
        super().__init__(seed, chunks=10**7, window=WINDOW, per_volume=per_volume, streams=streams)
        self.paths = list(paths)

    def make(self, number: int, rng: np.random.Generator) -> Noisy:
        """A volume with enough of a head."""
        while True:
            image = quiet_picture(self.paths[int(rng.integers(len(self.paths)))])
            if min(image.shape) < PATCH:
                continue
            made = noisy(image, rng)
            if len(made.inside) > PATCH**3 // 4:
                return made

    def __getitem__(self, index: int) -> Parts:
        return self.mixed(index, drawn)


def loss_of(model: nn.Module, batch: Parts) -> Tensor:
    """Squared error of the noise over its variance, away from the patch's faces."""
    image, noise, weight, sigma = batch
    inner = (..., *(slice(RIM, -RIM),) * 3)
    wrong = (model(image, sigma).float() - noise)[inner]
    weight = weight[inner]
    return (weight * wrong**2).sum() / (weight > 0).sum().clamp(min=1)


def train(data_dir: Path, out_dir: Path, config: DenoiseConfig, *, resume: bool = True) -> Path:
    """Train from the data in ``data_dir``; returns the float16 safetensors file of weights."""
    require(data_dir, [source.file for source in real(TRAINING)])
    return fit_denoise(*with_held(data_dir), out_dir, config, resume=resume)


def fit_denoise(
    paths: Sequence[Path],
    held: Sequence[Path],
    out_dir: Path,
    config: DenoiseConfig,
    *,
    resume: bool = True,
) -> Path:
    """Train from images, of which those ``held`` validate; returns the file of weights."""
    schedule = config.schedule
    begin_run(schedule, paths, held)
    model = DenoiseNet(WIDTHS)
    begin(model, config.start_from)
    LOGGER.info("%d parameters", sum(p.numel() for p in model.parameters()))
    chunks = DenoiseChunks(paths, schedule.seed, config.per_volume, max(schedule.workers, 1))
    aside = DenoiseChunks(held, schedule.seed + 1, config.per_volume)
    average = fit(
        model,
        chunks,
        loss_of,
        aside.left(drawn, loss_of, VALIDATING),
        out_dir,
        schedule,
        resume=resume,
    )
    return export_half(average, out_dir / "denoise.safetensors")
