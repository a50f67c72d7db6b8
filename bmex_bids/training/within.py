# SPDX-License-Identifier: Apache-2.0
"""Train the network that tells what lies within thick slices (``bmex-train within``).

It learns from real images on their scanner's grid, as brains and as whole heads, whose contrast is
bent or turned round.  Any axis is cut into slices of any thickness, and the linear estimate of
:mod:`bmex_bids.refocus.thick` is what the network corrects.
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

from bmex_bids.imaging.intensity import TOP, rescale_robust
from bmex_bids.imaging.orientation import conform, load_image, voxel_sizes
from bmex_bids.network.models.within import EDGE, SLICES, WithinSlices
from bmex_bids.refocus.kspace import is_masked
from bmex_bids.refocus.thick import linear_estimate, slice_means
from bmex_bids.training.growth import begin
from bmex_bids.training.images import require
from bmex_bids.training.linear import TRAINING, Source
from bmex_bids.training.loop import Schedule, begin_run, export_half, fit
from bmex_bids.training.score import HELD
from bmex_bids.training.volumes import Chunks

LOGGER = logging.getLogger(__name__)
Array = NDArray[np.float32]
#: around, place, estimate, thickness, deviation, truth, weight
Parts = tuple[Tensor, ...]

#: voxels: slices that are drawn
THICKNESS = (1.5, 6.5)
#: shares: contrast bent, of these turned round, with gaps between slices, with noise
BENT, TURNED, GAPS, NOISY = 0.5, 0.3, 0.2, 0.25
#: of a gap: least part of the distance that a slice fills; of noise, units of a range of 1000
FILLED, NOISE = 0.75, (3.0, 20.0)
#: units: darker voxels of a head are background
BACKGROUND = 60.0
#: share of the voxels that are drawn anywhere
ANYWHERE = 0.05
#: volumes that a chunk takes voxels from; the next one exchanges one of them
WINDOW = 12
#: pictures that stay in memory
REMEMBERED = 48


@dataclass(frozen=True)
class WithinConfig:
    """Everything that decides the weights, besides the data."""

    start_from: Path | None = None  # weights to begin with
    per_volume: int = 30_000  # voxels that a chunk takes from a volume
    schedule: Schedule = field(
        default_factory=lambda: Schedule(
            steps=9000,
            batch=24_000,
            rate=2e-3,
            warmup=200,
            final_rate=0.001,
            weight_decay=1e-4,
            average=0.997,
            validate_every=600,
            threads=1,
        )
    )


@dataclass(frozen=True)
class Sliced:
    """An image in thick slices, across the last axis.

    Attributes
    ----------
    slices, estimate, truth : (X, Y, K), (X, Y, N), (X, Y, N)
    inside : (n, 3) voxels of the head
    first, thickness, deviation : as the network takes them
    """

    slices: Array
    estimate: Array
    truth: Array
    inside: NDArray[np.int64]
    first: float
    thickness: float
    deviation: float


@functools.lru_cache(maxsize=REMEMBERED)
def picture(path: Path) -> tuple[Array, tuple[float, float, float]]:
    """An image, 0…1000, on its own grid, axes LPS, and its voxel sizes in mm."""
    image = conform(load_image(path))
    data, _ = rescale_robust(np.asarray(image.dataobj, dtype=np.float32))
    x, y, z = voxel_sizes(image.affine)
    return np.clip(data, 0, 1.5 * TOP).astype(np.float32), (x, y, z)


def bent(image: Array, rng: np.random.Generator) -> Array:
    """An image, 0…1000, with another contrast, or as it is; zeros stay."""
    known = image > 0
    if rng.random() < BENT:
        power = math.exp(rng.uniform(-0.5, 0.5))
        image = np.where(known, TOP * (image / TOP) ** power, 0)
        if rng.random() < TURNED:
            image = np.where(known, np.clip(1.1 * TOP - image, 0, None), 0)
    return image.astype(np.float32)


def darkest(image: Array) -> float:
    """Value, 0…1000, that voxels of the brain or head of an image exceed."""
    return 0.0 if is_masked(torch.from_numpy(image)) else BACKGROUND


def sliced(data: Array, spacing: Sequence[float], rng: np.random.Generator) -> Sliced:
    """Cut an image into slices of a random thickness along a random axis.

    Parameters
    ----------
    data : (X, Y, Z), 0…1000; 0 outside a brain without its head
    """
    axis = int(rng.integers(3))
    truth = np.moveaxis(data, axis, -1)
    edges = [float(s) for k, s in enumerate(spacing) if k != axis] + [float(spacing[axis])]
    truth = bent(truth, rng)
    low, high = THICKNESS
    thickness = math.exp(rng.uniform(math.log(low), math.log(high)))
    first = float(rng.uniform(-0.5, thickness - 0.5))
    filled = float(rng.uniform(FILLED, 1)) if rng.random() < GAPS else 1.0
    slices = slice_means(torch.from_numpy(truth), first, thickness, filled)
    if rng.random() < NOISY:
        sigma = float(rng.uniform(*NOISE))
        grain = torch.from_numpy(rng.standard_normal(tuple(slices.shape), dtype=np.float32))
        slices = torch.where(slices > 0, (slices + sigma * grain).abs(), slices)
    head = truth > darkest(data)
    estimate = linear_estimate(slices, torch.from_numpy(head), first, thickness, edges)
    return Sliced(
        slices.numpy(),
        estimate.numpy(),
        truth,
        np.argwhere(head),
        first,
        thickness,
        max(float(estimate.numpy()[head].std()), 1e-3),
    )


def drawn(volume: Sliced, count: int, rng: np.random.Generator) -> Parts:
    """Voxels of a volume, as the network takes them, with their truth and weight."""
    anywhere = round(ANYWHERE * count)
    shape = volume.truth.shape
    voxels = np.concatenate(
        [
            volume.inside[rng.integers(len(volume.inside), size=count - anywhere)],
            np.stack([rng.integers(n, size=anywhere) for n in shape], 1),
        ]
    )
    x, y, z = voxels.T
    place = (z - volume.first) / volume.thickness
    nearest = np.clip(np.round(place), 0, volume.slices.shape[2] - 1).astype(int)
    offset = np.arange(EDGE) - EDGE // 2
    dx, dy = (grid.ravel() for grid in np.meshgrid(offset, offset, indexing="ij"))
    steps = np.arange(SLICES) - SLICES // 2
    steps = np.where((place < nearest)[:, None], steps[::-1], steps)
    around = volume.slices[
        np.clip(x[:, None, None] + dx, 0, shape[0] - 1),
        np.clip(y[:, None, None] + dy, 0, shape[1] - 1),
        np.clip(nearest[:, None] + steps, 0, volume.slices.shape[2] - 1)[:, :, None],
    ].reshape(count, SLICES, EDGE, EDGE)
    if rng.random() < 0.5:
        around = around.swapaxes(2, 3)
    flips = tuple(axis for axis in (2, 3) if rng.random() < 0.5)
    around = np.flip(around, flips).reshape(count, SLICES, EDGE * EDGE)
    estimate, truth = volume.estimate[x, y, z], volume.truth[x, y, z]
    weight = 1 / max(float(((estimate - truth) ** 2).mean()), 1.0)
    columns = (
        around,
        np.abs(place - nearest),
        estimate,
        np.full(count, volume.thickness),
        np.full(count, volume.deviation),
        truth,
        np.full(count, weight),
    )
    return tuple(torch.from_numpy(np.array(column, dtype=np.float32)) for column in columns)


class WithinChunks(Chunks[Sliced], Dataset[Parts]):
    """Chunk ``i`` → voxels of the volumes ``i … i + WINDOW − 1`` of a row, shuffled.

    Parameters
    ----------
    paths : images
    others : as :class:`~bmex_bids.training.volumes.Chunks` has them
    """

    def __init__(
        self, paths: Sequence[Path], *, seed: int, chunks: int, per_volume: int, streams: int = 1
    ) -> None:
        super().__init__(
            seed, chunks=chunks, window=WINDOW, per_volume=per_volume, streams=streams
        )
        self.paths = list(paths)

    def make(self, number: int, rng: np.random.Generator) -> Sliced:
        """The sliced image of a number in a row."""
        return sliced(*picture(self.paths[int(rng.integers(len(self.paths)))]), rng)

    def __getitem__(self, index: int) -> Parts:
        return self.mixed(index, drawn)


def loss_of(model: nn.Module, batch: Parts) -> Tensor:
    """Squared error over that of the linear estimate in the same volume."""
    *given, truth, weight = batch
    return (weight * (model(*given) - truth) ** 2).mean()


def train(data_dir: Path, out_dir: Path, config: WithinConfig, *, resume: bool = True) -> Path:
    """Train from the data in ``data_dir``; returns the float16 safetensors file of weights."""
    require(data_dir, [source.file for source in TRAINING])
    return fit_within(*with_held(data_dir), out_dir, config, resume=resume)


def real(sources: Sequence[Source]) -> list[Source]:
    """Without averages of many brains, whose detail is lost."""
    return [source for source in sources if source.group != "templates"]


def with_held(data_dir: Path) -> tuple[list[Path], list[Path]]:
    """Real images of the development data that train, and those that validate."""
    train, held = (
        [data_dir / s.file for s in real(TRAINING) if (s.name in HELD) == aside]
        for aside in (False, True)
    )
    return train, held


def fit_within(
    paths: Sequence[Path],
    held: Sequence[Path],
    out_dir: Path,
    config: WithinConfig,
    *,
    resume: bool = True,
) -> Path:
    """Train from images; returns the file of weights.

    Parameters
    ----------
    held : images that validate
    """
    schedule = config.schedule
    begin_run(schedule, paths, held)
    aside = WithinChunks(held, seed=schedule.seed + 1, chunks=1, per_volume=1)
    model = WithinSlices()
    begin(model, config.start_from)
    LOGGER.info("%d parameters", sum(p.numel() for p in model.parameters()))
    chunks = WithinChunks(
        paths,
        seed=schedule.seed,
        chunks=10**7,
        per_volume=config.per_volume,
        streams=max(schedule.workers, 1),
    )
    average = fit(
        model, chunks, loss_of, aside.left(drawn, loss_of), out_dir, schedule, resume=resume
    )
    return export_half(average, out_dir / "within.safetensors")
