# SPDX-License-Identifier: Apache-2.0
"""Whether an image shows a head or a brain alone, and where the brain then is."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from bmex_bids.common.boxes import bounding_box
from bmex_bids.common.noise import robust_deviation
from bmex_bids.imaging.mask import FETAL_LITRES, LARGEST_BRAIN, Array, Mask, close_gaps
from bmex_bids.imaging.orientation import voxel_sizes

#: how :func:`is_stripped` looks and decides, see :class:`HeadSigns`
SIGNS_MM = 2.0
SIGMAS = 6.0
BRIGHTEST = 99.9  # percentile; a fetus' brain may be less than 2 % of the field of view
FURROW_MM = 10.0
DEEPEST_MM = 40
FLAT_LIMIT = 0.15
SHELL_LIMIT = 0.08
NOISE_LIMIT = 0.03
#: slices in a row that may be lost
MOST_LOST = 3
#: share of an image's range within which a background counts as constant
NEARLY = 1e-4
#: how :func:`brain_voxels` recognises a resampled brain: share of its outermost layer that may be
#: next to nothing (sharply cut: up to 0.01; linear 0.19, splines and Lanczos 1.00), what that is,
#: and where the edge of such a brain is, as shares of the brain's median brightness
SOFT_RIM, NEXT_TO_NOTHING, EDGE = 0.05, 0.02, 0.2
#: share of an object on each side of a background that lies amid it (ringing: less than 0.01); and how
#: bright its darkest values count, as a share of its range
AMID, DARKEST = 0.05, 0.25
#: how :func:`is_all_brain` decides: share of what is there that may lie farther than so many mm
#: outside a found brain (stripped halves and slabs of nine brains: up to 0.07; the scalp over a
#: child's vertex: 0.15, a neck or a face: more; an axial slab of the child's head: 0.08)
RIM_MM, MOST_BEYOND = 6.0, 0.1
#: how far its surface beside the cuts may lie outside it, the median in mm (halves and slabs: up to
#: 4.0; scalp: 8.0 and more); and the limit of ``HeadSigns.dark_shell`` (axial slabs: up to 0.10)
SURFACE_MM, CUT_SHELL = 6.0, 0.12
#: and how large the cut face is (see ``HeadSigns.cut``), looked for so deep in mm below the outermost
#: plane, for resampling blurs and tilts a face; halves: 0.77 and more, a stump of a neck that a
#: stripper left: 0.4 and less
CUT_THROUGH, CUT_DEEP_MM = 0.6, 5.0
#: A network may miss a whole end of a slab, or half of a quarter of a brain.  What it missed is brain,
#: too, if it is no more than so much of all that is there (stripped: up to 0.29); if what was found
#: comes so near to the surface beside the cuts, the first quartile in mm (up to 3.2; heads: 6.0 and
#: more); and if the histograms of what was found and missed have so much in common (0.66 and more;
#: heads: 0.18 to 0.69)
MOST_MISSED, TOUCHING_MM, IN_COMMON = 0.4, 4.5, 0.6
#: of those histograms
BINS = 16
#: how :func:`without_offset` recognises an offset: the object's distance from a constant background
#: over the distance of its 15th and 85th percentile (39 real images: up to 5.8); and by how many of
#: the latter the background is put below the 15th percentile at most
OFFSET, BELOW = 10.0, 3.0


@dataclass(frozen=True)
class HeadSigns:
    """What tells a head from a brain, measured by :func:`head_signs`.

    litres : volume of the foreground, its furrows and gaps closed
    flat : the largest cut face: area of the foreground's outermost plane, as a share of its widest
        cross-section, beyond what a ball would show there; 0 for a brain, 0.2 to 0.9 for a
        neck or an edge of the field of view
    cuts : faces that are flat
    cut : as ``flat``, of the widest of the planes down to :data:`CUT_DEEP_MM`
    dark_shell : share of the directions from the centre, 0…1, in which a dark shell (bone) lies
        between two bright ones (scalp and brain)
    noise : standard deviation of the background, as a share of the brightest; 0 where it is
        constant. The air around a head has noise, what a stripper leaves has little or none
    """

    litres: float
    flat: float
    cuts: int
    cut: float
    dark_shell: float
    noise: float


def is_stripped(image: nib.Nifti1Image) -> bool:
    """Whether an image shows a brain without its head.

    A head gives itself away by its size, by a cut face (neck, edge of the field of view), or by
    its skull, see :class:`HeadSigns`; a brain must show none of these.  What lies outside may be
    zero, another constant or faint noise.  In doubt the answer is no: the stripping network does
    little harm to a brain, a head taken for a brain spoils all that follows.
    """
    signs = head_signs(image)
    return (
        signs is not None
        and FETAL_LITRES[0] <= signs.litres <= LARGEST_BRAIN
        and signs.flat <= FLAT_LIMIT
        and signs.dark_shell <= SHELL_LIMIT
        and signs.noise <= NOISE_LIMIT
    )


def head_signs(image: nib.Nifti1Image) -> HeadSigns | None:
    """Measure on a grid of about 2 mm; ``None`` where there is nothing, or nothing but object."""
    data = np.asarray(image.dataobj)
    data, spacing = _thinned(data, voxel_sizes(image.affine))
    level, tolerance = _background(data)
    if tolerance == 0:
        bright = _brightness(data, level)
        foreground = _without_specks(_beyond_ringing(bright))
        noise = 0.0
    else:  # the mean of 27 voxels shows a dim scalp in the noise
        bright = data.astype(np.float32) - np.float32(level)
        noise = tolerance / SIGMAS / max(float(np.percentile(bright, BRIGHTEST)), 1e-12)
        smooth = scipy.ndimage.uniform_filter(bright, 3)
        level, tolerance = _background(smooth)
        foreground = _without_specks(smooth > level + tolerance)
    if not foreground.any() or foreground.all():
        return None
    box = bounding_box(foreground)
    closed = close_gaps(foreground[box], spacing, FURROW_MM)
    hull = np.asarray(scipy.ndimage.binary_fill_holes(closed))
    flat = _flatness(hull)
    return HeadSigns(
        litres=float(hull.sum()) * float(np.prod(spacing)) / 1e6,
        flat=max(flat),
        cuts=sum(face > FLAT_LIMIT for face in flat),
        cut=max(_flatness(hull, [int(CUT_DEEP_MM / size) for size in spacing])),
        dark_shell=_dark_shell(bright[box], hull, spacing),
        noise=noise,
    )


def is_all_brain(image: nib.Nifti1Image, found: Mask) -> bool:
    """Whether all that an image shows is the brain that was found in it.

    A stripped brain that was cut through has a face as flat as a neck's, so :func:`is_stripped`
    takes it for a head; a stripping network then rounds its edges, or misses an end.  It must be
    cut far from its ends, show no skull, have a constant or faint noise around it, little far from
    what was found, or what looks like it, and a surface, the cuts apart, that is the brain's and
    not a scalp's.

    Parameters
    ----------
    image : as for :func:`is_stripped`
    found : the brain by other means, on the image's grid
    """
    signs, spacing = head_signs(image), voxel_sizes(image.affine)
    if signs is None or signs.noise > NOISE_LIMIT or signs.dark_shell > CUT_SHELL:
        return False
    if signs.cut < CUT_THROUGH or not found.any():
        return False
    there = _without_specks(brain_voxels(image))
    distance = scipy.ndimage.distance_transform_edt(~found, sampling=spacing)
    surface = distance[_surface_beside_cuts(there, spacing)]
    if surface.size == 0 or np.median(surface) > SURFACE_MM:
        return False
    beyond = there & (distance > RIM_MM)
    share = beyond.sum() / there.sum()
    if share <= MOST_BEYOND:
        return True
    return bool(
        share <= MOST_MISSED
        and np.percentile(surface, 25) <= TOUCHING_MM
        and _in_common(image, found, beyond) >= IN_COMMON
    )


def _in_common(image: nib.Nifti1Image, first: Mask, second: Mask) -> float:
    """How much the histograms of two parts of an image have in common, 0…1."""
    data = np.asarray(image.dataobj)
    levels = np.percentile(data[first], np.linspace(0, 100, BINS + 1)[1:-1])
    shares = [
        np.bincount(np.digitize(data[part], levels), minlength=BINS) / max(part.sum(), 1)
        for part in (first, second)
    ]
    return float(np.minimum(*shares).sum())


def _surface_beside_cuts(there: Mask, spacing: tuple[float, ...]) -> Mask:
    """The outermost voxels of what is there, but those near a plane in which it was cut."""
    surface = np.zeros(there.shape, dtype=bool)
    box = bounding_box(there)
    part = np.asarray(scipy.ndimage.binary_fill_holes(there[box]))
    outermost = part & ~scipy.ndimage.binary_erosion(part)
    flat = _flatness(part)
    deep = _flatness(part, [int(CUT_DEEP_MM / size) for size in spacing])
    is_cut = [a > FLAT_LIMIT or b >= CUT_THROUGH for a, b in zip(flat, deep, strict=True)]
    for axis, size in enumerate(spacing):
        planes = np.moveaxis(outermost, axis, 0)
        near = int(RIM_MM / size) + 1
        if is_cut[2 * axis]:
            planes[:near] = False
        if is_cut[2 * axis + 1]:
            planes[-near:] = False
    surface[box] = outermost
    return surface


def brain_voxels(image: nib.Nifti1Image) -> Mask:
    """The voxels of a stripped image that are not its background, (X, Y, Z).

    The background is zero, another constant, or noise; dark voxels within the brain may be
    missing (:func:`clean_mask` fills them), specks outside may be there (it drops them).
    """
    data = np.asarray(image.dataobj)
    level, tolerance = _background(_thinned(data, voxel_sizes(image.affine))[0])
    if tolerance == 0:
        return _beyond_ringing(_brightness(data, level))
    return np.asarray(data > level + tolerance)


def without_offset(image: nib.Nifti1Image) -> nib.Nifti1Image:
    """An image whose constant background lies no further from the object than in usual images.

    A brain of 20,000 to 21,600 in zeros shows no tissues where 0 to 21,600 is its range.  Zeros
    around a brain of z scores, -3 to 3, are as bright as grey matter.

    Parameters
    ----------
    image : any unit

    Returns
    -------
    the image itself where its background is near or not constant; else one in which nothing is
    darker, and the background no brighter, than somewhat below the object
    """
    data = np.asarray(image.dataobj, dtype=np.float32)
    level, tolerance = _background(_thinned(data, voxel_sizes(image.affine))[0])
    if tolerance > 0:
        return image
    found = data[_beyond_ringing(_brightness(data, level))]
    if found.size == 0:
        return image
    low, middle, high = (float(value) for value in np.percentile(found, (15, 50, 85)))
    amid = _is_amid(data, level)
    if abs(middle - level) <= OFFSET * (high - low) and not amid:
        return image
    floor = np.float32(max(float(found.min()), low - BELOW * (high - low)))
    if amid:
        data = np.where(data == np.float32(level), floor, data)
    elif level > middle:  # between the object and a brighter background lies their seam
        data = np.where(data > (high + level) / 2, floor, data)
    return nib.Nifti1Image(np.maximum(data, floor), image.affine)


def without_lost_slices(brain: Mask) -> tuple[Mask, int]:
    """A brain with its empty slices filled from those beside, and their number.

    A slice that was lost is empty from end to end; the brain would fall into two pieces, of which
    the larger is kept.

    Parameters
    ----------
    brain : (X, Y, Z)
    """
    result, lost = brain.copy(), 0
    for axis in range(3):
        planes = np.moveaxis(result, axis, 0)
        there = np.flatnonzero(planes.any(axis=(1, 2)))
        for before, after in itertools.pairwise(there):
            if 1 < after - before <= MOST_LOST + 1 and (planes[before] & planes[after]).any():
                planes[before + 1 : after] = planes[before] & planes[after]
                lost += int(after - before) - 1
    return result, lost


def _is_amid(data: NDArray[Any], level: float) -> bool:
    """Whether a constant background lies amid the object's values, as zeros around z scores do."""
    signed = data.astype(np.float32) - np.float32(level)
    far = np.abs(signed) > EDGE * _typical(np.abs(signed))
    below = float((signed[far] < 0).mean()) if far.any() else 0.0
    return bool(AMID < below < 1 - AMID)


