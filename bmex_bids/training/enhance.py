# SPDX-License-Identifier: Apache-2.0
"""Train the compact enhancement network (``bmex-train enhance``)."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from bmex_bids.degrade.cells import CELLS, QUICK
from bmex_bids.exceptions import UsageError
from bmex_bids.metrics.reference import psnr
from bmex_bids.network.inference.tiling import network_order
from bmex_bids.network.models.compact import CompactBMEX
from bmex_bids.training.growth import begin
from bmex_bids.training.images import VALIDATION_IMAGES, CleanImage, prepare
from bmex_bids.training.loop import Schedule, export_half, fit
from bmex_bids.training.loss import JointLoss
from bmex_bids.training.pairs import Faults, PatchChunks, load_sources

LOGGER = logging.getLogger(__name__)

#: of what spoils the validation images: other draws than the benchmark's, so that no weights are chosen by those
FIRST_SEED = 1000


@dataclass(frozen=True)
class EnhanceConfig:
    """Everything that decides the weights, besides the data."""

    width: int = 24
    tissue_width: int = 12
    blocks: int = 1
    patch: int = 48
    start_from: Path | None = None  # weights to begin with, of a network no larger than this
    freeze_tissues: bool = False  # the tissue module stays as it began
    easy_volumes: int = 40  # with noise only, at the start
    faults: Faults = field(default_factory=Faults)  # of the volumes after them
    loss: JointLoss = field(default_factory=JointLoss)
    schedule: Schedule = field(
        default_factory=lambda: Schedule(
            steps=2400, batch=2, rate=1.5e-3, warmup=50, average=0.99, validate_every=100
        )
    )


def psnr_inside(image: np.ndarray, reference: np.ndarray, mask: np.ndarray) -> float:
    """PSNR inside the mask in dB, of images of 0…1000; at most 180, also for equal images."""
    return min(psnr(image, reference, mask, 1000.0), 180.0)


def validation_boxes(mask: np.ndarray, patch: int) -> list[tuple[slice, slice, slice]]:
    """Two boxes near the middle of a brain's array, three where the cortex is: a side and both poles.

    A network that was right in the middle (a clean image kept at 55 dB) was wrong at the cortex (37 dB),
    and one that was right at the side brightened the frontal pole by a quarter.
    """
    middle, room = np.array(mask.shape) // 2, np.array(mask.shape) - patch
    starts = [middle - patch // 2 + [shift, shift, 0] for shift in (-16, 24)]
    for axis, end in ((0, 0), (1, 0), (1, -1)):
        planes = np.flatnonzero(mask.any(axis=tuple(k for k in range(3) if k != axis)))
        start = middle - patch // 2
        start[axis] = planes[0] if end == 0 else planes[-1] + 1 - patch
        starts.append(start)
    corners = [np.clip(start, 0, room) for start in starts]
    return [
        (slice(x, x + patch), slice(y, y + patch), slice(z, z + patch))
        for x, y, z in (map(int, corner) for corner in corners)
    ]


class Validation:
    """PSNR gain in each cell on a few patches of images never trained on."""

    def __init__(self, images: list[CleanImage], *, patch: int = 64) -> None:
        self.samples: list[tuple[str, np.ndarray, np.ndarray, np.ndarray]] = []
        for seed, clean in enumerate(images, start=FIRST_SEED):
            places = validation_boxes(clean.mask, patch)
            for cell in QUICK:
                bad = CELLS[cell].recipe(seed).apply(clean.data, clean.spacing)
                bad = np.where(clean.mask, np.clip(bad, 0, None), 0).astype(np.float32)
                for box in places:
                    part = [network_order(v[box]) for v in (bad, clean.data, clean.mask)]
                    self.samples.append((cell, part[0], part[1], part[2]))

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Mean gain in dB by cell; for ``clean`` the PSNR of the output against the input."""
        device = next(model.parameters()).device
        gains: dict[str, list[float]] = {cell: [] for cell in QUICK}
        model.eval()
        for cell, bad, clean, mask in self.samples:
            _, image = model(torch.from_numpy(np.ascontiguousarray(bad))[None, None].to(device))
            after = psnr_inside(image[0, 0].cpu().numpy(), clean, mask)
            before = 0.0 if cell == "clean" else psnr_inside(bad, clean, mask)
            gains[cell].append(after - before)
        model.train()
        return {cell: float(np.mean(values)) for cell, values in gains.items()}


def freeze_tissues(model: CompactBMEX, config: EnhanceConfig) -> None:
    """Keep the tissue module as it is, while the enhancement learns from what it says.

    UsageError where there is none, or where it has not learnt anything.
    """
    if model.tissue is None or config.start_from is None:
        raise UsageError(
            "expected a trained tissue module to be kept, got "
            + ("none" if model.tissue is None else "one without weights")
            + "; freeze_tissues needs start_from, and a tissue_width above 0"
        )
    model.tissue.requires_grad_(False)


def train(data_dir: Path, out_dir: Path, config: EnhanceConfig, *, resume: bool = True) -> Path:
    """Train from the data in ``data_dir``; returns the float16 safetensors file of weights."""
    torch.set_num_threads(config.schedule.threads)
    torch.manual_seed(config.schedule.seed)
    LOGGER.info("seed %d; preparing images", config.schedule.seed)
    sources = load_sources(data_dir)
    held_out = [
        prepare(data_dir / name, group, contrast) for name, group, contrast in VALIDATION_IMAGES
    ]
    validation = Validation(held_out)
    model = CompactBMEX(config.width, config.tissue_width, config.blocks)
    begin(model, config.start_from)
    if config.freeze_tissues:
        freeze_tissues(model, config)
    LOGGER.info(
        "%d parameters train", sum(p.numel() for p in model.parameters() if p.requires_grad)
    )
    chunks = PatchChunks(
        sources,
        seed=config.schedule.seed,
        chunks=10**6,
        patch=config.patch,
        easy_volumes=config.easy_volumes,
        faults=config.faults,
        streams=config.schedule.workers,
    )

    def loss(network: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        bad, clean, mask, labels = batch
        scores, image = network(bad)
        return config.loss(scores, image, bad, clean, mask, labels)

    average = fit(model, chunks, loss, validation, out_dir, config.schedule, resume=resume)
    return export_half(average, out_dir / "enhance.safetensors")
