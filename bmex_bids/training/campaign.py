# SPDX-License-Identifier: Apache-2.0
"""Train the network over slices from nothing, in the time there is (``bmex-train campaign``).

One network learns the correction, how large its error is, and the tissues.  Worker processes
degrade volumes ahead of it, so that a GPU is fed by all cores.  The learning rate falls over the minutes
that are given, whatever the machine does in them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

from bmex_bids.degrade.cells import CELLS, QUICK
from bmex_bids.exceptions import UsageError
from bmex_bids.network.models.slices import (
    CORRECTION_UNIT,
    MULTIPLE,
    NEIGHBOURS,
    TISSUES,
    VARIANCE_UNIT,
    SliceUNet,
    features,
)
from bmex_bids.training.growth import begin
from bmex_bids.training.images import CleanImage
from bmex_bids.training.linear import SHARES, VALIDATION, Collection, collect, read
from bmex_bids.training.loop import Schedule, export_half, fit
from bmex_bids.training.patients import Patients, read_patients
from bmex_bids.training.scans import Scan, as_scan, scan
from bmex_bids.training.volumes import Chunks

LOGGER = logging.getLogger(__name__)
Parts = tuple[Tensor, Tensor, Tensor, Tensor]

#: columns of a slice that a step sees; all of its rows, along which ghosts are displaced
COLUMNS = 96
#: volumes that a chunk takes slices from; the next chunk exchanges one of them
WINDOW = 12
#: slices at either end of a volume that are not drawn
ENDS = 8
#: brain voxels that the middle slice must have to be drawn
LEAST_BRAIN = 1000
#: the unit of errors in the loss, of a brain mean of 400
ERROR_UNIT = 100.0
#: a slice weighs by 1 / (its damage + this), in the loss's unit: small faults are worth mending too
LEAST_DAMAGE = 0.12
UNKNOWN = -100


@dataclass(frozen=True)
class CampaignConfig:
    """Everything that decides the weights, besides the data."""

    start_from: Path | None = None  # weights to begin with
    groups: tuple[str, ...] = tuple(SHARES)  # of the images that train
    tissue_share: float = 0.05  # of the loss
    variance_share: float = 0.02
    lesions: str = "none"  # "data": in the images; "label": and a class of their own
    lesion_share: float = 0.3  # of the volumes that have some
    lesion_weight: float = 5.0  # of a lesion's voxel in the loss of the classes
    schedule: Schedule = field(
        default_factory=lambda: Schedule(
            steps=10**6,
            batch=8,
            rate=1e-3,
            warmup=100,
            final_rate=0.002,
            weight_decay=0.01,
            average=0.998,
            minutes=180.0,
            timed=True,
            validate_every=1000,
            threads=1,
            precision="bfloat16",
        )
    )


class SliceChunks(Chunks[Scan], Dataset[Parts]):
    """Chunk ``i`` → shuffled slices of the volumes ``i … i + WINDOW − 1`` of a row.

    Each is a tuple of (n, NEIGHBOURS, H, COLUMNS) degraded slices and mask, (n, H, COLUMNS) clean
    middle slice and labels.  H is the same in a chunk.  Volumes are functions of the seed and their
    number; each worker has a row of its own (``streams``).
    """

    def __init__(
        self,
        sources: Collection,
        *,
        seed: int,
        chunks: int,
        per_volume: int,
        streams: int = 1,
        patients: Patients | None = None,
    ) -> None:
        super().__init__(
            seed, chunks=chunks, window=WINDOW, per_volume=per_volume, streams=streams
        )
        self.sources, self.patients = sources, patients

    def make(self, number: int, rng: np.random.Generator) -> Scan:
        """The degraded volume of a number in a row."""
        return scan(*self.sources.pick(rng), rng, self.patients)

    def __getitem__(self, index: int) -> Parts:
        slabs = self.shuffled(index, lambda volume, rng: draw_slabs(volume, self.per_volume, rng))
        return stacked(slabs, COLUMNS)


Slab = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], NDArray[np.uint8]]


def draw_slabs(volume: Scan, count: int, rng: np.random.Generator) -> list[Slab]:
    """Slabs of :data:`NEIGHBOURS` slices across one of the two axes that are not encoded by phase."""
    slabs: list[Slab] = []
    for tried in range(20 * count):
        if len(slabs) == count:
            break
        axis = int(rng.integers(1, 3))
        length = volume.mask.shape[axis]
        ends = min(ENDS, (length - 1) // 2)
        found = slab(volume, axis, int(rng.integers(ends, length - ends)), rng)
        if found[1][NEIGHBOURS // 2].sum() >= LEAST_BRAIN or tried >= 19 * count:
            slabs.append(found)
    return slabs


def slab(volume: Scan, axis: int, middle: int, rng: np.random.Generator | None = None) -> Slab:
    """Slices about one, and the truth of that one; columns are cut where a generator draws them.

    Returns
    -------
    degraded, mask : (NEIGHBOURS, H, W); clean, labels : (H, W)
    """
    numbers = np.arange(middle - NEIGHBOURS // 2, middle + NEIGHBOURS // 2 + 1)
    numbers = np.clip(numbers, 0, volume.mask.shape[axis] - 1)
    bad, mask = (
        np.moveaxis(np.take(v, numbers, axis), axis, 0).astype(np.float32)
        for v in (volume.bad, volume.mask)
    )
    clean, labels = (np.take(v, middle, axis) for v in (volume.clean, volume.labels))
    width = mask.shape[2]
    if rng is not None and width > COLUMNS:
        begin = int(rng.integers(0, width - COLUMNS + 1))
        bad, mask, clean, labels = (
            v[..., begin : begin + COLUMNS] for v in (bad, mask, clean, labels)
        )
    clean = clean.astype(np.float32)
    if rng is None:
        return bad, mask, clean, labels
    return _flipped(bad, mask, clean, labels, rng)


def _flipped(
    bad: NDArray[np.float32],
    mask: NDArray[np.float32],
    clean: NDArray[np.float32],
    labels: NDArray[np.uint8],
    rng: np.random.Generator,
) -> Slab:
    """A slab mirrored along any of its axes, and a little brighter or darker."""
    order, rows, columns = (-1 if rng.random() < 0.5 else 1 for _ in range(3))
    gain = np.float32(np.exp(rng.normal(0, 0.07)))
    within = (slice(None, None, rows), slice(None, None, columns))
    whole = (slice(None, None, order), *within)
    return bad[whole] * gain, mask[whole], clean[within] * gain, labels[within]


def stacked(slabs: Sequence[Slab], columns: int | None = None) -> Parts:
    """Slabs padded with zeros to one size, multiples of :data:`MULTIPLE`."""
    sizes = np.array([slab[1].shape[1:] for slab in slabs]).max(axis=0)
    height, width = (int(-(-n // MULTIPLE) * MULTIPLE) for n in sizes)
    width = columns or width

    def put(part: int) -> Tensor:
        pieces = []
        for one in slabs:
            v = one[part]
            room = [(0, 0)] * (v.ndim - 2) + [(0, height - v.shape[-2]), (0, width - v.shape[-1])]
            pieces.append(np.pad(v, room))
        return torch.from_numpy(np.stack(pieces))

    return put(0), put(1), put(2), put(3)


def predict(model: nn.Module, bad: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Corrected middle slice (n, H, W), log variance (n, H, W), scores (n, classes, H, W)."""
    middle = NEIGHBOURS // 2
    x = features(bad, mask).to(memory_format=torch.channels_last)
    found = model(x).float()
    corrected = bad[:, middle] + CORRECTION_UNIT * found[:, 0] * mask[:, middle]
    return corrected, found[:, 1].clamp(-8, 8), found[:, 2:]


