# SPDX-License-Identifier: Apache-2.0
"""Train the network that scores images without a reference (``bmex-train score``).

It learns from figures of slices of the scans that the network over slices learns from
(:mod:`.scans`), and of their clean originals.  Noise, thick slices and blur are added once
more, so that each damage is seen on each brain, and so that a smooth image is not taken for a
still one.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import scipy.ndimage
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

from bmex_bids.common.noise import noise_sigma
from bmex_bids.degrade.blur import thick_slices
from bmex_bids.degrade.levels import severity
from bmex_bids.imaging.orientation import voxel_sizes
from bmex_bids.network.inference.score import GRID_MM, LEVEL_RMS, NINETY, level
from bmex_bids.network.models.score import QUANTITIES, ScoreNet, statistics
from bmex_bids.training.growth import begin
from bmex_bids.training.images import CleanImage, require
from bmex_bids.training.linear import TRAINING, Collection, Source, collect
from bmex_bids.training.loop import Schedule, export_half, fit
from bmex_bids.training.scans import Scan, Truth, scan_with_truth
from bmex_bids.training.volumes import Chunks

LOGGER = logging.getLogger(__name__)
Array = NDArray[np.float32]
Mask = NDArray[np.bool_]
Parts = tuple[Tensor, Tensor]

#: training images that are kept aside, to choose by and to widen the intervals
HELD = (
    "sub-33_T1w", "sub-10_T1w", "ds000011_sub-02_T1w", "child3_T1w", "sub-0004_ses-V01_T1w",
    "GA28_operated_T2w",
)  # fmt: skip
#: voxels on an edge of a patch
PATCH = 128
#: slices of a plane that are drawn
SLICES = 3
#: of a patch that is drawn: brain, of the largest that there is
LEAST_BRAIN = 0.45
#: volumes that a chunk takes patches from; the next chunk exchanges one of them
WINDOW = 12
#: share of samples that are the clean original of a scan
CLEAN_SHARE = 0.22
#: noise of a clean image as it is estimated, above which the rest of a thick slice is not known
QUIET = 4.0
#: slices that are made thick: thinnest, usual and thickest, mm
THICK = (1.04, 2.9, 5.6)
#: least standard deviation of noise that is told from none
LEAST_NOISE = 1.5
#: chunks whose figures are the standard ones
STANDARD_CHUNKS = 8
#: weight of the quantities in the loss, and what makes their errors comparable
WEIGHTS, SCALES = (1.0, 0.7, 0.7), (1.0, 2.0, 2.0)


def measured_levels(clean: CleanImage, seed: int = 0) -> tuple[float, ...]:
    """Root mean squared error in the brain by one draw of each named severity."""
    found = []
    for name in ("minor", "moderate", "severe"):
        recipe = severity(name, np.random.default_rng(seed))
        change = recipe.apply(clean.data, clean.spacing) - clean.data
        found.append(float(np.sqrt((change[clean.mask] ** 2).mean())))
    return tuple(found)


@dataclass(frozen=True)
class ScoreConfig:
    """Everything that decides the weights, besides the data."""

    start_from: Path | None = None  # weights to begin with
    per_volume: int = 2  # samples that a chunk takes from a volume
    schedule: Schedule = field(
        default_factory=lambda: Schedule(
            steps=4000,
            batch=24,
            rate=3e-3,
            warmup=60,
            final_rate=0.01,
            weight_decay=0.05,
            average=0.99,
            validate_every=300,
            threads=1,
        )
    )


@dataclass(frozen=True)
class Spoiled:
    """Patches of slices of three planes, and what is known of them; NaN where it is not.

    Attributes
    ----------
    patches : [(K, H, W) image of brain mean 400, mask] of each plane
    motion : level
    noise : standard deviation, of a brain mean of 400
    resolution : mm, coarsest axis
    """

    patches: list[tuple[Array, Mask]]
    motion: float
    noise: float
    resolution: float

    @property
    def target(self) -> list[float]:
        """In the order and the scale of the network's quantities."""
        return [self.motion, math.log(self.noise), math.log(self.resolution)]


@dataclass(frozen=True)
class Known:
    """A scan with all that is known of it."""

    scan: Scan
    truth: Truth
    own_noise: float
    native_mm: float


