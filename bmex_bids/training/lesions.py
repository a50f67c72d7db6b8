# SPDX-License-Identifier: Apache-2.0
"""Lesions put into a brain: drawn shapes, and masks of real lesions.

A lesion is anatomy, so it is put in before anything is damaged.  To draw one is apart from putting
it in: a :class:`Lesion` holds plain numbers, and the same lesions give the same image.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import scipy.ndimage
import scipy.signal
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from bmex_bids.common.boxes import bounding_box
from bmex_bids.imaging.orientation import conform, load_image

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]

#: mm: the box of the MNI brain, from its centre of coordinates; left, posterior, superior positive
MNI_LOW, MNI_HIGH = (-72.0, -74.0, -71.0), (72.0, 107.0, 82.0)
#: mm between two lesions
GAP_MM = 5.0
#: share of a lesion that lies in its tissue, where there is such a place; where there is less, the
#: lesion is left out
INSIDE, LEAST_INSIDE = 0.8, 0.5
#: mm that a real lesion may be moved to lie in its tissue
NUDGE_MM = 8.0
#: how uneven a drawn surface is, share of the radius; how long its axes are, standard deviation of
#: the logarithm
UNEVEN, OBLONG = 0.25, 0.15
#: voxels: standard deviation of the Gaussian that rounds the steps of a mask
SMOOTH = 0.7
#: voxels of the smallest real lesion
SMALLEST = 8


@dataclass(frozen=True)
class Lesion:
    """One lesion.

    Attributes
    ----------
    centre : voxels
    size_mm : diameter of the ball that has its volume
    contrast : change of intensity in its core, share of what was there: −0.2 is 20 % darker
    edge_mm : standard deviation of the Gaussian that softens its border
    seed : of a drawn shape
    source : name of a real mask's part; empty: it is drawn
    """

    centre: tuple[int, int, int]
    size_mm: float
    contrast: float
    edge_mm: float
    seed: int = 0
    source: str = ""


def as_json(lesions: Sequence[Lesion]) -> str:
    """The lesions as a JSON list."""
    return json.dumps([asdict(lesion) for lesion in lesions], indent=1)


def from_json(text: str) -> list[Lesion]:
    """Read lesions again."""
    return [Lesion(**{**entry, "centre": tuple(entry["centre"])}) for entry in json.loads(text)]


# ---------------------------------------------------------------- the act
def put_in(
    image: Array,
    mask: Mask,
    spacing: Sequence[float],
    lesions: Sequence[Lesion],
    parts: Mapping[str, Mask] | None = None,
) -> tuple[Array, NDArray[np.int32]]:
    """The image with the lesions, and which voxel belongs to which of them.

    Parameters
    ----------
    image, mask : (X, Y, Z); nothing changes outside the mask
    spacing : mm
    parts : source → its shape on the grid of the image (see :func:`on_grid`)

    Returns
    -------
    image, labels : labels are 0 outside, k + 1 in the core of lesion k
    """
    result = np.array(image, dtype=np.float32)
    labels = np.zeros(image.shape, dtype=np.int32)
    for number, lesion in enumerate(lesions, start=1):
        core = (parts or {})[lesion.source] if lesion.source else drawn_shape(lesion, spacing)
        room = int(np.ceil(3 * lesion.edge_mm / min(spacing)))
        core = np.pad(core, room)
        widths = [lesion.edge_mm / size for size in spacing]
        share = scipy.ndimage.gaussian_filter(core.astype(np.float32), widths)
        here, there = _overlap(core.shape, lesion.centre, image.shape)
        inside = mask[here]
        result[here] *= 1 + np.float32(lesion.contrast) * share[there] * inside
        labels[here][core[there] & inside] = number
    return result, labels


def _overlap(
    shape: Sequence[int], centre: Sequence[int], whole: Sequence[int]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Where a box about a centre lies in the whole, and which part of the box that is."""
    starts = [c - n // 2 for c, n in zip(centre, shape, strict=True)]
    here = tuple(
        slice(max(s, 0), max(min(s + n, size), 0))
        for s, n, size in zip(starts, shape, whole, strict=True)
    )
    there = tuple(slice(h.start - s, h.stop - s) for h, s in zip(here, starts, strict=True))
    return here, there


def drawn_shape(lesion: Lesion, spacing: Sequence[float]) -> Mask:
    """An uneven ellipsoid with the volume of a ball of the lesion's size; its seed decides it."""
    rng = np.random.default_rng(lesion.seed)
    radius = lesion.size_mm / 2
    half = [int(np.ceil(1.7 * radius / size)) + 1 for size in spacing]
    places = np.meshgrid(
        *(size * np.arange(-n, n + 1) for n, size in zip(half, spacing, strict=True)),
        indexing="ij",
    )
    turn = Rotation.from_quat(rng.normal(size=4)).as_matrix()
    turned = np.tensordot(turn, np.stack(places), axes=1)
    stretch = np.exp(rng.normal(0, OBLONG, 3))
    distance = np.sqrt(((turned / stretch[:, None, None, None]) ** 2).sum(axis=0))
    noise = scipy.ndimage.gaussian_filter(
        rng.standard_normal(distance.shape), [0.4 * radius / size for size in spacing]
    )
    depth = radius - distance + UNEVEN * radius * noise / max(float(noise.std()), 1e-9)
    count = max(round(np.pi / 6 * lesion.size_mm**3 / float(np.prod(spacing))), 1)
    least = np.partition(depth.ravel(), -count)[-count]
    return np.asarray(depth >= least)


# ---------------------------------------------------------------- drawing
def draw(
    rng: np.random.Generator,
    tissue: Mask,
    spacing: Sequence[float],
    wanted: Sequence[tuple[float, float]],
) -> list[Lesion]:
    """Drawn lesions apart from each other, the largest first.

    Parameters
    ----------
    tissue : (X, Y, Z), where they may lie
    wanted : (size in mm, contrast) of each; one for which there is no room is left out
    """
    free, found = tissue.copy(), []
    for size, contrast in sorted(wanted, key=lambda one: -one[0]):
        centre = _place(rng, free, size, spacing)
        if centre is None:
            continue
        edge = float(rng.uniform(0.4, 0.8))
        found.append(Lesion(centre, size, contrast, edge, int(rng.integers(2**31))))
        _block(free, centre, [size] * 3, spacing)
    return found


def _place(
    rng: np.random.Generator, free: Mask, size: float, spacing: Sequence[float]
) -> tuple[int, int, int] | None:
    width = [max(round(0.8 * size / step), 1) for step in spacing]
    box = bounding_box(free) if free.any() else (slice(0, 1),) * 3
    share = scipy.ndimage.uniform_filter(free[box].astype(np.float32), width, mode="constant")
    share[~free[box]] = 0
    best = float(share.max())
    if best < LEAST_INSIDE:
        return None
    places = np.argwhere(share >= min(INSIDE, 0.95 * best))
    chosen = places[rng.integers(len(places))] + [side.start for side in box]
    return int(chosen[0]), int(chosen[1]), int(chosen[2])


def _block(
    free: Mask, centre: Sequence[int], size_mm: Sequence[float], spacing: Sequence[float]
) -> None:
    """No other lesion near this one."""
    free[
        tuple(
            slice(
                max(int(c - (size / 2 + GAP_MM) / step), 0),
                int(c + (size / 2 + GAP_MM) / step) + 1,
            )
            for c, size, step in zip(centre, size_mm, spacing, strict=True)
        )
    ] = False


# ---------------------------------------------------------------- masks of real lesions
@dataclass(frozen=True)
class Part:
    """One connected lesion of a mask, MNI, 1 mm, axes LPS.

    Attributes
    ----------
    shape : (X, Y, Z), its box
    centre_mm : of the box, MNI millimetres with left, posterior and superior positive
    """

    shape: Mask
    centre_mm: tuple[float, float, float]


def read_parts(path: Path) -> dict[str, Part]:
    """The lesions of a mask in MNI space, by name: ``patient26:3``; the largest first."""
    image = conform(load_image(path))
    return parts_of(np.asarray(image.dataobj) > 0, image.affine, path.name.split("_")[0])


def read_strokes(path: Path, names: Sequence[str]) -> dict[str, Part]:
    """Strokes of the packed file of masks, by their IDs.

    Parameters
    ----------
    path : ``.npz`` with ``affine``, ``shape``, ``ID`` (packed bits of its box) and ``ID_box``
    """
    found = {}
    with np.load(path) as content:
        affine, shape = content["affine"], content["shape"]
        for name in names:
            corners = [int(v) for v in content[f"{name}_box"]]
            low, high = corners[:3], corners[3:]
            size = tuple(b - a for a, b in zip(low, high, strict=True))
            bits = np.unpackbits(content[name])[: int(np.prod(size))]
            whole = np.zeros(shape, dtype=np.uint8)
            whole[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = bits.reshape(size)
            image = conform(nib.Nifti1Image(whole, affine))
            lesion = np.asarray(image.dataobj) > 0
            if lesion.any():
                found[name] = _part(lesion, image.affine)
    return found


def stroke_names(path: Path) -> list[str]:
    """All IDs of the packed file, sorted."""
    with np.load(path) as content:
        return sorted(n.removesuffix("_box") for n in content.files if n.endswith("_box"))


def parts_of(lesions: Mask, affine: NDArray[Any], name: str) -> dict[str, Part]:
    """Connected parts of at least :data:`SMALLEST` voxels, the largest first."""
    labels, count = scipy.ndimage.label(lesions)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    order = [k for k in np.argsort(-sizes[1:]) + 1 if sizes[k] >= SMALLEST]
    return {f"{name}:{n}": _part(labels == k, affine) for n, k in enumerate(order, start=1)}


def _part(lesion: Mask, affine: NDArray[Any]) -> Part:
    box = bounding_box(lesion)
    middle = [(side.start + side.stop - 1) / 2 for side in box]
    x, y, z = affine[:3, :3] @ middle + affine[:3, 3]
    return Part(lesion[box], (-float(x), -float(y), float(z)))


def on_grid(part: Part, mask: Mask, spacing: Sequence[float]) -> tuple[Mask, tuple[int, int, int]]:
    """A lesion's shape and centre in a brain whose box is that of the MNI brain, stretched.

    Parameters
    ----------
    mask : (X, Y, Z) of the brain, axes LPS
    """
    box = bounding_box(mask)
    scale = [
        (side.stop - side.start) / (high - low)
        for side, low, high in zip(box, MNI_LOW, MNI_HIGH, strict=True)
    ]  # voxels of the brain for a millimetre
    soft = scipy.ndimage.gaussian_filter(np.pad(part.shape, 2).astype(np.float32), SMOOTH)
    soft = scipy.ndimage.zoom(soft, scale, order=1)
    centre = [
        round(side.start + (place - low) * factor)
        for side, place, low, factor in zip(box, part.centre_mm, MNI_LOW, scale, strict=True)
    ]
    shape = soft > 0.5
    return shape if shape.any() else soft >= soft.max(), (centre[0], centre[1], centre[2])


def place_parts(
    rng: np.random.Generator,
    parts: Mapping[str, Part],
    brain: tuple[Mask, Mask],
    spacing: Sequence[float],
    contrasts: Sequence[float],
) -> tuple[list[Lesion], dict[str, Mask]]:
    """Real lesions near their place, each moved a little so that it lies in its tissue.

    Parameters
    ----------
    brain : mask, and the tissue in which lesions lie
    contrasts : of which each has one

    Returns
    -------
    lesions, shapes : what :func:`put_in` takes; a lesion for which there is no room is left out
    """
    mask, tissue = brain
    free, found, shapes = tissue.copy(), [], {}
    for name, part in parts.items():
        shape, centre = on_grid(part, mask, spacing)
        place = _nudged(shape, centre, free, spacing)
        if place is None:
            continue
        volume = float(shape.sum()) * float(np.prod(spacing))
        size = (6 * volume / np.pi) ** (1 / 3)
        contrast, edge = float(rng.choice(contrasts)), float(rng.uniform(0.4, 0.8))
        found.append(Lesion(place, size, contrast, edge, source=name))
        shapes[name] = shape
        extent = [n * step for n, step in zip(shape.shape, spacing, strict=True)]
        _block(free, place, extent, spacing)
    return found, shapes


def _nudged(
    shape: Mask, centre: Sequence[int], free: Mask, spacing: Sequence[float]
) -> tuple[int, int, int] | None:
    """The place near a centre at which most of the shape is free; None where it is too little."""
    reach = [max(int(NUDGE_MM / step), 1) for step in spacing]
    sides = [n + 2 * r for n, r in zip(shape.shape, reach, strict=True)]
    here, there = _overlap(sides, centre, free.shape)
    if any(side.start >= side.stop for side in here):
        return None
    around = np.zeros(sides, dtype=np.float32)
    around[there] = free[here]
    share = scipy.signal.fftconvolve(around, shape[::-1, ::-1, ::-1].astype(np.float32), "valid")
    share /= shape.sum()
    offsets = np.indices(share.shape) - np.array(reach)[:, None, None, None]
    far = np.sqrt(sum((o * step) ** 2 for o, step in zip(offsets, spacing, strict=True)))
    score = np.minimum(share, INSIDE) - 1e-3 * far  # the nearest of those that are good enough
    k = np.unravel_index(int(score.argmax()), score.shape)
    if share[k] < LEAST_INSIDE:
        return None
    x, y, z = (int(c + o[k]) for c, o in zip(centre, offsets, strict=True))
    return x, y, z