def loss_of(model: nn.Module, batch: tuple[Tensor, ...], config: CampaignConfig) -> Tensor:
    """Absolute and squared error relative to the damage, tissues, and the error's own likelihood."""
    bad, mask, clean, labels = batch
    rows = int(mask.amax((0, 1, 3)).nonzero().max()) + 1  # a chunk is as high as its largest slice
    rows = -(-rows // MULTIPLE) * MULTIPLE
    bad, mask = bad[:, :, :rows], mask[:, :, :rows]
    clean, labels = clean[:, :rows], labels[:, :rows].long()
    image, log_variance, scores = predict(model, bad, mask)
    inside = mask[:, NEIGHBOURS // 2]
    voxels = inside.sum((1, 2)).clamp(min=2 * LEAST_BRAIN)

    def size(difference: Tensor) -> Tensor:
        d = difference / ERROR_UNIT * inside
        return (d.abs() + d * d).sum((1, 2)) / voxels

    damage = size(bad[:, NEIGHBOURS // 2] - clean)
    error = (0.6 / (damage + LEAST_DAMAGE) * size(image - clean)).mean()
    known = (labels >= 1) & (labels <= scores.shape[1])
    target = torch.where(known, labels - 1, torch.full_like(labels, UNKNOWN))
    weight = scores.new_ones(scores.shape[1])
    weight[TISSUES:] = config.lesion_weight
    tissue = F.cross_entropy(scores, target, weight, ignore_index=UNKNOWN, reduction="sum")
    tissue = tissue / known.sum().clamp(min=LEAST_BRAIN)
    square = ((image - clean).detach() / VARIANCE_UNIT) ** 2
    likelihood = 0.5 * ((-log_variance).exp() * (square + 0.01) + log_variance) * inside
    likelihood = likelihood.sum() / inside.sum().clamp(min=1)
    return error + config.tissue_share * tissue + config.variance_share * likelihood


class Validation:
    """Change of the squared error in each cell, on slices of images that never train.

    Nothing is chosen by these figures: the last averaged weights are the result.
    """

    def __init__(self, images: Sequence[CleanImage], *, slices: int = 2) -> None:
        self.samples: list[tuple[str, Parts]] = []
        for seed, clean in enumerate(images, start=200):
            for cell in QUICK:
                bad = CELLS[cell].recipe(seed).apply(clean.data, clean.spacing)
                volume = as_scan(bad, clean, axis=1)
                places = np.linspace(0.3, 0.7, slices)
                parts = [
                    slab(volume, axis, int(place * volume.mask.shape[axis]))
                    for axis in (1, 2)
                    for place in places
                ]
                self.samples.append((cell, stacked(parts)))

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Percent by cell, negative is better; PSNR in dB for a clean image."""
        device = next(model.parameters()).device
        found: dict[str, list[float]] = {cell: [] for cell in QUICK}
        model.eval()
        for cell, parts in self.samples:
            bad, mask, clean, _ = (part.to(device) for part in parts)
            image, _, _ = predict(model, bad, mask)
            middle = NEIGHBOURS // 2
            before, after = (
                float((((x - clean) ** 2) * mask[:, middle]).sum() / mask[:, middle].sum())
                for x in (bad[:, middle], image)
            )
            found[cell].append(
                10 * np.log10(1e6 / max(after, 1e-6))
                if cell == "clean"
                else 100 * (after / before - 1)
            )
        model.train()
        return {cell: float(np.mean(values)) for cell, values in found.items()}


def train(data_dir: Path, out_dir: Path, config: CampaignConfig, *, resume: bool = True) -> Path:
    """Train from the data in ``data_dir``; returns the float16 safetensors file of weights."""
    schedule = config.schedule
    torch.set_num_threads(schedule.threads)
    torch.manual_seed(schedule.seed)
    LOGGER.info("seed %d; preparing images", schedule.seed)
    kept = out_dir / "clean"
    sources = replace(collect(data_dir, kept), groups=chosen(config.groups))
    validation = Validation([read(data_dir, source, kept) for source in VALIDATION])
    patients = read_patients(data_dir, config.lesions, config.lesion_share)
    return fit_slices(sources, validation, out_dir, config, patients, resume=resume)


def chosen(groups: Sequence[str]) -> Sequence[str]:
    """The groups of images, where all of them are known and there is one; else a UsageError."""
    unknown = sorted(set(groups) - set(SHARES))
    if unknown or not groups:
        raise UsageError(
            f"expected groups among {', '.join(SHARES)}, got {', '.join(unknown) or 'none'}; "
            "correct them in the settings"
        )
    return groups


def fit_slices(
    sources: Collection,
    validation: Validation,
    out_dir: Path,
    config: CampaignConfig,
    patients: Patients | None = None,
    *,
    resume: bool = True,
) -> Path:
    """Train from images that have been read; returns the file of weights."""
    schedule = config.schedule
    model = SliceUNet(classes=TISSUES + int(patients is not None and patients.labelled))
    begin(model, config.start_from)
    LOGGER.info("%d parameters", sum(p.numel() for p in model.parameters()))
    chunks = SliceChunks(
        sources,
        seed=schedule.seed,
        chunks=10**7,
        per_volume=max(4, schedule.batch // 2),
        streams=schedule.workers,
        patients=patients,
    )
    average = fit(
        model,
        chunks,
        lambda network, batch: loss_of(network, batch, config),
        validation,
        out_dir,
        schedule,
        resume=resume,
    )
    return export_half(average, out_dir / "slices.safetensors")
