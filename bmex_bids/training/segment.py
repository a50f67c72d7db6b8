# SPDX-License-Identifier: Apache-2.0
"""Train the network that labels structures (``bmex-train segment``)."""

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

from bmex_bids.common.boxes import bounding_box
from bmex_bids.common.structures import TISSUE_OF
from bmex_bids.degrade.levels import draw
from bmex_bids.metrics.tissue import dice_by_structure
from bmex_bids.network.inference.segment import (
    half_places,
    most_probable,
    standardised,
    with_share,
)
from bmex_bids.network.models.compact import unshuffle
from bmex_bids.network.models.segment import MULTIPLE, WIDTHS, SegmentUNet
from bmex_bids.training.growth import begin
from bmex_bids.training.images import TRAINING_MAPS, VALIDATION_MAPS, require
from bmex_bids.training.loop import Schedule, export_half, fit
from bmex_bids.training.structures import (
    GRID_MM,
    KEPT_MM,
    StructureMap,
    atlas_of,
    draw_brightness,
    draw_patch,
    imagined_tissues,
    load_structure_map,
    paint_labels,
    tissues_by_brightness,
)

LOGGER = logging.getLogger(__name__)
Array = NDArray[np.float32]
Labels = NDArray[np.uint8]

#: a target whose structure is not known; tissues that are known are :data:`TISSUES_FROM` + number
UNKNOWN, TISSUES_FROM = 255, 100
#: how large brains are, of the label maps': newborns to large adults
SCALE = (0.68, 1.12)
#: how often there is no tissue map, how often one that goes by brightness alone, and each fault
WITHOUT_TISSUES, BY_BRIGHTNESS = 0.6, 0.8
FAULTS = {"clean": 0.35, "noise": 0.15, "low-resolution": 0.25, "mixed": 0.1, "motion": 0.15}
#: blocks of 2 × 2 × 2 voxels of a batch that count: all would take as long as the network
BLOCKS = 20000
#: contrasts that validate
VALIDATED = ("T1w-mature", "T2w-flat")
#: a structure of fewer voxels among these has no share in the Dice
FEWEST = 32


@dataclass(frozen=True)
class SegmentConfig:
    """Everything that decides the weights, besides the data."""

    patch: int = 112  # voxels on an edge, a multiple of 16
    chunk: int = 2  # patches a chunk
    start_from: Path | None = None  # weights to begin with
    schedule: Schedule = field(
        default_factory=lambda: Schedule(
            steps=20000, batch=1, rate=2e-3, warmup=60, final_rate=0.02, average=0.99,
            validate_every=500, precision="bfloat16",
        )
    )  # fmt: skip


Example = tuple[Tensor, Tensor, Tensor]


def example(brain: StructureMap, rng: np.random.Generator, size: int) -> Example:
    """A painted patch, as the network is fed, and its labels.

    Returns
    -------
    x (INPUTS, n, n, n), places (PLACES, n/2, n/2, n/2), labels (n, n, n) uint8
    """
    kept = brain.depth <= 10 * rng.uniform(*KEPT_MM)
    coarse = (slice(None, None, 4),) * 3
    patch = draw_patch((brain.labels > 0) & kept, rng, size, SCALE)
    volumes = torch.from_numpy(np.where(kept, brain.labels, 0).astype(np.float32))
    labels = patch.take(volumes[None], "nearest")[0].numpy().astype(np.uint8)
    levels = draw_brightness(rng)
    painted = paint_labels(labels, levels, rng)
    kind = str(rng.choice(list(FAULTS), p=list(FAULTS.values())))
    image = draw(kind, rng).apply(painted, (GRID_MM,) * 3)
    everywhere = levels[brain.labels[coarse][kept[coarse] & (brain.labels[coarse] > 0)]]
    tissues = np.zeros((3, *labels.shape), np.float32)
    if rng.random() >= WITHOUT_TISSUES:
        by_brightness = rng.random() < BY_BRIGHTNESS
        tissues = (
            tissues_by_brightness(painted, levels, rng)
            if by_brightness
            else imagined_tissues(labels, rng)
        )
    scale = rng.uniform(0.95, 1.05), rng.uniform(0.85, 1.2)
    inside = labels > 0
    seen = standardised(
        image, inside, everywhere.mean() * scale[0], (everywhere.std() + 20) * scale[1]
    )
    x = torch.from_numpy(np.concatenate([seen[None], tissues]))
    places = with_share(torch.from_numpy(patch.places), torch.from_numpy(inside))
    return x, places, torch.from_numpy(labels)


class StructureChunks(Dataset[tuple[Tensor, ...]]):
    """Chunk ``i`` → stacked examples; a function of the seed and ``i``."""

    def __init__(
        self, maps: Sequence[StructureMap], config: SegmentConfig, chunks: int = 10**6
    ) -> None:
        self.maps, self.config, self.chunks = maps, config, chunks

    def __len__(self) -> int:
        return self.chunks

    @property
    def samples(self) -> int:
        """Patches in a chunk."""
        return self.config.chunk

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        rng = np.random.default_rng([self.config.schedule.seed, index])
        made = [
            example(self.maps[int(rng.integers(len(self.maps)))], rng, self.config.patch)
            for _ in range(self.config.chunk)
        ]
        return tuple(torch.stack(parts) for parts in zip(*made, strict=True))


