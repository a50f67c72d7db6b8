# SPDX-License-Identifier: Apache-2.0
"""Train the stripping network (``bmex-train strip``)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from bmex_bids.exceptions import UsageError
from bmex_bids.network.inference.headgrid import GRID_MM, window
from bmex_bids.network.inference.stripper import View, first_view, on_grid, second_view, seen
from bmex_bids.network.inference.tiling import network_order
from bmex_bids.network.models.compact import HalfUNet
from bmex_bids.training.growth import start
from bmex_bids.training.heads import RealHead, as_it_is, head_files, load_real_head, scan_real
from bmex_bids.training.images import TRAINING_MAPS, VALIDATION_MAPS
from bmex_bids.training.loop import Schedule, export_half, fit
from bmex_bids.training.oddities import odd
from bmex_bids.training.synthesis import Array, HeadMap, load_head, scan

ZOOM, SHIFT = 0.06, 3  # a second look is off by up to this share of its size and so many voxels

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class StripConfig:
    """Everything that decides the weights, besides the data."""

    width: int = 16
    blocks: int = 2  # residual blocks a level
    chunk: int = 8  # looks a chunk, two at each head
    start_from: Path | None = None  # weights to begin with, of a network no larger than this
    heads: Path | None = None  # folder of real heads, NAME.nii.gz
    masks: Path | None = None  # folder of their brain masks, NAME_*.nii.gz
    real: float = 0.6  # share of real heads, where there are any
    schedule: Schedule = field(
        default_factory=lambda: Schedule(
            steps=3300,
            batch=2,
            rate=1.5e-3,
            warmup=60,
            final_rate=0.01,
            average=0.995,
            validate_every=250,
        )
    )

    def __post_init__(self) -> None:
        if self.chunk < 2 or self.chunk % 2:
            raise UsageError(
                f"expected an even chunk, two looks at each head, got {self.chunk}; use 2 or 8"
            )
        if (self.heads is None) is not (self.masks is None):
            raise UsageError("expected --heads and --masks together; give both, or neither")


class HeadChunks(Dataset[tuple[Tensor, Tensor]]):
    """Chunk ``i`` → looks at heads (n, 1, Z, X, Y) and their brains; a function of (seed, i).

    Where there are ``real`` heads, they are a ``share`` of all, and heads of both kinds are odd now
    and then (:mod:`bmex_bids.training.oddities`).
    """

    def __init__(
        self,
        heads: Sequence[HeadMap],
        *,
        seed: int,
        chunks: int,
        size: int = 4,
        real: Sequence[RealHead] = (),
        share: float = 0.0,
    ) -> None:
        self.heads, self.seed, self.chunks, self.size = heads, seed, chunks, size
        self.real, self.share = real, share

    def __len__(self) -> int:
        return self.chunks

    @property
    def samples(self) -> int:
        """Looks in a chunk."""
        return self.size

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng([self.seed, index])
        first, second = [], []
        for _ in range(self.size // 2):
            a, b = looks(*self._scan(rng), rng)
            first.append(a)
            second.append(b)
        images, brains = zip(*first, *second, strict=True)  # a batch is of different heads
        return torch.stack(images), torch.stack(brains)

    def _scan(self, rng: np.random.Generator) -> tuple[Array, Array, float]:
        if self.real and rng.random() < self.share:
            image, brain, spacing = scan_real(self.real[int(rng.integers(len(self.real)))], rng)
        else:
            image, brain, spacing = scan(self.heads[int(rng.integers(len(self.heads)))], rng)
        if self.real:
            image, brain = odd(image, brain, spacing, rng)
        return image, brain, spacing


def looks(
    image: Array, brain: Array, spacing_mm: float, rng: np.random.Generator
) -> list[tuple[Tensor, Tensor]]:
    """Both looks of the network at a head, as in :func:`~bmex_bids.network.inference.stripper.brain_probability`.

    The second is a little off, as if the first had not been quite right; a head whose brain lies
    outside the field of view is looked at twice in the same way.

    Returns
    -------
    (1, Z, X, Y) image and brain of each look
    """
    volumes = torch.from_numpy(image), torch.from_numpy(brain)
    coarse = [on_grid(volume, spacing_mm, GRID_MM) for volume in volumes]
    begin = first_view(coarse[0])
    again = second_view(
        coarse[1] - 0.5,
        zoom=float(rng.uniform(1 - ZOOM, 1 + ZOOM)),
        shift=tuple(int(k) for k in rng.integers(-SHIFT, SHIFT + 1, 3)),
    )
    first = _look(coarse[0], coarse[1], begin)
    if again is None:
        return [first, first]
    head, truth = (on_grid(volume, spacing_mm, again.spacing_mm) for volume in volumes)
    return [first, _look(head, truth, again)]


def _look(head: Tensor, truth: Tensor, view: View) -> tuple[Tensor, Tensor]:
    """What the network gets and where the brain is in it, in its order of axes."""
    image, brain = (
        network_order(part)[None].contiguous()
        for part in (seen(head, view), window(truth, view.first, 0.0))
    )
    return image, brain


def loss_of(logits: Tensor, brain: Tensor) -> Tensor:
    """Soft Dice loss plus cross-entropy against the fraction of brain."""
    logits = logits.float()  # sums over a head would be rough in half precision
    probability = torch.sigmoid(logits)
    each = tuple(range(1, logits.ndim))  # a small head counts as much as a large one
    total = (probability.sum(each) + brain.sum(each)).clamp_min(1)
    overlap = 2 * (probability * brain).sum(each) / total
    return (1 - overlap.mean()) + F.binary_cross_entropy_with_logits(logits, brain)


def soft_dice(logits: Tensor, brain: Tensor) -> float:
    """Dice of the two thresholded at one half."""
    a, b = logits > 0, brain > 0.5
    return float(2 * (a & b).sum() / (a.sum() + b.sum()).clamp_min(1))


class Validation:
    """Dice on fixed heads that never train: from label maps, and real ones in their own contrast."""

    def __init__(
        self,
        heads: Sequence[HeadMap],
        *,
        contrasts: int = 4,
        seed: int = 17,
        real: Sequence[RealHead] = (),
    ) -> None:
        rng = np.random.default_rng(seed)
        self.samples = [
            pair
            for head in heads
            for _ in range(contrasts)
            for pair in looks(*scan(head, rng), rng)
        ]
        self.real = [pair for head in real for pair in looks(*as_it_is(head), rng)]

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> dict[str, float]:
        device = next(model.parameters()).device
        model.eval()
        dice, real = (
            [soft_dice(model(x[None].to(device))[0].cpu(), y) for x, y in samples]
            for samples in (self.samples, self.real)
        )
        model.train()
        figures = {"Dice": float(np.mean(dice)), "worst": float(np.min(dice))}
        return figures | ({"real": float(np.mean(real))} if real else {})


def label_map_paths(data_dir: Path, names: Sequence[str]) -> list[Path]:
    """Files of label maps; absent ones are a UsageError that names the first."""
    missing = [name for name in names if not (data_dir / name).exists()]
    if missing:
        raise UsageError(
            f"expected label maps in {data_dir}, but {len(missing)} are missing "
            f"(first: {missing[0]}); give their folder with --data"
        )
    return [data_dir / name for name in names]


def label_maps(data_dir: Path, names: Sequence[str]) -> list[HeadMap]:
    """Read label maps, which must be there."""
    return [load_head(path) for path in label_map_paths(data_dir, names)]


def _real_heads(config: StripConfig, *, validating: bool) -> list[RealHead]:
    if config.heads is None or config.masks is None:
        return []
    files = head_files(config.heads, config.masks, validating=validating)
    return [load_real_head(head, mask) for head, mask in files]


def train(data_dir: Path, out_dir: Path, config: StripConfig, *, resume: bool = True) -> Path:
    """Train from the label maps in ``data_dir``; returns the float16 safetensors file."""
    torch.set_num_threads(config.schedule.threads)
    torch.manual_seed(config.schedule.seed)
    LOGGER.info("seed %d; reading label maps", config.schedule.seed)
    real, judges = (_real_heads(config, validating=validating) for validating in (False, True))
    chunks = HeadChunks(
        label_maps(data_dir, TRAINING_MAPS),
        seed=config.schedule.seed,
        chunks=10**6,
        size=config.chunk,
        real=real,
        share=config.real,
    )
    validation = Validation(label_maps(data_dir, VALIDATION_MAPS), real=judges)
    model = HalfUNet(1, 1, config.width, config.blocks, norm=True)
    if config.start_from is not None:
        start(model, config.start_from)
    LOGGER.info("%d parameters", sum(p.numel() for p in model.parameters()))

    def loss(network: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        image, brain = batch
        return loss_of(network(image), brain)

    average = fit(model, chunks, loss, validation, out_dir, config.schedule, resume=resume)
    return export_half(average, out_dir / "strip.safetensors")
