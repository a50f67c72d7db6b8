# SPDX-License-Identifier: Apache-2.0
"""Brain masks: recognise a stripped image, clean and judge a mask, put a brain into its head."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import nibabel as nib
import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from bmex_bids.exceptions import MaskError
from bmex_bids.imaging.orientation import voxel_sizes

Mask = NDArray[np.bool_]
Array = NDArray[np.float32]

#: no brain, fetus to adult, is larger than this (litres; adults reach 1.9, Bethlehem et al.,
#: Nature 2022)
LARGEST_BRAIN = 2.2

#: (older than, months) → plausible volume of the brain with its fluid inside the mask, litres.
#: The limits are wide: they catch a mask that is not a brain, not a brain that is unusual
#: (Knickmeyer et al., J. Neurosci. 2008; Bethlehem et al., Nature 2022; Kyriakopoulou et al.,
#: Brain Struct. Funct. 2017, fetuses).
PLAUSIBLE_LITRES: tuple[tuple[float, float, float], ...] = (
    (36, 0.70, LARGEST_BRAIN),
    (12, 0.50, 1.90),
    (3, 0.35, 1.60),
    (-1, 0.18, 1.10),
)
FETAL_LITRES = (0.02, 0.65)
ANY_LITRES = (0.02, LARGEST_BRAIN)


def is_stripped(image: nib.Nifti1Image) -> bool:
    """Whether an image shows a brain without its head.

    Four signs are needed: a background of exactly zero; a foreground not larger than a brain;
    hardly any contact with the border of the field of view, where a neck would leave it; and no
    dark shell a few millimetres below the surface, which is what skull looks like between scalp
    and brain.
    """
    data = np.asarray(image.dataobj)
    spacing = voxel_sizes(image.affine)
    foreground = data != 0
    if not foreground.any() or foreground.mean() > 0.7:
        return False
    contact = border_contact(foreground)
    box = bounding_box(foreground)
    data, foreground = data[box], np.pad(foreground[box], 1)[1:-1, 1:-1, 1:-1]
    pieces, _ = scipy.ndimage.label(foreground)
    sizes = np.bincount(pieces.ravel())[1:]
    largest = pieces == int(sizes.argmax()) + 1
    litres = float(largest.sum()) * float(np.prod(spacing)) / 1e6
    if litres > LARGEST_BRAIN:
        return False
    if contact > 0.02:
        return False
    return not _has_dark_shell(np.abs(data), largest, spacing)


def _has_dark_shell(
    data: NDArray[np.floating[Any]], foreground: Mask, spacing: tuple[float, ...]
) -> bool:
    """Median intensity by depth (1 mm steps): does it fall to 60 % of both surface and depth?"""
    filled = scipy.ndimage.binary_fill_holes(foreground)
    depth = _depth(filled, spacing)
    profile = []
    for d in range(0, 16):
        shell = (depth > d) & (depth <= d + 1)
        profile.append(float(np.median(data[shell])) if shell.any() else np.nan)
    surface = np.nanmax(profile[:4])
    deep_region = depth > 16
    deep = float(np.median(data[deep_region])) if deep_region.any() else np.nan
    dip = np.nanmin(profile[3:14])
    return bool(dip < 0.6 * min(surface, deep if np.isfinite(deep) else surface))


def bounding_box(mask: Mask, margin: int = 0) -> tuple[slice, slice, slice]:
    """The box around a mask that has voxels, with a margin, inside the array."""
    sides = []
    for axis in range(3):
        other = tuple(k for k in range(3) if k != axis)
        where = np.flatnonzero(mask.any(axis=other))
        low, high = int(where[0]) - margin, int(where[-1]) + 1 + margin
        sides.append(slice(max(low, 0), min(high, mask.shape[axis])))
    return sides[0], sides[1], sides[2]


def _depth(mask: Mask, spacing: tuple[float, ...]) -> NDArray[np.float64]:
    """Distance in mm to the nearest voxel outside the mask; the array's border is outside."""
    depth = scipy.ndimage.distance_transform_edt(np.pad(mask, 1), sampling=spacing)
    return np.asarray(depth[1:-1, 1:-1, 1:-1])


def border_contact(mask: Mask) -> float:
    """Share of the mask's surface voxels that lie on a face of the array, 0…1."""
    if not mask.any():
        return 0.0
    box = bounding_box(mask)
    part = mask[box]
    surface = np.zeros(mask.shape, dtype=bool)
    surface[box] = part & ~scipy.ndimage.binary_erosion(part, border_value=0)
    edge = np.zeros(mask.shape, dtype=bool)
    for axis in range(mask.ndim):
        index: list[slice | list[int]] = [slice(None)] * mask.ndim
        index[axis] = [0, mask.shape[axis] - 1]
        edge[tuple(index)] = True
    return float((surface & edge).sum() / surface.sum())