def loss_of(network: SegmentUNet, batch: tuple[Tensor, ...]) -> Tensor:
    """Cross-entropy and soft Dice in :data:`BLOCKS` drawn blocks with brain.

    Where only the tissue is known, the structures' probabilities are summed to tissues.

    Parameters
    ----------
    batch : as :func:`example` returns them, with a first axis; labels may be :data:`UNKNOWN`, or
        tissues counted from :data:`TISSUES_FROM`
    """
    x, places, labels = batch
    features = network.features(x, places).movedim(1, -1).flatten(0, 3)
    there = torch.nonzero(places[:, -1].flatten() > 0)[:, 0]
    chosen = there[torch.randperm(len(there), device=there.device)[:BLOCKS]]
    blocks = features[chosen].T[None, :, :, None, None]  # one long row, as the layers want it
    wanted = unshuffle(labels[:, None]).movedim(1, -1).flatten(0, 3)[chosen].long().flatten()
    scores = network.scores(blocks)[0, :, :, 0, 0].float()  # (8 · classes, blocks)
    logs = scores.unflatten(0, (-1, 8)).log_softmax(dim=0).permute(0, 2, 1).flatten(1)
    value = logs.new_zeros(())
    whole = wanted < TISSUES_FROM
    if bool(whole.any()):
        value = value + _fit(logs[:, whole], wanted[whole])
    part = (wanted > TISSUES_FROM) & (wanted != UNKNOWN)
    if bool(part.any()):
        of = torch.from_numpy(TISSUE_OF).long()
        logs = logs[:, part]
        sums = torch.stack([logs[of == tissue].logsumexp(dim=0) for tissue in range(4)])
        value = value + _fit(sums, wanted[part] - TISSUES_FROM)
    return value


def _fit(logs: Tensor, wanted: Tensor) -> Tensor:
    """Cross-entropy plus one minus the mean Dice of the classes that are there.

    Parameters
    ----------
    logs : (classes, voxels)
    wanted : (voxels,)
    """
    right = logs.gather(0, wanted[None])[0]
    count = torch.bincount(wanted, minlength=len(logs)).to(logs.dtype)
    both = torch.zeros_like(count).index_add(0, wanted, right.exp())
    dice = 2 * both / (logs.exp().sum(dim=1) + count).clamp_min(1)
    there = count >= FEWEST
    return 1 - right.mean() - (dice * there).sum() / there.sum().clamp_min(1)


Fed = tuple[Tensor, Tensor, Labels]


def painted_whole(
    brain: StructureMap, rng: np.random.Generator, *, tissues: bool, kind: str = ""
) -> Fed:
    """A whole brain, painted clean in a contrast, or in a drawn one: x, places, labels."""
    labels = np.where(brain.depth <= 60, brain.labels, 0).astype(np.uint8)
    labels = labels[bounding_box(labels > 0, 0)]
    size = labels.shape
    labels = np.pad(labels, [(0, -n % MULTIPLE) for n in labels.shape])
    inside = labels > 0
    image = paint_labels(labels, draw_brightness(rng, kind), rng)
    seen = standardised(image, inside, float(image[inside].mean()), float(image[inside].std()))
    maps = imagined_tissues(labels, rng) if tissues else np.zeros((3, *labels.shape), np.float32)
    places = torch.from_numpy(half_places(labels.shape, (0, 0, 0), size))
    x = torch.from_numpy(np.concatenate([seen[None], maps]))
    return x, with_share(places, torch.from_numpy(inside)), labels


class Validation:
    """Mean Dice of the structures on brains from label maps that never train."""

    def __init__(self, maps: Sequence[StructureMap], seed: int = 17) -> None:
        rng = np.random.default_rng(seed)
        self.brains = [
            painted_whole(brain, rng, tissues=False, kind=kind)
            for brain in maps
            for kind in VALIDATED
        ]

    def __call__(self, model: nn.Module) -> dict[str, float]:
        if not isinstance(model, SegmentUNet):
            raise TypeError(f"expected a network that segments, got {type(model).__name__}")
        each = [
            dice_by_structure(most_probable(model, x, places).cpu().numpy() * (labels > 0), labels)
            for x, places, labels in self.brains
        ]
        means = {name: float(np.mean([d[name] for d in each])) for name in each[0]}
        return {"Dice": float(np.mean(list(means.values()))), **means}


def train(data_dir: Path, out_dir: Path, config: SegmentConfig, *, resume: bool = True) -> Path:
    """Train from the label maps in ``data_dir``; returns the float16 safetensors file."""
    names = [*TRAINING_MAPS, *VALIDATION_MAPS[:2]]
    require(data_dir, names)
    torch.set_num_threads(config.schedule.threads)
    torch.manual_seed(config.schedule.seed)
    LOGGER.info("seed %d; reading label maps", config.schedule.seed)
    maps = [load_structure_map(data_dir / name) for name in names]
    chunks = StructureChunks(maps[: len(TRAINING_MAPS)], config)
    validation = Validation(maps[len(TRAINING_MAPS) :])
    model = SegmentUNet(WIDTHS)
    if config.start_from is None:
        model.atlas[0].copy_(torch.from_numpy(atlas_of(chunks.maps)))
    begin(model, config.start_from)
    LOGGER.info("%d parameters", sum(p.numel() for p in model.parameters()))

    def loss(network: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        if not isinstance(network, SegmentUNet):
            raise TypeError(f"expected a network that segments, got {type(network).__name__}")
        return loss_of(network, batch)

    average = fit(model, chunks, loss, validation, out_dir, config.schedule, resume=resume)
    return export_half(average, out_dir / "segment.safetensors")