class ScoreChunks(Chunks[Known], Dataset[Parts]):
    """Chunk ``i`` → samples of the volumes ``i … i + WINDOW − 1`` of a row, shuffled.

    (n, 3, STATISTICS) figures of patches, and targets (n, QUANTITIES).
    """

    def __init__(
        self,
        sources: Collection,
        native_mm: Mapping[str, float],
        *,
        seed: int,
        chunks: int,
        per_volume: int,
        streams: int = 1,
    ) -> None:
        super().__init__(
            seed, chunks=chunks, window=WINDOW, per_volume=per_volume, streams=streams
        )
        self.sources, self.native_mm = sources, native_mm

    def make(self, number: int, rng: np.random.Generator) -> Known:
        """The degraded volume of a number in a row."""
        group, clean = self.sources.pick(rng)
        return known_scan(group, clean, self.native_mm.get(clean.name, 1.0), rng)

    def __getitem__(self, index: int) -> Parts:
        def draw(known: Known, rng: np.random.Generator) -> list[Spoiled]:
            return [augmented(drawn_patches(known, rng), rng) for _ in range(self.per_volume)]

        return stacked(self.shuffled(index, draw))


def known_scan(group: str, clean: CleanImage, native_mm: float, rng: np.random.Generator) -> Known:
    """Degrade a clean image and note its own noise and voxel size besides."""
    scan, truth = scan_with_truth(group, clean, rng)
    own = noise_sigma(scan.clean.astype(np.float32), scan.mask)
    return Known(scan, truth, max(own, LEAST_NOISE), max(native_mm, GRID_MM))


def drawn_patches(
    known: Known, rng: np.random.Generator, *, original: bool | None = None
) -> Spoiled:
    """A patch of each plane, of the scan or of its clean original."""
    if original is None:
        original = bool(rng.random() < CLEAN_SHARE)
    volume = known.scan.clean if original else known.scan.bad
    patches = []
    for axis in range(3):
        others = tuple(k for k in range(3) if k != axis)
        area = known.scan.mask.sum(axis=others)
        places = np.flatnonzero(area >= 0.35 * area.max())
        chosen = rng.choice(places, SLICES, replace=len(places) < SLICES)
        mask = np.moveaxis(np.take(known.scan.mask, chosen, axis), axis, 0)
        row, column = _corner(mask, rng)
        cut = (slice(None), slice(row, row + PATCH), slice(column, column + PATCH))
        image = np.moveaxis(np.take(volume, chosen, axis), axis, 0)[cut].astype(np.float32)
        patches.append((np.where(mask[cut], image, 0), mask[cut]))
    truth = known.truth
    if original:
        return Spoiled(patches, 0.0, known.own_noise, known.native_mm)
    noise = math.hypot(known.own_noise, truth.noise)
    if truth.thickness_mm and known.own_noise > QUIET and truth.noise < 2 * known.own_noise:
        noise = math.nan  # averaging has taken some of it, how much is not known
    return Spoiled(
        patches,
        math.nan if truth.motion is None else level(truth.motion),
        noise,
        max(known.native_mm, truth.thickness_mm),
    )


def _corner(mask: Mask, rng: np.random.Generator) -> tuple[int, int]:
    """Where a patch begins that holds much brain of each slice; one of twelve that are tried."""
    wanted = LEAST_BRAIN * min(int(mask.sum((1, 2)).max()), PATCH**2)
    corner = (0, 0)
    for _ in range(12):
        row, column = (int(rng.integers(0, max(n - PATCH, 0) + 1)) for n in mask.shape[1:])
        corner = (row, column)
        if mask[:, row : row + PATCH, column : column + PATCH].sum((1, 2)).min() > wanted:
            break
    return corner


# ------------------------------------------------------------------ damage to patches
def augmented(sample: Spoiled, rng: np.random.Generator) -> Spoiled:
    """Contrast, thick slices, blur, noise, smoothing, brightness, narrower masks, turns."""
    quiet = sample.noise <= QUIET
    if rng.random() < 0.15:
        sample = _contrast(sample, rng)
    if quiet and sample.resolution < THICK[1] and rng.random() < 0.3:
        sample = _thick(sample, rng)
    kind = rng.random()
    if kind < 0.1 and quiet:
        sigma = float(rng.uniform(0.3, 1.3))
        width = sigma * 2.355 * GRID_MM
        sample = replace(
            sample,
            patches=[(_blurred(x, m, sigma), m) for x, m in sample.patches],
            resolution=math.hypot(sample.resolution, width),
        )
    if quiet and rng.random() < 0.38:
        sample = _noisy(sample, rng)
    if 0.1 < kind < 0.2:  # as denoising software leaves it: what is left of the motion stays
        sigma = float(rng.uniform(0.4, 1.2))
        median = bool(rng.random() < 0.5)
        smooth = [
            (scipy.ndimage.median_filter(x, (1, 3, 3)) if median else _blurred(x, m, sigma), m)
            for x, m in sample.patches
        ]
        sample = replace(sample, patches=smooth, noise=math.nan, resolution=math.nan)
    gain = math.exp(0.03 * float(rng.normal()))
    narrower = int(rng.integers(1, 3)) if rng.random() < 0.15 else 0
    patches = []
    for image, mask in sample.patches:
        if narrower:
            mask = scipy.ndimage.binary_erosion(mask, np.ones((1, 3, 3)), iterations=narrower)
        patches.append(_turned(np.where(mask, image * gain, 0).astype(np.float32), mask, rng))
    order = rng.permutation(len(patches))
    return replace(sample, patches=[patches[k] for k in order], noise=sample.noise * gain)


