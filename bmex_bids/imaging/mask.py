# SPDX-License-Identifier: Apache-2.0
"""Brain masks: clean and judge a mask, put a brain into its head."""

from __future__ import annotations

from dataclasses import dataclass, field

import nibabel as nib
import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from bmex_bids.common.boxes import bounding_box
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
#: share of the mask that may be left out by its cleaning without a word
LEFT_OUT = 0.1
ANY_LITRES = (0.02, LARGEST_BRAIN)
#: names of the borders of an image in LPS, low and high end of each axis
SIDES = (("right", "left"), ("front", "back"), ("bottom", "top"))
#: share of the mask's widest section that it has at a border where the brain is cut off
CUT_SHARE = 0.15


def depth_mm(mask: Mask, spacing: tuple[float, ...]) -> NDArray[np.float64]:
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


def cut_sides(
    mask: Mask, spacing: tuple[float, ...], *, within_mm: float = 0.0
) -> tuple[str, ...]:
    """The sides on which the field of view seems to cut the brain off.

    Parameters
    ----------
    mask : (X, Y, Z), axes LPS
    spacing : mm
    within_mm : a mask that ends so close to the border counts as reaching it: a network seldom
        marks brain up to the border, and scalp and skull are thicker than that
    """
    found = []
    for axis, names in enumerate(SIDES):
        areas = mask.sum(axis=tuple(k for k in range(3) if k != axis)).astype(float)
        depth = min(int(within_mm // spacing[axis]), areas.size - 1)
        radius = max(np.count_nonzero(areas) / 2, 1.0)
        cap = (2 * radius - 1) / radius**2  # of a ball that touches the border
        for name, area in zip(names, (areas[depth], areas[-1 - depth]), strict=True):
            if area > (CUT_SHARE + cap) * max(areas.max(), 1.0):
                found.append(name)
    return tuple(found)


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


#: What is likely brain counts where it lies this close to what is surely brain.  With "likely" at
#: 0.5, 0.4, 0.3 a child of 3 years loses 1.4, 0.7, 0.3 ml more than 3 mm inside deepbet's mask, and an
#: adult with wide fluid gains 35, 48, 64 ml outside it.
SURE, LIKELY, REACH_MM = 0.5, 0.4, 3.0


def hysteresis_mask(
    probability: Array,
    spacing: tuple[float, ...],
    *,
    sure: float = SURE,
    likely: float = LIKELY,
    reach_mm: float = REACH_MM,
) -> Mask:
    """What is surely brain, and around it what is likely brain.

    Parameters
    ----------
    probability : (X, Y, Z), 0…1
    spacing : mm
    sure, likely : probabilities above which a voxel is the one or the other
    reach_mm : how far from what is sure the likely counts
    """
    core = probability > sure
    result = np.zeros(core.shape, dtype=bool)
    if core.any():
        box = bounding_box(core, margin=int(np.ceil(reach_mm / min(spacing))) + 1)
        near = scipy.ndimage.distance_transform_edt(~core[box], sampling=spacing) <= reach_mm
        result[box] = near & (probability[box] > likely)
    return result


def open_mask(mask: nib.Nifti1Image, *, radius: int = 3) -> nib.Nifti1Image:
    """A mask as the published stripping leaves it: opened, its largest component, holes filled.

    Parameters
    ----------
    mask : non-zero is brain
    radius : of the opening's ball, voxels

    Raises
    ------
    MaskError
        Nothing is left.
    """
    import SimpleITK as sitk

    original = np.asarray(mask.dataobj) > 0
    result = np.zeros(original.shape, dtype=np.uint8)
    if original.any():
        box = bounding_box(original, margin=1)
        part = sitk.GetImageFromArray(original[box].astype(np.uint8))
        opened = sitk.GetArrayFromImage(sitk.BinaryMorphologicalOpening(part, [radius] * 3)) > 0
        result[box] = scipy.ndimage.binary_fill_holes(_largest(opened))
    if not result.any():
        raise MaskError(
            "expected the stripping network to find a brain, got a mask that is empty once it is "
            "opened; give a mask of your own (--derivatives of bmex, --mask of bmex-enhance), or "
            "try --weights bundled"
        )
    return nib.Nifti1Image(result, mask.affine)


def left_out(before: nib.Nifti1Image, after: nib.Nifti1Image) -> str | None:
    """A warning where :func:`clean_mask` left out much of a mask: a second brain, a severed part.

    None where it is less than a tenth of what was kept.
    """
    kept = np.asarray(after.dataobj) > 0
    lost = (np.asarray(before.dataobj) > 0) & ~kept
    litres = float(lost.sum()) * float(np.prod(voxel_sizes(after.affine))) / 1e6
    if lost.sum() < LEFT_OUT * kept.sum():
        return None
    return (
        f"{litres:.3f} litres that look like brain lie apart from the largest piece and were left "
        "out; is there more than one brain, or is it in pieces?"
    )


def _clean(original: Mask, spacing: tuple[float, ...], opening_mm: float) -> Mask:
    core = depth_mm(original, spacing) > opening_mm
    if core.any():
        core = _largest(core)
        # what lies within the opening's reach of the core belongs to it (geodesic opening)
        reach = scipy.ndimage.distance_transform_edt(~core, sampling=spacing) <= opening_mm + max(
            spacing
        )
        chosen = _largest(original & reach)
    else:
        chosen = _largest(original)
    return np.asarray(scipy.ndimage.binary_fill_holes(close_gaps(chosen, spacing, 3.0)))


def close_gaps(mask: Mask, spacing: tuple[float, ...], radius_mm: float) -> Mask:
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
    mask: nib.Nifti1Image,
    *,
    age_months: float | None = None,
    fetal: bool = False,
    within_mm: float = 0.0,
    given: str = "",
) -> MaskCheck:
    """Refuse a mask that cannot be a brain; warn of one that is odd.

    Parameters
    ----------
    mask : axes LPS; non-zero is brain
    age_months, fetal : what volume is plausible
    within_mm : as for :func:`cut_sides`
    given : file of a mask that was made elsewhere

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
    where = ""
    if given:
        advice = "give another mask, leave out --mask (bmex: --derivatives), or check the age"
        where = f" in {given}"
    if not inside.any():
        raise MaskError(
            f"expected a brain mask of {low:g} to {high:g} litres{where}, got an empty one; "
            f"{advice}"
        )
    if not 0.5 * low <= litres <= 1.5 * high:
        raise MaskError(
            f"expected a brain mask of {low:g} to {high:g} litres at this age{where}, got "
            f"{litres:.3f}; {advice}"
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
    for side in cut_sides(inside, voxel_sizes(mask.affine), within_mm=within_mm):
        warnings.append(
            f"the brain reaches the {side} of the image, with a wide section: the field of view "
            "may cut it off there"
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
        depth[box] = depth_mm(mask[box], spacing)
    half_voxel = 0.5 * min(
        spacing
    )  # the distance is to the next voxel's centre, the border lies between
    weight = np.clip((depth - half_voxel) / max(width_mm, 1e-6), 0, 1).astype(np.float32)
    if width_mm <= 0:
        weight = mask.astype(np.float32)
    return np.asarray(weight * brain + (1 - weight) * head, dtype=np.float32)