def _brightness(data: NDArray[Any], level: float) -> Array:
    """How far each voxel is from a constant background, or above the object's darkest values."""
    signed = data.astype(np.float32) - np.float32(level)
    if not _is_amid(data, level):
        return np.asarray(np.abs(signed))
    low, high = np.percentile(signed[signed != 0], (0.5, 99.5))
    darkest = np.float32(DARKEST * (high - low))
    above = np.maximum(signed - np.float32(low), 0) + darkest
    return np.where(signed == 0, np.float32(0), above)


def _typical(bright: Array) -> float:
    """The object's median distance from a constant background; 0 where there is no object."""
    found = bright[bright > 0]
    return float(np.median(found[found > 0.1 * np.percentile(found, 99)])) if found.size else 0.0


def _beyond_ringing(bright: Array) -> Mask:
    """What differs from a constant background, without the seam that a resampling leaves around.

    A mask cuts a brain off sharply, at fluid or tissue.  Interpolation lets it fade out over a
    voxel (linear) or ring over many (splines, Lanczos): then much of the outermost layer is next
    to nothing, and the edge lies where the brightness is a fifth of the brain's.

    Parameters
    ----------
    bright : (X, Y, Z), distance from the background's level, 0 and above
    """
    found = np.asarray(bright > 0)
    if not found.any():
        return found
    typical = _typical(bright)
    rim = bright[found & ~scipy.ndimage.binary_erosion(found)]
    if (rim < NEXT_TO_NOTHING * typical).mean() <= SOFT_RIM:
        return found
    return np.asarray(bright > EDGE * typical)


