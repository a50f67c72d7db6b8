# SPDX-License-Identifier: Apache-2.0
"""Train the network that halves the edges of voxels (``bmex-train super``).

It learns from real images on their scanner's grid, as brains and as whole heads, whose contrast is
bent or turned round.  Blocks of 2 × 2 × 2 voxels are averaged, and the network tells what they were.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

from bmex_bids.common.contrasts import SUFFIXES
from bmex_bids.exceptions import UsageError
from bmex_bids.network.inference.halve import spline_halves
from bmex_bids.network.models.halve import HalvedEdges, blocks, halved, windows
from bmex_bids.refocus.kspace import is_masked
from bmex_bids.training.growth import begin
from bmex_bids.training.images import require
from bmex_bids.training.linear import TRAINING
from bmex_bids.training.loop import Schedule, begin_run, export_half, fit
from bmex_bids.training.volumes import Chunks
from bmex_bids.training.within import bent, darkest, picture, real, with_held

LOGGER = logging.getLogger(__name__)
Array = NDArray[np.float32]
#: around, start, deviation, truth, weight
Parts = tuple[Tensor, ...]

#: voxels: longest edge of what is taken of an image
BLOCK = 192
#: share of the stripped images in which no coarse voxel is partly background
WHOLE = 0.5
#: volumes that a chunk takes voxels from; the next one exchanges one of them
WINDOW = 12
#: of images that are not the development data, each so-many-th validates
ASIDE = 6


@dataclass(frozen=True)
class HalveConfig:
    """Everything that decides the weights, besides the data."""

    start_from: Path | None = None  # weights to begin with
    per_volume: int = 30_000  # voxels that a chunk takes from a volume
    schedule: Schedule = field(
        default_factory=lambda: Schedule(
            steps=100_000,
            batch=3000,
            rate=6e-3,
            warmup=200,
            final_rate=0.001,
            weight_decay=1e-4,
            average=0.999,
            minutes=24.0,
            timed=True,
            validate_every=2000,
            threads=1,
        )
    )


@dataclass(frozen=True)
class Coarse:
    """An image whose blocks of 2 × 2 × 2 voxels were averaged.

    Attributes
    ----------
    image, start, truth : (X, Y, Z), (2X, 2Y, 2Z), (2X, 2Y, 2Z)
    inside : (n, 3) voxels of the head
    deviation : as the network takes it
    """

    image: Tensor
    start: Tensor
    truth: Tensor
    inside: NDArray[np.int64]
    deviation: float


def cut(size: int, rng: np.random.Generator) -> slice:
    """An even number of voxels of an axis, :data:`BLOCK` at most, from anywhere."""
    low = int(rng.integers(max(size - BLOCK, 1) + 1)) if size > 2 else 0
    return slice(low, low + min(size - low, BLOCK) // 2 * 2)


def coarse(data: Array, rng: np.random.Generator) -> Coarse:
    """Average the blocks of a part of an image.

    Parameters
    ----------
    data : (X, Y, Z), 0…1000; 0 outside a brain without its head
    """
    part = data[tuple(cut(n, rng) for n in data.shape)]
    head = torch.from_numpy(part > darkest(data))
    truth = torch.from_numpy(bent(part, rng))
    share = halved(head.float())
    inside = share > 0
    if is_masked(torch.from_numpy(data)) and rng.random() < WHOLE:
        inside = share == 1
        truth = (blocks(truth) * inside[..., None, None, None]).permute(0, 3, 1, 4, 2, 5)
        truth = truth.reshape(part.shape)
    image = halved(truth)
    return Coarse(
        image,
        spline_halves(image),
        truth,
        np.argwhere(inside.numpy()),
        max(float(image[inside].std()), 1e-3),
    )


def drawn(volume: Coarse, count: int, rng: np.random.Generator) -> Parts:
    """Voxels of a volume, as the network takes them, with their truth and weight."""
    x, y, z = torch.from_numpy(volume.inside[rng.integers(len(volume.inside), size=count)].T)
    axes = 1 + rng.permutation(3)
    flips = [axis for axis in (1, 2, 3) if rng.random() < 0.5]

    def turned(view: Tensor) -> Tensor:
        return view[x, y, z].permute(0, *axes).flip(flips).flatten(1)

    around = turned(windows(volume.image))
    start, truth = turned(blocks(volume.start)), turned(blocks(volume.truth))
    weight = 1 / max(float((start - truth).pow(2).mean()), 1.0)
    ones = torch.ones(count)
    return around, start, volume.deviation * ones, truth, weight * ones


class HalveChunks(Chunks[Coarse], Dataset[Parts]):
    """Chunk ``i`` → voxels of the volumes ``i … i + WINDOW − 1`` of a row, shuffled.

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

    def make(self, number: int, rng: np.random.Generator) -> Coarse:
        """A volume of which something is head."""
        while True:
            image, _ = picture(self.paths[int(rng.integers(len(self.paths)))])
            made = coarse(image, rng)
            if len(made.inside):
                return made

    def __getitem__(self, index: int) -> Parts:
        return self.mixed(index, drawn)


def loss_of(model: nn.Module, batch: Parts) -> Tensor:
    """Squared error over that of the spline in the same volume."""
    around, start, deviation, truth, weight = batch
    return (weight[:, None] * (model(around, start, deviation) - truth) ** 2).mean()


def images_in(data_dir: Path) -> tuple[list[Path], list[Path]]:
    """Images of a folder that train, and those that are kept aside.

    The development data, or else every image with the name of a contrast that BIDS knows: of 7 T
    images of 0.4 mm, the network learns to make these of 0.8 mm.  UsageError for fewer than two.
    """
    sources = real(TRAINING)
    if (data_dir / sources[0].file).exists():
        require(data_dir, [source.file for source in sources])
        return with_held(data_dir)
    found = sorted(
        path
        for suffix in SUFFIXES
        for path in data_dir.rglob(f"*_{suffix}.nii*")
        if path.name.endswith((".nii", ".nii.gz"))
    )
    if len(found) < 2:
        raise UsageError(
            f"expected the development data, or at least two images NAME_T1w.nii.gz (T2w, …), in "
            f"{data_dir}, got {len(found)}; give their folder with --data"
        )
    held = found[::ASIDE]
    return [path for path in found if path not in held], held


def train(data_dir: Path, out_dir: Path, config: HalveConfig, *, resume: bool = True) -> Path:
    """Train from the images in ``data_dir``; returns the float16 safetensors file of weights."""
    paths, held = images_in(data_dir)
    schedule = config.schedule
    begin_run(schedule, paths, held)
    model = HalvedEdges()
    begin(model, config.start_from)
    chunks = HalveChunks(paths, schedule.seed, config.per_volume, max(schedule.workers, 1))
    aside = HalveChunks(held, schedule.seed + 1, config.per_volume)
    average = fit(
        model, chunks, loss_of, aside.left(drawn, loss_of), out_dir, schedule, resume=resume
    )
    return export_half(average, out_dir / "super.safetensors")
