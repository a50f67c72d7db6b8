# SPDX-License-Identifier: Apache-2.0
"""Patches of brains painted from label maps, every structure with a brightness of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.ndimage
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from bmex_bids.common.boxes import bounding_box
from bmex_bids.common.structures import STRUCTURES, TISSUE_OF, structure_labels
from bmex_bids.imaging.orientation import conform, load_image, voxel_sizes
from bmex_bids.network.models.segment import CELLS, REACH
from bmex_bids.training.painting import CONTRASTS

Array = NDArray[np.float32]

#: voxels of the network, mm
GRID_MM = 0.8
#: how bright deep grey matter and stem are, from cortex (0) to white matter (1): lowest, highest
BETWEEN = {
    "thalamus": (0.3, 0.9),
    "caudate": (-0.05, 0.4),
    "putamen": (0.05, 0.65),
    "pallidum": (0.5, 1.05),
    "hippocampus": (-0.1, 0.2),
    "amygdala": (-0.1, 0.2),
    "cerebellar_cortex": (-0.1, 0.15),
    "cerebellar_white": (0.8, 1.05),
    "brain_stem": (0.75, 1.05),
}
#: the same in T2w-like contrasts, where iron darkens them
BETWEEN_DARK = BETWEEN | {
    "thalamus": (0.2, 1.0),
    "putamen": (0.1, 1.0),
    "pallidum": (0.6, 1.8),
    "brain_stem": (0.3, 1.05),
}
#: contrasts that enhancement is not painted in, template units
MORE_CONTRASTS: dict[str, dict[str, tuple[float, float]]] = {
    "T2w-flat": {"white": (260, 360), "cortex": (330, 440), "fluid": (560, 1200)},
    "FLAIR": {"fluid": (60, 220), "white": (360, 450), "cortex": (430, 540)},
    "PDw": {"white": (400, 470), "cortex": (490, 580), "fluid": (420, 700)},
}
#: how often each contrast is drawn; structures are labelled from nine months on
SHARES = {
    "T1w-mature": 0.25, "T2w-mature": 0.1, "T2w-flat": 0.15, "FLAIR": 0.1, "PDw": 0.05,
    "T1w-newborn": 0.1, "T2w-newborn": 0.1, "T1w-isointense": 0.15,
}  # fmt: skip
#: share of brains whose structures have any brightness
ANY_CONTRAST = 0.12
#: of the outer fluid so much is kept, mm from the brain: the masks of scans end anywhere
KEPT_MM = (1.0, 14.0)
#: template units between two tissues below which brightness does not part them
LEAST_SPAN = 20.0
_NUMBERS = {structure.name: structure.number for structure in STRUCTURES}


@dataclass(frozen=True)
class StructureMap:
    """A label map on the network's grid.

    Attributes
    ----------
    labels : (X, Y, Z) 0 outside, else a structure's number; axes LPS
    depth : (X, Y, Z) distance from the brain without outer fluid, tenths of a millimetre
    """

    labels: NDArray[np.uint8]
    depth: NDArray[np.uint8]


def load_structure_map(path: Path) -> StructureMap:
    """Read a label map, group its labels, and bring them to the network's grid.

    The outlines are smoothed, so that they show no steps of the map's voxels.
    """
    image = conform(load_image(path))
    numbers = np.rint(np.asarray(image.dataobj)).astype(np.int32)
    groups = structure_labels(numbers)
    groups = np.pad(groups[bounding_box(groups > 0, 2)], 2)
    spacing = voxel_sizes(image.affine)
    size = [round(n * s / GRID_MM) for n, s in zip(groups.shape, spacing, strict=True)]
    labels, best = torch.zeros(size, dtype=torch.uint8), torch.full(size, -1.0)
    for number in range(len(STRUCTURES) + 1):
        share = _enlarged(_smoothed(torch.from_numpy((groups == number).astype(np.float32))), size)
        more = share > best
        labels[more], best[more] = number, share[more]
    far = scipy.ndimage.distance_transform_edt(groups <= 1, sampling=spacing)
    depth = _enlarged(torch.from_numpy(np.minimum(far, 25).astype(np.float32)), size)
    return StructureMap(labels.numpy(), (10 * depth).to(torch.uint8).numpy())


def _smoothed(x: Tensor) -> Tensor:
    """Weighted with 1, 2, 1 along each axis; zero in the outermost planes."""
    for axis in range(3):
        y = torch.zeros_like(x)
        n = x.shape[axis] - 2
        inner = x.narrow(axis, 1, n) / 2
        inner += (x.narrow(axis, 0, n) + x.narrow(axis, 2, n)) / 4
        y.narrow(axis, 1, n).copy_(inner)
        x = y
    return x


def _enlarged(x: Tensor, size: list[int]) -> Tensor:
    return F.interpolate(x[None, None], size=size, mode="trilinear", align_corners=False)[0, 0]


@dataclass(frozen=True)
class Patch:
    """Where a patch lies in a brain that is turned, stretched and perhaps mirrored.

    Attributes
    ----------
    size : voxels on an edge
    matrix, offset : voxel of the patch → voxel of the brain
    places : (3, n, n, n) at half the resolution: −1 and 1 at the ends of the brain's box
    """

    size: int
    matrix: NDArray[np.float64]
    offset: NDArray[np.float64]
    places: Array

    def take(self, volumes: Tensor, mode: str) -> Tensor:
        """(C, X, Y, Z) of the brain → (C, n, n, n) of the patch, zero beyond the brain."""
        size = np.array(volumes.shape[1:], float)
        n = self.size
        # torch's coordinates run from −1 to 1 over the edges, the last axis first
        matrix = self.matrix * n / size[:, None]
        centre = self.offset + self.matrix @ np.full(3, (n - 1) / 2)
        theta = np.concatenate([matrix, ((2 * centre + 1) / size - 1)[:, None]], axis=1)
        theta = np.concatenate([theta[::-1, 2::-1], theta[::-1, 3:]], axis=1).astype(np.float32)
        grid = F.affine_grid(torch.from_numpy(theta)[None], [1, 1, n, n, n], align_corners=False)
        return F.grid_sample(volumes[None], grid, mode=mode, align_corners=False)[0]


def draw_patch(
    inside: NDArray[np.bool_], rng: np.random.Generator, size: int, scale: tuple[float, float]
) -> Patch:
    """Draw a patch of (size, size, size) somewhere in a brain.

    Parameters
    ----------
    inside : (X, Y, Z) the brain
    scale : the brain is that much larger, lowest and highest
    """
    box = bounding_box(inside, 0)
    low, high = (np.array([getattr(s, end) for s in box], float) for end in ("start", "stop"))
    middle, half = (low + high - 1) / 2, (high - low) / 2
    zoom = rng.uniform(*scale) * rng.uniform(0.94, 1.06, 3)
    angles = np.deg2rad(rng.normal(0, 6, 3))
    turn = np.eye(3)
    for (a, b), angle in zip(((0, 1), (0, 2), (1, 2)), angles, strict=True):
        each = np.eye(3)
        each[[a, b], [a, b]] = np.cos(angle)
        each[a, b], each[b, a] = -np.sin(angle), np.sin(angle)
        turn = turn @ each
    matrix = turn / zoom
    room = np.maximum(half * zoom - size / 2, 0) + 6
    # of the patch, from the brain's middle, where most structures are
    begin = rng.triangular(-room, 0, room) - (size - 1) / 2
    axes = [
        (begin[k] + np.arange(0.5, size, 2)) / (half[k] * zoom[k] * rng.uniform(0.95, 1.05))
        + rng.uniform(-0.05, 0.05)
        for k in range(3)
    ]
    places = np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)
    if rng.random() < 0.5:  # mirrored in the brain; the patch's own axes keep their directions
        matrix = np.diag([-1.0, 1, 1]) @ matrix
    return Patch(size, matrix, middle + matrix @ begin, places)


def draw_brightness(rng: np.random.Generator, kind: str = "") -> Array:
    """Of no structure and of each, template units; in a contrast of :data:`SHARES`, or a drawn one."""
    drawn = not kind
    kind = kind or str(rng.choice(list(SHARES), p=list(SHARES.values())))
    limits_of = (CONTRASTS | MORE_CONTRASTS)[kind]
    fluid, cortex, white = (
        float(rng.uniform(*limits_of[name])) for name in ("fluid", "cortex", "white")
    )
    between = BETWEEN if kind.startswith("T1w") else BETWEEN_DARK
    levels = {
        "outer_fluid": fluid * rng.uniform(0.85, 1.1),
        "ventricles": fluid,
        "cortex": cortex,
        "white_matter": white,
    }
    for name, limits in between.items():
        levels[name] = cortex + (white - cortex) * rng.uniform(*limits)
    found = np.array([levels[structure.name] for structure in STRUCTURES])
    if drawn and rng.random() < ANY_CONTRAST:
        tissues = rng.uniform(80, 900, 3)[TISSUE_OF[1:] - 1]
        found = tissues * np.exp(rng.normal(0, 0.07, len(found)))
    return np.concatenate([[0], found]).astype(np.float32)


def paint_labels(labels: NDArray[np.uint8], levels: Array, rng: np.random.Generator) -> Array:
    """An image of labels: brightness, texture, partial volume; zero outside."""
    inside = labels > 0
    image = levels[labels]
    # what surrounds the brain within its mask: fluid, vessels, dura
    outer = labels == _NUMBERS["outer_fluid"]
    image[outer] *= np.exp(np.float32(rng.uniform(0, 0.4)) * rough(labels.shape, 4, rng)[outer])
    fine = rng.standard_normal(labels.shape, dtype=np.float32)
    image += float(rng.uniform(1, 8)) * fine + float(rng.uniform(4, 15)) * rough(
        labels.shape, 4, rng
    )
    blur = float(rng.uniform(0.5, 1.1))
    image = scipy.ndimage.gaussian_filter(np.where(inside, image, 0), blur, truncate=3)
    image /= np.maximum(
        scipy.ndimage.gaussian_filter(inside.astype(np.float32), blur, truncate=3), 1e-3
    )
    image *= np.exp(np.float32(rng.uniform(0, 0.12)) * rough(labels.shape, 32, rng))
    return np.where(inside, np.clip(image, 0, None), 0).astype(np.float32)


def rough(shape: tuple[int, ...], step: int, rng: np.random.Generator) -> Array:
    """A random field with a value each ``step`` voxels, linear between."""
    coarse = rng.standard_normal([n // step + 2 for n in shape], dtype=np.float32)
    return np.asarray(_enlarged(torch.from_numpy(coarse), list(shape)).numpy())


def imagined_tissues(labels: NDArray[np.uint8], rng: np.random.Generator) -> Array:
    """Probabilities of CSF, GM, WM (3, X, Y, Z) such as a tissue network may give for labels.

    Deep grey matter and stem lean to grey or to white matter: networks call much of it white.
    """
    table = np.zeros((3, len(TISSUE_OF)), np.float32)
    table[TISSUE_OF[1:] - 1, np.arange(1, len(TISSUE_OF))] = rng.uniform(1.5, 5)
    deep = [s.number for s in STRUCTURES if s.name in BETWEEN]
    table[1:, deep] += rng.normal(0, 3, (2, len(deep))).astype(np.float32)
    scores = table[:, labels]
    for each in scores:
        each += float(rng.uniform(0.2, 1.2)) * rough(labels.shape, 3, rng)
    scores = np.stack([_smoothed(torch.from_numpy(each)).numpy() for each in scores])
    found = torch.softmax(torch.from_numpy(scores), dim=0).numpy()
    return np.asarray(found * (labels > 0), dtype=np.float32)


def tissues_by_brightness(image: Array, levels: Array, rng: np.random.Generator) -> Array:
    """Probabilities of CSF, GM, WM (3, X, Y, Z) of a tissue network that goes by brightness.

    It calls the thalamus white, and in a brain of low contrast some of the cortex too.

    Parameters
    ----------
    image : (X, Y, Z) as :func:`paint_labels` returns it
    levels : as :func:`draw_brightness` returns them
    """
    fluid, grey, white = (
        float(levels[_NUMBERS[name]]) for name in ("ventricles", "cortex", "white_matter")
    )
    scores = np.zeros((3, *image.shape), np.float32)
    for tissue, level, borders in ((0, fluid, (0.35, 0.65)), (2, white, (0.05, 0.65))):
        span = level - grey if abs(level - grey) > LEAST_SPAN else LEAST_SPAN
        share = (image - grey) / np.float32(span)
        scores[tissue] = np.clip(rng.uniform(6, 14) * (share - rng.uniform(*borders)), -8, 8)
    for each in scores:
        each += float(rng.uniform(0.2, 1.0)) * rough(image.shape, 3, rng)
    found = torch.softmax(torch.from_numpy(scores), dim=0).numpy()
    return np.asarray(found * (image > 0), dtype=np.float32)


def atlas_of(brains: Sequence[StructureMap]) -> Array:
    """Log probability of each label by its place in the brain's box (classes, CELLS, CELLS, CELLS).

    Left and right are averaged; cells are blurred by one another, since brains differ.
    """
    counts = np.full((len(TISSUE_OF), CELLS, CELLS, CELLS), 0.0, np.float32)
    for brain in brains:
        for kept in KEPT_MM:
            labels = np.where(brain.depth <= 10 * kept, brain.labels, 0)
            box = bounding_box(labels > 0, 0)
            ends = [(side.start, side.stop) for side in box]
            coarse = labels[::2, ::2, ::2]
            axes = [
                (2 * np.arange(0.0, n, 2) + 1 - a - b) / (b - a)
                for n, (a, b) in zip(labels.shape, ends, strict=True)
            ]
            cells = [np.floor((axis / REACH + 1) / 2 * CELLS).astype(int) for axis in axes]
            inside = [(cell >= 0) & (cell < CELLS) for cell in cells]
            coarse = coarse[np.ix_(*inside)]
            x, y, z = np.ix_(*(cell[seen] for cell, seen in zip(cells, inside, strict=True)))
            where = ((coarse.astype(int) * CELLS + x) * CELLS + y) * CELLS + z
            counts += np.bincount(where.ravel(), minlength=counts.size).reshape(counts.shape)
    counts = scipy.ndimage.gaussian_filter(counts, (0, 0.8, 0.8, 0.8))
    counts = (counts + counts[:, ::-1]) / 2
    shares = (counts + 1e-3) / (counts + 1e-3).sum(axis=0)
    return np.asarray(np.log(np.maximum(shares, 1e-3)), dtype=np.float32)
