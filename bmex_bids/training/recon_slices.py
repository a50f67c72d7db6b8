# SPDX-License-Identifier: Apache-2.0
"""Axial slices painted from label maps, as a scanner with several coils measures them.

Half of them have lesions.  That a slice has one is its label; where it lies only judges.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.ndimage
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from bmex_bids.common.replacing import put_in_place
from bmex_bids.recon.coils import (
    Complex,
    birdcage,
    centred_inverse,
    centred_transform,
    low_resolution,
)
from bmex_bids.recon.operators import CENTRE_SHARES, centre_lines, line_mask
from bmex_bids.training.painting import CONTRASTS, FREESURFER, draw_means, grouped, textured
from bmex_bids.training.strip import label_map_paths
from bmex_bids.training.synthesis import read_labels

LOGGER = logging.getLogger(__name__)
Array = NDArray[np.float32]
Mask = NDArray[np.bool_]

#: voxels of a slice, and mm of a voxel (low, high)
SIZE, SPACING = 192, (1.05, 1.35)
COILS = 8
#: mm between the slices of a label map that are drawn, and brain that each has, mm²
EVERY, LEAST_BRAIN = 2, 4000
#: template units of an image that become 1
UNIT = 600.0
#: share of slices with lesions; lesions in one; half axes, mm; change, share of the range
LESION_SHARE, MOST_LESIONS, HALF_AXES_MM, CHANGE = 0.5, 3, (1.5, 5.0), (0.12, 0.30)
#: more lesions in the easiest slices, and more change of brightness, as a share; no larger ones,
#: which would be learnt as other things
EASY_LESIONS, EASY_CHANGE = 12, 2.0
#: pairs are drawn up to this ease to the end: from the hardest alone, nothing is learnt
LEAST_EASE = 0.6
#: groups of tissue in which lesions lie
LESION_TISSUE = [1 + list(FREESURFER).index(name) for name in ("white", "deep")]
#: standard deviation of the noise of each coil, of a range of 1
NOISE = (0.003, 0.02)
#: share of training slices whose maps are those of the simulation; others' are estimated
TRUE_MAPS = 0.4


@dataclass(frozen=True)
class HeadSlices:
    """Slices of a label map: rows to posterior, columns to the left.

    Attributes
    ----------
    labels : (slices, rows, columns), places in ``numbers``
    numbers : FreeSurfer's numbers; the first is 0
    """

    labels: NDArray[np.uint8]
    numbers: NDArray[np.int32]


@dataclass(frozen=True)
class Painted:
    """A clean slice.

    Attributes
    ----------
    magnitude : (H, W), with a range of about 1
    lesions : (H, W)
    healthy : (H, W), the same slice without its lesions
    """

    magnitude: Array
    lesions: Mask
    healthy: Array


@dataclass(frozen=True)
class Measured:
    """A slice as it is measured.

    Attributes
    ----------
    kspace : (R, H, W), with noise, 0 where nothing was measured
    mask : (W,)
    coil_images : (R, H, W), clean
    maps : (R, H, W), of the simulation
    """

    kspace: Complex
    mask: Mask
    coil_images: Complex
    maps: Complex


def load(path: Path) -> HeadSlices:
    """Slices of a label map that show enough brain."""
    labels = read_labels(path)
    numbers = np.flatnonzero(np.bincount(labels.ravel())).astype(np.int32)
    place = np.zeros(int(numbers.max()) + 1, dtype=np.uint8)
    place[numbers] = np.arange(len(numbers))
    brain = grouped(numbers) > 0
    slices = place[labels[:, :, ::EVERY]].transpose(2, 1, 0)
    enough = brain[slices].sum((1, 2)) >= LEAST_BRAIN
    return HeadSlices(np.ascontiguousarray(slices[enough]), numbers)


def load_all(data_dir: Path, names: Sequence[str], keep: Path) -> list[HeadSlices]:
    """Slices of label maps; ``keep`` is a file that a later run reads instead."""
    if not keep.exists():
        LOGGER.info("reading %d label maps", len(names))
        heads = [load(path) for path in label_map_paths(data_dir, names)]
        tables: dict[str, NDArray[np.generic]] = {
            f"labels{k}": head.labels for k, head in enumerate(heads)
        }
        tables |= {f"numbers{k}": head.numbers for k, head in enumerate(heads)}
        temporary = keep.with_name(f"tmp-{keep.name}")
        np.savez(temporary, **tables)  # type: ignore[arg-type]
        put_in_place(temporary, keep)
    with np.load(keep) as content:
        return [
            HeadSlices(content[f"labels{k}"], content[f"numbers{k}"]) for k in range(len(names))
        ]


# ---------------------------------------------------------------- painting
def paint(
    head: HeadSlices,
    rng: np.random.Generator,
    size: int = SIZE,
    ease: float = 0.0,
    share: float = LESION_SHARE,
) -> Painted:
    """Paint a slice in a drawn contrast, position and size; some with lesions.

    Parameters
    ----------
    size : voxels on an edge
    ease : 0…1, how much stronger and more the lesions are than at 0
    share : how often there are lesions
    """
    spacing = float(rng.uniform(*SPACING))
    labels = _placed(head.labels[int(rng.integers(len(head.labels)))], spacing, size, rng)
    groups = grouped(head.numbers)
    brightness = draw_means(str(rng.choice(list(CONTRASTS))), rng)
    means = np.where(groups > 0, brightness[groups], rng.uniform(30, 700, groups.shape))
    means[head.numbers == 0] = 0
    image = textured(means.astype(np.float32)[labels][None], rng)[0]
    image = np.where(labels > 0, image, 0)
    lesions, healthy = np.zeros(labels.shape, dtype=bool), image
    if rng.random() < share:
        tissue = groups[labels]
        lesions, change = _lesions(tissue, spacing, rng, ease)
        image = image + change * float(brightness.max())
    blur = float(rng.uniform(0.4, 0.8))
    return Painted(_sharp_as(image, blur), lesions, _sharp_as(healthy, blur))


def _sharp_as(image: Array, blur: float) -> Array:
    """The image with a blur in voxels, in units of :data:`UNIT`."""
    blurred = scipy.ndimage.gaussian_filter(image, blur) / UNIT
    return np.clip(blurred, 0, None).astype(np.float32)


def _placed(
    labels: NDArray[np.uint8], spacing: float, size: int, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """The slice turned, mirrored, shifted and sampled at a spacing, from 1 mm."""
    angle = float(rng.normal(0, 0.1))
    mirror = rng.choice([-1.0, 1.0])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = spacing * turn @ np.diag([1.0, mirror])
    centre = np.array(labels.shape) / 2 + rng.uniform(-8, 8, 2)
    offset = centre - matrix @ np.array([size / 2, size / 2])
    placed: NDArray[np.uint8] = scipy.ndimage.affine_transform(
        labels, matrix, offset, (size, size), order=0
    )
    return placed


def _lesions(
    tissue: NDArray[np.uint8], spacing: float, rng: np.random.Generator, ease: float
) -> tuple[Mask, Array]:
    """Ellipses in white matter and deep grey: where they are, and their change of the range."""
    lesions, change = np.zeros(tissue.shape, dtype=bool), np.zeros(tissue.shape, dtype=np.float32)
    places = np.argwhere(np.isin(tissue, LESION_TISSUE))
    rows, columns = np.ogrid[: tissue.shape[0], : tissue.shape[1]]
    count = int(rng.integers(1, MOST_LESIONS + 1) + round(EASY_LESIONS * ease))
    for _ in range(count if len(places) else 0):
        y, x = places[int(rng.integers(len(places)))]
        axes = rng.uniform(*HALF_AXES_MM, 2) / spacing
        angle, (a, b) = rng.uniform(0, np.pi), axes
        along = (rows - y) * np.cos(angle) + (columns - x) * np.sin(angle)
        across = (columns - x) * np.cos(angle) - (rows - y) * np.sin(angle)
        inside = ((along / a) ** 2 + (across / b) ** 2 <= 1) & (tissue > 0) & ~lesions
        lesions |= inside
        strength = rng.choice([-1, 1]) * rng.uniform(*CHANGE)
        change[inside] = float(strength * (1 + EASY_CHANGE * ease))
    return lesions, change


# ---------------------------------------------------------------- measuring
def measure(magnitude: Array, acceleration: int, rng: np.random.Generator) -> Measured:
    """k-space of a slice under :data:`COILS` coils, with smooth phase and noise."""
    shape = (magnitude.shape[0], magnitude.shape[1])
    maps = birdcage(COILS, shape, rng)
    coil_images = (maps * magnitude * np.exp(1j * _phase(shape, rng))).astype(np.complex64)
    noise = rng.standard_normal((2, *maps.shape), dtype=np.float32) * rng.uniform(*NOISE)
    mask = line_mask(shape[1], acceleration, CENTRE_SHARES[acceleration], rng)
    kspace = (centred_transform(coil_images) + noise[0] + 1j * noise[1]) * mask
    return Measured(kspace.astype(np.complex64), mask, coil_images, maps)


def _phase(shape: tuple[int, int], rng: np.random.Generator) -> Array:
    """Smooth phase: a constant, a slope, and a field that bends a few times."""
    rows, columns = (np.linspace(-1, 1, n, dtype=np.float32) for n in shape)
    slope = rng.normal(0, 0.6, 2)
    field = scipy.ndimage.zoom(rng.normal(0, 1, (4, 4)), [n / 4 for n in shape], order=3)
    plane = slope[0] * rows[:, None] + slope[1] * columns
    result: Array = rng.uniform(-np.pi, np.pi) + plane + rng.uniform(0, 1) * field
    return result


class PaintedSlices(Dataset[tuple[Tensor, ...]]):
    """Chunk ``i`` → adjoint, maps, mask, target, label, lesions; a function of (seed, i).

    Parameters
    ----------
    heads : label maps
    seed, chunks, size : of the chunks; ``size`` slices in each
    shuffled : labels are drawn by lot, so nothing can be learnt from them (a control)
    voxels : on an edge
    easy : number of the chunk from which on lesions are as they are; before, they are easier to
        see, most of all in the first one
    """

    def __init__(
        self,
        heads: Sequence[HeadSlices],
        *,
        seed: int,
        chunks: int = 10**6,
        size: int = 4,
        shuffled: bool = False,
        voxels: int = SIZE,
        easy: int = 0,
    ) -> None:
        self.heads, self.seed, self.chunks, self.samples = heads, seed, chunks, size
        self.shuffled, self.voxels, self.easy = shuffled, voxels, easy

    def __len__(self) -> int:
        return self.chunks

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        rng = np.random.default_rng([self.seed, 0, index])
        ease = max(1 - index / self.easy, 0.0) if self.easy else 0.0
        columns = zip(*(self._sample(rng, ease) for _ in range(self.samples)), strict=True)
        return tuple(torch.from_numpy(np.stack(column)) for column in columns)

    def _sample(self, rng: np.random.Generator, ease: float) -> tuple[NDArray[np.generic], ...]:
        painted = self.painted(rng, ease)
        measured = measure(painted.magnitude, int(rng.choice(list(CENTRE_SHARES))), rng)
        maps = measured.maps
        if rng.random() > TRUE_MAPS:
            maps = low_resolution(measured.kspace, centre_lines(measured.mask))
        adjoint = (maps.conj() * centred_inverse(measured.kspace)).sum(0)
        target = (maps.conj() * measured.coil_images).sum(0)
        return (
            adjoint.astype(np.complex64), maps, measured.mask[None, None].astype(np.float32),
            target.astype(np.complex64), self.label(painted, rng), painted.lesions[None],
        )  # fmt: skip

    def painted(
        self, rng: np.random.Generator, ease: float, share: float = LESION_SHARE
    ) -> Painted:
        """A slice of any of the heads; ``share`` of them have lesions."""
        head = self.heads[int(rng.integers(len(self.heads)))]
        return paint(head, rng, self.voxels, ease, share)

    def label(self, painted: Painted, rng: np.random.Generator) -> NDArray[np.float32]:
        """Whether a slice has a lesion, 0 or 1."""
        known = rng.random() < 0.5 if self.shuffled else bool(painted.lesions.any())
        return np.array(known, dtype=np.float32)


class LabelledSlices(PaintedSlices):
    """Chunk ``i`` → magnitudes (n, 1, H, W) of full sampling, and labels (n,)."""

    def _sample(self, rng: np.random.Generator, ease: float) -> tuple[NDArray[np.generic], ...]:
        painted = self.painted(rng, ease)
        return _noisy(painted.magnitude[None], rng), self.label(painted, rng)


class PairedSlices(PaintedSlices):
    """Chunk ``i`` → magnitudes (n, 2, H, W) of slices with lesions and of the same without.

    Whatever else is in a slice cannot be learnt as a lesion.  ``shuffled``: in any order.
    """

    def _sample(self, rng: np.random.Generator, ease: float) -> tuple[NDArray[np.generic], ...]:
        ease = rng.uniform(0, max(ease, LEAST_EASE))
        painted = self.painted(rng, ease, 1.0)
        while not painted.lesions.any():  # no white matter in it
            painted = self.painted(rng, ease, 1.0)
        both = _noisy(np.stack([painted.magnitude, painted.healthy]), rng)
        return (both[::-1] if self.shuffled and rng.random() < 0.5 else both,)


def _noisy(magnitudes: Array, rng: np.random.Generator) -> Array:
    """Magnitudes (n, H, W) of images to which the same complex noise is added."""
    noise = rng.standard_normal((2, *magnitudes.shape[1:]), dtype=np.float32)
    noise *= np.float32(rng.uniform(*NOISE))
    noisy: Array = np.hypot(magnitudes + noise[0], noise[1]).astype(np.float32)
    return noisy