def _contrast(sample: Spoiled, rng: np.random.Generator) -> Spoiled:
    """Another curve of brightness, which keeps the mean; noise that is not small is not known then."""
    knots = np.array([0, 100, 200, 300, 400, 500, 600, 1200, 4000.0])
    steps = np.diff(knots) * np.exp(rng.normal(0, 0.12, len(knots) - 1))
    curve = np.concatenate([[0], np.cumsum(steps)])
    bent = [np.interp(x, knots, curve).astype(np.float32) for x, _ in sample.patches]
    pairs = list(zip(bent, sample.patches, strict=True))
    gain = sum(x[m].sum() for x, m in sample.patches) / sum(y[m].sum() for y, (_, m) in pairs)
    return replace(
        sample,
        patches=[((y * gain).astype(np.float32), m) for y, (_, m) in pairs],
        noise=sample.noise if sample.noise <= QUIET else math.nan,
    )


def _thick(sample: Spoiled, rng: np.random.Generator) -> Spoiled:
    """Slices of more voxels than one along an axis, in the two planes that hold it."""
    axis = int(rng.integers(3))
    low, usual, high = THICK
    factor = float(rng.uniform(low, high if rng.random() < 0.4 else usual) / GRID_MM)
    patches = []
    for plane, (image, mask) in enumerate(sample.patches):
        if plane != axis:
            along = [k for k in range(3) if k != plane].index(axis) + 1
            image = np.where(mask, thick_slices(image, along, factor, 3), 0).astype(np.float32)
        patches.append((image, mask))
    return replace(sample, patches=patches, resolution=max(sample.resolution, factor * GRID_MM))


def _turned(image: Array, mask: Mask, rng: np.random.Generator) -> tuple[Array, Mask]:
    flips = tuple(axis for axis in (1, 2) if rng.random() < 0.5)
    image, mask = np.flip(image, flips), np.flip(mask, flips)
    if rng.random() < 0.5:
        image, mask = image.swapaxes(1, 2), mask.swapaxes(1, 2)
    return image, mask


def _blurred(image: Array, mask: Mask, sigma: float) -> Array:
    """Gaussian smoothing within the slices and the mask."""
    over = (0, sigma, sigma)
    weight = scipy.ndimage.gaussian_filter(mask.astype(np.float32), over)
    smooth = scipy.ndimage.gaussian_filter(image, over) / np.maximum(weight, 0.05)
    return np.where(mask, smooth, 0).astype(np.float32)


def _noisy(sample: Spoiled, rng: np.random.Generator) -> Spoiled:
    """Rician or Gaussian noise, white or as smooth as resampling leaves it."""
    sigma = float(1.8 * 40.0 ** rng.random())
    white, rician = rng.random() < 0.4, rng.random() < 0.5
    factor = float(rng.uniform(1.05, 1.8))

    def grain(shape: tuple[int, ...]) -> Array:
        if white:
            return rng.standard_normal(shape, dtype=np.float32) * np.float32(sigma)
        small = [math.ceil(n / factor) + 1 for n in shape[1:]]
        x = torch.from_numpy(rng.standard_normal((shape[0], 1, *small), dtype=np.float32))
        x = F.interpolate(x, size=shape[1:], mode="bicubic", align_corners=False)[:, 0]
        return np.asarray((x * (sigma / x.std())).numpy(), dtype=np.float32)

    patches = []
    for image, mask in sample.patches:
        found = image + grain(image.shape)
        found = np.hypot(found, grain(image.shape)) if rician else np.clip(found, 0, None)
        patches.append((np.where(mask, found, 0).astype(np.float32), mask))
    return replace(sample, patches=patches, noise=math.hypot(sample.noise, sigma))


# ------------------------------------------------------------------ batches and loss
def stacked(samples: Sequence[Spoiled]) -> Parts:
    """Figures of samples, and their targets."""
    figures = [
        torch.stack(
            [
                statistics(
                    torch.from_numpy(x.copy()), torch.from_numpy(m.astype(np.float32))
                ).mean(0)
                for x, m in sample.patches
            ]
        )
        for sample in samples
    ]
    targets = torch.tensor([sample.target for sample in samples], dtype=torch.float32)
    return torch.stack(figures), targets


