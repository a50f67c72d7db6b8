# SPDX-License-Identifier: Apache-2.0
"""Find the brain in a head with a network: ours, LifespanStrip's, or deepbet's."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.orientations import axcodes2ornt, ornt_transform

from bmex_bids.exceptions import MaskError
from bmex_bids.imaging.background import without_brightness
from bmex_bids.imaging.intensity import TOP, match_whole
from bmex_bids.imaging.likeness import TOWARDS, Likeness, likeness, no_brain
from bmex_bids.imaging.mask import clean_mask, cut_sides, hysteresis_mask, open_mask
from bmex_bids.imaging.orientation import voxel_sizes
from bmex_bids.imaging.resampling import resample_like, resample_to_spacing
from bmex_bids.imaging.slab import part_score
from bmex_bids.interfaces.files import data_of, with_data
from bmex_bids.network.inference import deepbet
from bmex_bids.network.inference.lifespanstrip import (
    DIVISOR,
    GRID_MM,
    head_probability,
)
from bmex_bids.network.inference.stripper import brain_probability
from bmex_bids.network.weights.registry import WeightRecord
from bmex_bids.network.weights.template import template_values
from bmex_bids.outputs.records import MaskMethod

NO_TEMPLATE = (
    "LifespanStrip's histogram template is not in the weights folder. The head was scaled to "
    "0…10000 instead, which differs from its training: check the mask. Put template.hdr and "
    "template.img of its project beside its weights"
)


def network_mask(
    corrected: nib.Nifti1Image, record: WeightRecord, *, device: str, threads: int
) -> tuple[nib.Nifti1Image, dict[str, Any]]:
    """The brain in a head, and how it was found.

    Parameters
    ----------
    corrected : LPS, 0…1000, N4 over the head; what lies outside the range is clipped
    record : of a stripping network
    device, threads : as for :func:`bmex_bids.network.inference.predict.enhance`

    Returns
    -------
    mask, info : uint8 on the head's grid; ``method``, ``weights`` …, and ``notes``, a list
    """
    clipped = np.clip(data_of(corrected), 0, TOP)
    corrected = with_data(without_brightness(clipped, voxel_sizes(corrected.affine)), corrected)
    if record.variant == "lifespanstrip":
        mask, notes, extra = _lifespanstrip(corrected, record, device=device, threads=threads)
    elif record.variant == deepbet.VARIANT:
        mask, notes, extra = _deepbet(corrected, device=device, threads=threads), [], {}
    else:
        mask, notes, extra = _own(corrected, record, device=device, threads=threads), [], {}
    return mask, {
        "method": MaskMethod.NETWORK.value,
        "weights": record.name,
        "weights_sha256": record.sha256,
        "weights_licence": record.licence,
        "weights_source": record.source,
        **extra,
        "notes": notes,
    }


#: a stripping network's mask may end so far from the border at which a brain is cut off
NETWORK_SHORT_MM = 6.0
NO_BRAIN = (
    "expected an image with a brain in it, found no brain: {reason}; look at the image, and take "
    "it out of the dataset. If there is a brain, give a mask of your own with --derivatives"
)


#: variant of our own stripping network
OWN = "bmex-strip"
#: ways to hold an image, each with another direction up; the axes are those of its header
HOLDS = ("LAI", "LSA", "LIP", "IPL", "SPR")


def compare(
    image: nib.Nifti1Image,
    mask: nib.Nifti1Image,
    *,
    found_here: bool,
    within_mm: float,
    look_again: Callable[[Likeness], Likeness] | None = None,
) -> Likeness | None:
    """How much what lies in a mask looks like a brain; None where that cannot be measured.

    Parameters
    ----------
    image : LPS, bias-corrected over the head
    mask : on its grid
    found_here : nobody has said that there is a brain
    within_mm : as for :func:`bmex_bids.imaging.mask.cut_sides`
    look_again : :func:`held_otherwise`, for a mask in which no turn is clear

    Raises
    ------
    MaskError
        There is no brain in a mask that was found here.
    """
    inside, spacing = data_of(mask) > 0, voxel_sizes(image.affine)
    like = likeness(data_of(image), inside, spacing)
    if like is None:
        return like
    if look_again is not None and not like.is_clear:
        like = look_again(like)
    if found_here:
        top = "top" in cut_sides(inside, spacing, within_mm=within_mm)
        part = partial(part_score, data_of(image), inside, spacing) if top else None
        reason = no_brain(like, part)
        if reason is not None:
            raise MaskError(NO_BRAIN.format(reason=reason))
    return like


def held_otherwise(
    like: Likeness, corrected: nib.Nifti1Image, record: WeightRecord, *, device: str, threads: int
) -> Likeness:
    """Look for the brain in a head that is held otherwise than its header says.

    In a head that is upside down or lies on its side, the stripping network finds no brain, or
    parts of one.

    Parameters
    ----------
    like : what was found as the header has it, in which no turn is clear
    corrected : as for :func:`network_mask`
    record : of our own stripping network

    Returns
    -------
    what is clearly a brain, its turns those of the axes of ``corrected``; else ``like``
    """
    best = like
    for axes in HOLDS:
        change = ornt_transform(axcodes2ornt(TOWARDS), axcodes2ornt(axes))
        held = corrected.as_reoriented(change)
        data, spacing = np.clip(data_of(held), 0, TOP), voxel_sizes(held.affine)
        probability = brain_probability(
            data, spacing, record, twice=False, device=device, threads=threads
        )
        found = likeness(data, probability > 0.5, spacing)
        if found is None or not found.is_clear:
            continue
        if not best.is_clear or found.fits[0].score > best.fits[0].score:
            best = found.held(axes)
    return best


def _own(
    corrected: nib.Nifti1Image, record: WeightRecord, *, device: str, threads: int
) -> nib.Nifti1Image:
    probability = brain_probability(
        data_of(corrected), voxel_sizes(corrected.affine), record, device=device, threads=threads
    )
    found = hysteresis_mask(probability, voxel_sizes(corrected.affine))
    if not found.any():
        raise MaskError(NO_BRAIN.format(reason="the stripping network marks nothing"))
    return clean_mask(with_data(found.astype(np.uint8), corrected))


def _deepbet(corrected: nib.Nifti1Image, *, device: str, threads: int) -> nib.Nifti1Image:
    found = deepbet.deepbet_mask(
        data_of(corrected), corrected.affine, device=device, threads=threads
    )
    return clean_mask(with_data(found.astype(np.uint8), corrected))


def _lifespanstrip(
    corrected: nib.Nifti1Image, record: WeightRecord, *, device: str, threads: int
) -> tuple[nib.Nifti1Image, list[str], dict[str, Any]]:
    """As the release does it: 1.6 mm, its template's histogram, windows, opening."""
    small = resample_to_spacing(corrected, GRID_MM, order=1)
    head = data_of(small)
    if record.companion is not None:
        fed, notes = match_whole(head, template_values(record.companion)), []
        extra = {"template": record.companion.name}
    else:
        fed, notes = head * np.float32(DIVISOR / TOP), [NO_TEMPLATE]
        extra = {"template": "none"}
    probability = head_probability(fed, record.path, device=device, threads=threads)
    back = resample_like(with_data(probability, small), corrected, order=1)
    return open_mask(with_data((data_of(back) > 0.5).astype(np.uint8), back)), notes, extra
