# SPDX-License-Identifier: Apache-2.0
"""Heads synthesised from label maps, in any contrast: training data for brain extraction.

The idea is that of SynthSeg and SynthStrip (Billot et al., Med. Image Anal. 2023; Hoopes et al.,
NeuroImage 2022): a network that has seen every contrast, resolution, field of view and size that
chance can make does not care which one a scanner made.  Heads are kept at 2 mm as the fraction of
each tissue in each voxel, so that partial volume survives, and come out on the network's grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.ndimage
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from bmex_bids.common.boxes import bounding_box
from bmex_bids.degrade.blur import thick_slices
from bmex_bids.degrade.intensity import bias_field
from bmex_bids.degrade.noise import rician
from bmex_bids.imaging.orientation import conform, load_image
from bmex_bids.network.inference.headgrid import GRID_MM, WINDOW, normalise

Array = NDArray[np.float32]

HEAD_MM = 2.0
FIELD = (108, 120, 108)  # voxels of a scan: at 2 mm the field of view of the network's WINDOW

#: FreeSurfer numbers of the tissues; what is left above zero is extra-cerebral, each label by
#: itself
TISSUES: Mapping[str, tuple[int, ...]] = {
    "cortex": (3, 42),
    "white": (2, 41, 85, 25, 57),
    "deep": (10, 49, 11, 50, 12, 51, 13, 52, 17, 53, 18, 54, 26, 58, 28, 60, 136, 137, 163, 164),
    "cerebellar-cortex": (8, 47),
    "cerebellar-white": (7, 46),
    "stem": (16,),
    "ventricles": (4, 43, 5, 44, 14, 15, 30, 31, 62, 63, 72),
    "fluid": (24,),
}
#: of the tissues of :data:`TISSUES` that are brain: 1 CSF, 2 GM, 3 WM
CLASS_OF = {
    "cortex": 2, "white": 3, "deep": 2, "cerebellar-cortex": 2, "cerebellar-white": 3, "stem": 3,
    "ventricles": 1,
}  # fmt: skip
BRAIN = tuple(name for name in TISSUES if name != "fluid")
#: plausible brightness (low, high) of tissues, 0…1; extra-cerebral tissues are drawn freely
LIKE_T1 = {
    "cortex": (0.45, 0.65), "white": (0.7, 0.95), "deep": (0.55, 0.8),
    "cerebellar-cortex": (0.45, 0.65),
    "cerebellar-white": (0.7, 0.95), "stem": (0.65, 0.9), "ventricles": (0.1, 0.3),
    "fluid": (0.08, 0.3),
}  # fmt: skip
LIKE_T2 = {
    "cortex": (0.4, 0.6), "white": (0.25, 0.45), "deep": (0.3, 0.5),
    "cerebellar-cortex": (0.4, 0.6),
    "cerebellar-white": (0.25, 0.45), "stem": (0.25, 0.45), "ventricles": (0.8, 1.0),
    "fluid": (0.75, 1.0),
}  # fmt: skip


@dataclass(frozen=True)
class HeadMap:
    """A head as tissue fractions on the 2 mm grid, axes LPS.

    fractions : (tissues, X, Y, Z) uint8, 0…255; their sum is 255 inside the head
    brain : (X, Y, Z) uint8, fraction of brain, see :func:`brain_fraction`
    """

    name: str
    tissues: tuple[str, ...]
    fractions: NDArray[np.uint8]
    brain: NDArray[np.uint8]


def tissue_lookup() -> list[int]:
    """FreeSurfer number → 1 CSF, 2 GM, 3 WM; 0 for what is no brain."""
    table = [0] * (1 + max(max(numbers) for numbers in TISSUES.values()))
    for name, tissue in CLASS_OF.items():
        for number in TISSUES[name]:
            table[number] = tissue
    return table


def brain_fraction(
    tissues: Sequence[str],
    fractions: NDArray[np.uint8],
    spacing_mm: float,
    closing_mm: float = 8.0,
    outer_mm: float = 2.0,
) -> NDArray[np.uint8]:
    """The brain as commonly meant: its tissues and ventricles, the fluid of the sulci and around it.

    The tissues are closed by ``closing_mm``; inside the closed surface, and up to ``outer_mm``
    outside it, fluid counts as brain; bone and dura never do.  (Closed by 3 mm only, the outline
    followed each sulcus: no mask that people use does, and a network that drew it smoothly seemed
    to be wrong.)

    Parameters
    ----------
    tissues, fractions : names and (tissues, X, Y, Z), 0…255
    spacing_mm : of the isotropic grid
    """
    shares = dict(zip(tissues, fractions.astype(np.float32) / 255, strict=True))
    own = np.sum([shares[name] for name in BRAIN], axis=0)
    with_fluid = np.clip(own + shares["fluid"], 0, 1)
    width = int(np.ceil(closing_mm / spacing_mm)) + 1
    padded = np.pad(own > 0.5, width)
    grown = scipy.ndimage.distance_transform_edt(~padded, sampling=spacing_mm) <= closing_mm
    closed = scipy.ndimage.distance_transform_edt(grown, sampling=spacing_mm) > closing_mm
    closed = scipy.ndimage.binary_fill_holes(closed | padded)
    near = scipy.ndimage.distance_transform_edt(~closed, sampling=spacing_mm) <= outer_mm
    inside = near[width:-width, width:-width, width:-width]
    return np.asarray(np.rint(255 * np.where(inside, with_fluid, own)), dtype=np.uint8)


def read_labels(path: Path) -> NDArray[np.int32]:
    """A label map, 1 mm, conformed to LPS, cropped to its head with a margin."""
    labels = np.rint(np.asarray(conform(load_image(path)).dataobj)).astype(np.int32)
    labels = labels[bounding_box(labels > 0, margin=4)]
    return np.pad(labels, [(0, n % 2) for n in labels.shape])


def load_head(path: Path) -> HeadMap:
    """Read a label map and turn it into fractions on the 2 mm grid."""
    labels = read_labels(path)
    known = {number for members in TISSUES.values() for number in members}
    others = sorted(set(np.unique(labels).tolist()) - known - {0})
    table = {**TISSUES, **{f"outside-{number}": (number,) for number in others}}
    fractions = np.stack([_halve(np.isin(labels, members)) for members in table.values()])
    return HeadMap(
        path.name.split(".")[0],
        tuple(table),
        fractions,
        brain_fraction(tuple(table), fractions, HEAD_MM),
    )


def _halve(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Share of each 2×2×2 block that is true, 0…255."""
    x, y, z = (n // 2 for n in mask.shape)
    blocks = mask[: 2 * x, : 2 * y, : 2 * z].reshape(x, 2, y, 2, z, 2)
    return np.asarray(np.rint(blocks.mean(axis=(1, 3, 5)) * 255), dtype=np.uint8)


def draw_brightness(tissues: tuple[str, ...], rng: np.random.Generator) -> Array:
    """One brightness a tissue: T1-like, T2-like, or anything."""
    kind = rng.choice(["any", "t1", "t2"], p=[0.4, 0.4, 0.2])
    limits = {"any": {}, "t1": LIKE_T1, "t2": LIKE_T2}[str(kind)]
    return np.array(
        [rng.uniform(*limits.get(name, (0.0, 1.0))) for name in tissues], dtype=np.float32
    )


def draw_scale(rng: np.random.Generator) -> float:
    """Size of a head against the map's: mostly an adult's, in two fifths down to a fetus's."""
    return float(rng.uniform(0.85, 1.12) if rng.random() < 0.6 else rng.uniform(0.5, 1.0))


def scan(head: HeadMap, rng: np.random.Generator) -> tuple[Array, Array, float]:
    """A head as a scanner would give it: voxels and field of view go with its size.

    Returns
    -------
    image, brain : (X, Y, Z) of :data:`FIELD`, as :func:`synthesise` returns them
    spacing_mm : of both; from 0.85 mm for a fetus to 2.9 mm
    """
    scale = draw_scale(rng)
    spacing = scale * HEAD_MM * float(rng.uniform(0.85, 1.3))
    return *synthesise(head, rng, size=FIELD, spacing_mm=spacing, scale=scale), spacing


def synthesise(
    head: HeadMap,
    rng: np.random.Generator,
    *,
    size: tuple[int, int, int] = WINDOW,
    spacing_mm: float = GRID_MM,
    scale: float | None = None,
) -> tuple[Array, Array]:
    """A head in a random contrast, pose, size and quality, and its brain.

    Parameters
    ----------
    head : the label map
    rng : decides everything
    size : (X, Y, Z) of the result, voxels; heads may reach beyond it
    spacing_mm : of the result; its field of view is ``size`` times this
    scale : of the head, against the map's; drawn where it is not given

    Returns
    -------
    image, brain : (X, Y, Z); image normalised as for the network, brain fraction 0…1
    """
    brightness = draw_brightness(head.tissues, rng)
    fractions = head.fractions.astype(np.float32) / 255
    image = np.tensordot(brightness, fractions, axes=1)
    rough = (rng.uniform(0, 0.08, len(brightness))).astype(np.float32)
    image += np.tensordot(rough, fractions, axes=1) * rng.standard_normal(
        image.shape, dtype=np.float32
    )
    image = np.clip(image, 0, None)
    if rng.random() < 0.5:
        image = scipy.ndimage.gaussian_filter(image, rng.uniform(0.1, 0.8))
    if rng.random() < 0.15:  # the rest of the head taken away, or nearly
        keep = scipy.ndimage.binary_dilation(head.brain > 0, iterations=int(rng.integers(1, 8)))
        image = image * keep
    image, brain = deform(
        image,
        head.brain.astype(np.float32) / np.float32(255),
        rng,
        Grid(size, spacing_mm),
        scale=scale,
    )
    return acquire(image, brain, rng, spacing_mm)


def acquire(
    image: Array, brain: Array, rng: np.random.Generator, spacing_mm: float
) -> tuple[Array, Array]:
    """What a scanner does to a head: field of view, coil, thick slices, contrast, noise.

    Parameters
    ----------
    image, brain : (X, Y, Z), about 0…1
    spacing_mm : of both

    Returns
    -------
    image, brain : (X, Y, Z); image normalised as for the network
    """
    coarser = GRID_MM / spacing_mm  # widths below are drawn in voxels of the coarse grid
    image, brain = _crop_view(image, brain, rng, coarser)
    if rng.random() < 0.7:
        control = rng.normal(0, rng.uniform(0.05, 0.35), (4, 4, 4))
        image = bias_field(image, control)
    if rng.random() < 0.35:
        image = thick_slices(image, int(rng.integers(3)), coarser * float(rng.uniform(1.0, 2.2)))
    image = np.clip(image, 0, None) ** np.float32(np.exp(rng.normal(0, 0.25)))
    if rng.random() < 0.8:
        image = rician(image.astype(np.float32, copy=False), float(rng.uniform(0.0, 0.08)), rng)
    return normalise(torch.from_numpy(np.ascontiguousarray(image))).numpy(), brain


@dataclass(frozen=True)
class Grid:
    """Isotropic voxels: how many on each axis, and their size."""

    size: tuple[int, int, int]
    spacing_mm: float


def deform(
    image: Array,
    brain: Array,
    rng: np.random.Generator,
    grid: Grid,
    *,
    scale: float | None = None,
    source_mm: float = HEAD_MM,
) -> tuple[Array, Array]:
    """Rotate, scale (fetus to adult), shear, shift, mirror and warp both alike.

    Parameters
    ----------
    image, brain : (X, Y, Z), voxels of ``source_mm``
    grid : of the result
    scale : of the head; drawn where it is not given
    """
    angles = np.deg2rad(rng.normal(0, 10, 3))
    scale = draw_scale(rng) if scale is None else scale
    matrix = np.diag(scale * rng.uniform(0.93, 1.07, 3))
    matrix += rng.normal(0, 0.03, (3, 3))
    for axis, angle in enumerate(angles):
        a, b = [k for k in range(3) if k != axis]
        turn = np.eye(3)
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    if rng.random() < 0.5:
        matrix[:, 0] *= -1  # the left-right axis comes first
    inverse = np.linalg.inv(matrix)
    shift = rng.normal(0, 5, 3)
    step = np.float32(grid.spacing_mm / source_mm)
    places = [
        (np.arange(n, dtype=np.float32) - (n - 1) / 2) * step - s
        for n, s in zip(grid.size, shift, strict=True)
    ]
    x, y, z = np.meshgrid(*places, indexing="ij", copy=False)
    points = np.stack([x, y, z], axis=-1) @ inverse.T.astype(np.float32)
    coarse = rng.normal(0, rng.uniform(0, 2.0), (3, 5, 5, 5)).astype(np.float32)
    warp = F.interpolate(
        torch.from_numpy(coarse)[None], size=grid.size, mode="trilinear", align_corners=True
    )[0].permute(1, 2, 3, 0)
    where = torch.from_numpy(points.astype(np.float32)) + warp
    half = torch.tensor([(n - 1) / 2 for n in image.shape])
    normal = (where / half).flip(-1)[None]  # grid_sample wants (z, y, x) in −1…1
    both = torch.from_numpy(np.stack([image, brain]))[None]
    moved = F.grid_sample(both, normal, mode="bilinear", padding_mode="zeros", align_corners=True)[
        0
    ]
    return moved[0].numpy(), moved[1].clamp(0, 1).numpy()


def _crop_view(
    image: Array, brain: Array, rng: np.random.Generator, coarser: float
) -> tuple[Array, Array]:
    """Cut the field of view: below (neck), now and then at a side; what is cut is in neither."""
    seen = np.ones(image.shape, dtype=bool)
    if rng.random() < 0.5:  # LPS: low z is inferior
        seen[:, :, : int(rng.integers(0, max(image.shape[2] // 3, 1)))] = False
    for axis in range(3):
        if rng.random() < 0.1:
            index: list[slice] = [slice(None)] * 3
            width = round(coarser * int(rng.integers(1, 8)))
            index[axis] = slice(-width, None) if rng.random() < 0.5 else slice(0, width)
            seen[tuple(index)] = False
    return image * seen, brain * seen


__all__ = [
    "BRAIN",
    "GRID_MM",
    "TISSUES",
    "HeadMap",
    "brain_fraction",
    "load_head",
    "scan",
    "synthesise",
]