def _thinned(
    data: NDArray[Any], spacing: tuple[float, ...]
) -> tuple[NDArray[Any], tuple[float, ...]]:
    """Every n-th voxel, about 2 mm apart; without means, so that a constant stays one."""
    step = [max(1, int(SIGNS_MM / s + 1e-3)) for s in spacing]
    thin = data[
        tuple(
            slice(n // 2 if n // 2 < size else 0, None, n)
            for n, size in zip(step, data.shape, strict=True)
        )
    ]
    return thin, tuple(s * n for s, n in zip(spacing, step, strict=True))


def _background(data: NDArray[Any]) -> tuple[float, float]:
    """Level of the background, and how far from it a voxel is no longer background (0: exact).

    Judged on the array's six faces, where an object seldom is: one value on most of them is a
    constant; else the three darkest are noise, and six of its standard deviations are the limit.
    Where they are no darker than the object, there is no background to be seen but zeros.
    """
    faces = [np.take(data, end, axis=axis).ravel() for axis in range(3) for end in (0, -1)]
    values, counts = np.unique(np.concatenate(faces), return_counts=True)
    if counts.max() > 0.5 * counts.sum():
        return float(values[counts.argmax()]), 0.0
    top = float(np.percentile(data, BRIGHTEST))
    middle = float(np.median(values.repeat(counts)))
    nearly = np.abs(values - middle) <= NEARLY * abs(top - middle)
    if counts[nearly].sum() > 0.5 * counts.sum():  # what is left of a spline's ringing
        return middle, 0.0
    darkest = sorted(faces, key=lambda face: float(np.median(face)))[:3]
    noise = np.concatenate(darkest).astype(np.float64)
    level = float(np.median(noise))
    spread = robust_deviation(noise - level)
    if level + SIGMAS * spread >= top:
        return 0.0, 0.0
    return level, max(SIGMAS * spread, 0.02 * (top - level))


def _without_specks(mask: Mask) -> Mask:
    """Without pieces of less than 1 % of the largest."""
    pieces, count = scipy.ndimage.label(mask)
    if count <= 1:
        return mask
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    return np.asarray((sizes >= 0.01 * sizes.max())[pieces])


def _flatness(mask: Mask, deep: Sequence[int] = (0, 0, 0)) -> list[float]:
    """The share that each outermost plane has of the widest one, less that of a ball.

    ``deep``: along each axis, so many planes further inwards may stand for the outermost one.
    """
    box = mask[bounding_box(mask)]
    found = []
    for axis, more in enumerate(deep):
        areas = box.sum(axis=tuple(k for k in range(3) if k != axis)).astype(float)
        radius = max(areas.size / 2, 1.0)
        cap = (2 * radius - 1) / radius**2  # of a ball, one voxel below its top
        for face in (areas[: more + 1], areas[-1 - more :]):
            found.append(float(face.max() / areas.max() - cap))
    return found


def _directions(count: int) -> NDArray[np.float64]:
    """Unit vectors, (count, 3), spread evenly over all directions (a Fibonacci spiral)."""
    place = np.arange(count) + 0.5
    polar, azimuth = np.arccos(1 - 2 * place / count), np.pi * (1 + 5**0.5) * place
    return np.stack(
        [np.cos(azimuth) * np.sin(polar), np.sin(azimuth) * np.sin(polar), np.cos(polar)], axis=1
    )


def _dark_shell(bright: Array, hull: Mask, spacing: tuple[float, ...]) -> float:
    """Share of 60 patches of the surface below which a dark shell lies between bright ones.

    Within a patch the profiles of some thirty rays are averaged by their depth below the surface:
    a skull keeps its depth from ray to ray, furrows of a brain do not.
    """
    rays, patches = _directions(2000), _directions(60)
    member = (rays @ patches.T).argmax(axis=1)
    scale = np.array(spacing)[:, None, None]
    corner = np.linalg.norm(np.array(hull.shape) * spacing)
    steps = np.arange(0, corner, 1.0)
    centre = np.array(scipy.ndimage.center_of_mass(hull))[:, None, None]
    points = centre + rays.T[:, :, None] * steps / scale
    inside = scipy.ndimage.map_coordinates(hull.astype(np.uint8), points, order=0) > 0
    last = np.where(inside.any(axis=1), steps.size - 1 - inside[:, ::-1].argmax(axis=1), -1)
    at = last[:, None] - np.arange(DEEPEST_MM)  # from the surface inwards, 1 mm apart
    points = centre + rays.T[:, :, None] * np.maximum(at, 0) / scale
    values = scipy.ndimage.map_coordinates(bright, points, order=1)
    seen = at >= 5
    bright_level = float(np.percentile(bright[hull], 75))
    found = judged = 0
    for patch in range(len(patches)):
        own = (member == patch)[:, None] & seen
        number = own.sum(axis=0)
        depth = int((number > 0).sum())  # the depths seen are the first ones
        if depth < 4:
            continue
        profile = np.where(own, values, 0).sum(axis=0)[:depth] / number[:depth]
        judged += 1
        found += _has_dip(profile / max(bright_level, 1e-12))
    return found / max(judged, 1)


def _has_dip(profile: NDArray[np.floating[Any]]) -> bool:
    """Whether some depth is less than half as bright as what lies outside and inside of it."""
    for depth in range(2, min(DEEPEST_MM - 16, profile.size - 1)):
        rim = min(profile[:depth].max(), profile[depth + 1 : depth + 16].max())
        if rim > 0.25 and profile[depth] < 0.5 * rim:
            return True
    return False