def loss_of(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """Absolute error and likelihood under the predicted variance, of what is known."""
    figures, targets = batch
    found = model(figures)
    mean, log_variance = found[:, 0], found[:, 1]
    known = torch.isfinite(targets)
    error = mean - torch.where(known, targets, mean.detach())
    scaled = error * error.new_tensor(SCALES)
    absolute = F.smooth_l1_loss(scaled, torch.zeros_like(error), reduction="none", beta=0.3)
    likelihood = 0.5 * ((-log_variance).exp() * error**2 + log_variance)
    each = (0.35 * likelihood + absolute) * known * error.new_tensor(WEIGHTS)
    return each.sum() / len(targets)


class Validation:
    """Errors on training images that were kept aside."""

    def __init__(self, scans: Sequence[Known], *, seed: int = 17, draws: int = 2) -> None:
        rng = np.random.default_rng(seed)
        samples = [
            drawn_patches(known, rng, original=original)
            for known in scans
            for original in (False, True)
            for _ in range(draws)
        ]
        self.parts = stacked(samples)

    @torch.no_grad()
    def found(self, model: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
        """Errors, predicted standard deviations, and whether the truth is known."""
        figures, targets = self.parts
        device = next(model.parameters()).device
        model.eval()
        answer = model(figures.to(device)).cpu()
        model.train()
        return answer[:, 0] - targets, (0.5 * answer[:, 1]).exp(), torch.isfinite(targets)

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Mean absolute error of each quantity: levels, and natural logarithms."""
        error, _, known = self.found(model)
        return {
            name: float(error[:, k][known[:, k]].abs().mean()) for k, name in enumerate(QUANTITIES)
        }

    def spread(self, model: nn.Module) -> Tensor:
        """What widens each standard deviation so that nine of ten errors lie in the interval."""
        error, deviation, known = self.found(model)
        ratio = error.abs() / deviation
        return torch.stack(
            [ratio[:, k][known[:, k]].quantile(0.9) / NINETY for k in range(len(QUANTITIES))]
        )


# ------------------------------------------------------------------ a run
def native_voxels(data_dir: Path, sources: Sequence[Source]) -> dict[str, float]:
    """The largest voxel edge of each file, mm, by the source's name."""
    found = {}
    for source in sources:
        image: Any = nib.load(data_dir / source.file)
        found[source.name] = max(voxel_sizes(image.affine))
    return found


def train(data_dir: Path, out_dir: Path, config: ScoreConfig, *, resume: bool = True) -> Path:
    """Train from the data in ``data_dir``; returns the float16 safetensors file of weights."""
    require(data_dir, [source.file for source in TRAINING])
    torch.manual_seed(config.schedule.seed)
    LOGGER.info("seed %d; preparing images", config.schedule.seed)
    whole = collect(data_dir, out_dir / "clean")
    held = replace(whole, sources=[s for s in whole.sources if s.name in HELD], maps=[])
    sources = replace(whole, sources=[s for s in whole.sources if s.name not in HELD])
    return fit_score(
        sources, held, native_voxels(data_dir, TRAINING), out_dir, config, resume=resume
    )


def fit_score(
    sources: Collection,
    held: Collection,
    native_mm: Mapping[str, float],
    out_dir: Path,
    config: ScoreConfig,
    *,
    resume: bool = True,
    held_scans: int = 36,
) -> Path:
    """Train from images that have been read; returns the file of weights.

    Parameters
    ----------
    held : images that validate
    native_mm : name of an image → its largest voxel edge
    held_scans : scans of them
    """
    schedule = config.schedule
    aside = ScoreChunks(held, native_mm, seed=schedule.seed + 1, chunks=1, per_volume=1)
    validation = Validation([aside.volume(number) for number in range(held_scans)])
    LOGGER.info(
        "error by minor, moderate and severe motion: %s; assumed %s",
        [round(v) for v in measured_levels(held.pick(np.random.default_rng(0))[1])],
        [round(v) for v in LEVEL_RMS],
    )
    model = ScoreNet()
    begin(model, config.start_from)
    LOGGER.info("%d parameters", sum(p.numel() for p in model.parameters()))
    chunks = ScoreChunks(
        sources,
        native_mm,
        seed=schedule.seed,
        chunks=10**7,
        per_volume=config.per_volume,
        streams=schedule.workers,
    )
    model.standardise(torch.cat([chunks[number][0] for number in range(STANDARD_CHUNKS)]))
    average = fit(model, chunks, loss_of, validation, out_dir, schedule, resume=resume)
    model.load_state_dict(average.state)
    average.state["spread"] = average.state["spread"] * validation.spread(model)
    return export_half(average, out_dir / "score.safetensors")