def clean_mask(mask: nib.Nifti1Image, *, opening_mm: float = 2.0) -> nib.Nifti1Image:
    """One solid piece: open, keep the largest component, close small gaps, fill holes.

    Parameters
    ----------
    mask : non-zero is brain
    opening_mm : bridges thinner than about twice this are cut before the largest piece is chosen

    Raises
    ------
    MaskError
        Nothing is left.
    """
    spacing = voxel_sizes(mask.affine)
    original = np.asarray(mask.dataobj) > 0
    if not original.any():
        raise MaskError(
            "expected a brain mask with voxels in it, got an empty one; was the image stripped "
            "badly? Give a mask of your own, or try --skull-strip force or skip"
        )
    box = bounding_box(original, margin=1)
    result = np.zeros(original.shape, dtype=np.uint8)
    result[box] = _clean(original[box], spacing, opening_mm)
    return nib.Nifti1Image(result, mask.affine)


def _clean(original: Mask, spacing: tuple[float, ...], opening_mm: float) -> Mask:
    core = _depth(original, spacing) > opening_mm
    if core.any():
        core = _largest(core)
        # what lies within the opening's reach of the core belongs to it (geodesic opening)
        reach = scipy.ndimage.distance_transform_edt(~core, sampling=spacing) <= opening_mm + max(
            spacing
        )
        chosen = _largest(original & reach)
    else:
        chosen = _largest(original)
    return np.asarray(scipy.ndimage.binary_fill_holes(_close(chosen, spacing, 3.0)))


def _close(mask: Mask, spacing: tuple[float, ...], radius_mm: float) -> Mask:
    """Morphological closing with a ball, by distances (fast at any radius)."""
    width = [int(np.ceil(radius_mm / step)) + 1 for step in spacing]
    padded = np.pad(mask, [(w, w) for w in width])
    grown = scipy.ndimage.distance_transform_edt(~padded, sampling=spacing) <= radius_mm
    shrunk = scipy.ndimage.distance_transform_edt(grown, sampling=spacing) > radius_mm
    crop = tuple(slice(w, -w) for w in width)
    return np.asarray((shrunk | padded)[crop])


def _largest(mask: Mask) -> Mask:
    pieces, count = scipy.ndimage.label(mask)
    if count <= 1:
        return mask
    return np.asarray(pieces == int(np.bincount(pieces.ravel())[1:].argmax()) + 1)


@dataclass(frozen=True)
class MaskCheck:
    """What was measured on a mask, and what about it is odd."""

    volume_litres: float
    components: int
    border_contact: float
    warnings: tuple[str, ...] = field(default=())


def plausible_litres(age_months: float | None, fetal: bool) -> tuple[float, float]:
    """Lower and upper limit of a brain mask's volume for an age."""
    if fetal:
        return FETAL_LITRES
    if age_months is None:
        return ANY_LITRES
    for older, low, high in PLAUSIBLE_LITRES:
        if age_months >= older:
            return low, high
    return ANY_LITRES


def check_mask(
    mask: nib.Nifti1Image, *, age_months: float | None = None, fetal: bool = False
) -> MaskCheck:
    """Refuse a mask that cannot be a brain; warn of one that is odd.

    Raises
    ------
    MaskError
        The mask is empty, or its volume lies outside 0.5 to 1.5 times the limits for the age.
    """
    inside = np.asarray(mask.dataobj) > 0
    litres = float(inside.sum()) * float(np.prod(voxel_sizes(mask.affine))) / 1e6
    low, high = plausible_litres(age_months, fetal)
    advice = (
        "look at the image; give a brain mask of your own, an already stripped image with "
        "--skull-strip skip, or check the age"
    )
    if not inside.any():
        raise MaskError(
            f"expected a brain mask of {low:g} to {high:g} litres, got an empty one; {advice}"
        )
    if not 0.5 * low <= litres <= 1.5 * high:
        raise MaskError(
            f"expected a brain mask of {low:g} to {high:g} litres at this age, got {litres:.3f}; "
            f"{advice}"
        )
    _, components = scipy.ndimage.label(inside)
    contact = border_contact(inside)
    warnings = []
    if not low <= litres <= high:
        warnings.append(
            f"brain mask of {litres:.2f} litres; {low:g} to {high:g} are usual at this age"
        )
    if components > 1:
        warnings.append(f"brain mask in {components} pieces")
    if contact > 0.02:
        warnings.append(
            f"{100 * contact:.0f} % of the brain mask's surface lies on the border of the image"
        )
    return MaskCheck(litres, int(components), contact, tuple(warnings))


def blend_into_head(
    head: Array,
    brain: Array,
    mask: Mask,
    spacing: tuple[float, float, float],
    *,
    width_mm: float = 2.0,
) -> Array:
    """Put a brain into its head, with a smooth seam just inside the mask's border.

    The weight of the brain rises linearly from 0 at the mask's surface to 1 at ``width_mm`` below
    it, so that nothing outside the mask changes and no edge appears.

    Parameters
    ----------
    head, brain : (X, Y, Z), one unit
    mask : (X, Y, Z)
    spacing : mm
    """
    depth = np.zeros(mask.shape, dtype=np.float32)
    if mask.any():
        box = bounding_box(mask, margin=1)
        depth[box] = _depth(mask[box], spacing)
    half_voxel = 0.5 * min(
        spacing
    )  # the distance is to the next voxel's centre, the border lies between
    weight = np.clip((depth - half_voxel) / max(width_mm, 1e-6), 0, 1).astype(np.float32)
    if width_mm <= 0:
        weight = mask.astype(np.float32)
    return np.asarray(weight * brain + (1 - weight) * head, dtype=np.float32)
