# SPDX-License-Identifier: Apache-2.0
"""Real heads with given brain masks: training data for brain extraction.

Each real head serves for many contrasts: its brightness goes through a drawn curve, what is dark
outside the brain (air, bone) stays dark.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import scipy.ndimage
import torch
from numpy.typing import NDArray

from bmex_bids.common.boxes import bounding_box
from bmex_bids.exceptions import UsageError
from bmex_bids.imaging.intensity import TOP, head_region, n4, rescale_robust
from bmex_bids.imaging.orientation import conform, load_image, voxel_sizes
from bmex_bids.imaging.resampling import resample_like
from bmex_bids.network.inference.headgrid import normalise, resize
from bmex_bids.training.synthesis import FIELD, HEAD_MM, Array, Grid, acquire, deform

REAL_MM = 1.5
#: heads of the development data that validate: a file whose name begins so never trains
VALIDATION_HEADS = ("child10", "ds000011_sub-14", "adult_stroke_M2265", "chris")
#: mm that are kept around the brain's box, (low, high) end of each axis, LPS
MARGINS_MM = ((45.0, 45.0), (45.0, 45.0), (80.0, 45.0))
#: knots of a curve of brightness; 1 is the brain's 98th percentile, fat lies above it
KNOTS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.6)
DARK = 0.3  # brightness below which what is outside the brain counts as air or bone

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class RealHead:
    """A head and its brain on the 1.5 mm grid, axes LPS.

    image : (X, Y, Z) float16, bias-corrected; air is 0, the brain's 98th percentile is 1
    brain : (X, Y, Z) uint8, fraction of brain, 0…255
    """

    name: str
    image: NDArray[np.float16]
    brain: NDArray[np.uint8]


def head_files(heads: Path, masks: Path, *, validating: bool = False) -> list[tuple[Path, Path]]:
    """Heads ``NAME.nii.gz`` that have a mask ``NAME_*.nii.gz``, with it.

    Parameters
    ----------
    heads, masks : folders
    validating : those that never train; else the others
    """
    found = []
    for path in sorted(heads.glob("*.nii.gz")):
        mask = sorted(masks.glob(f"{path.name.removesuffix('.nii.gz')}_*.nii.gz"))
        if mask and path.name.startswith(VALIDATION_HEADS) is validating:
            found.append((path, mask[0]))
    if not found and not validating:
        raise UsageError(
            f"expected heads NAME.nii.gz in {heads} and their masks NAME_*.nii.gz in {masks}, found "
            "no pair; name the folders with --heads and --masks"
        )
    return found


def load_real_head(path: Path, mask: Path) -> RealHead:
    """Read a head and its mask, correct the bias, and bring both to the 1.5 mm grid."""
    LOGGER.info("reading %s", path.name)
    image = conform(load_image(path))
    inside = resample_like(load_image(mask), image, order=1)
    zoom = tuple(step / REAL_MM for step in voxel_sizes(image.affine))
    data, brain = (_resized(part, zoom) for part in (image, inside))
    if not (brain > 0.5).any():
        raise UsageError(f"expected a mask on the head in {mask}, got none there; make it again")
    scaled, _ = rescale_robust(data)
    affine = np.diag([REAL_MM, REAL_MM, REAL_MM, 1.0])
    region = nib.Nifti1Image(head_region(scaled), affine)
    corrected, _ = n4(nib.Nifti1Image(scaled, affine), region)
    values = np.asarray(corrected.dataobj, dtype=np.float32) / np.float32(TOP)
    values /= np.percentile(values[brain > 0.5], 98)
    box = tuple(
        slice(max(side.start - round(low / REAL_MM), 0), side.stop + round(high / REAL_MM))
        for side, (low, high) in zip(bounding_box(brain > 0.5), MARGINS_MM, strict=True)
    )
    return RealHead(
        path.name.split(".")[0],
        values[box].astype(np.float16),
        np.rint(255 * brain[box].clip(0, 1)).astype(np.uint8),
    )


def _resized(image: nib.Nifti1Image, zoom: tuple[float, ...]) -> Array:
    data = np.array(image.dataobj, dtype=np.float32, order="C")  # torch takes no negative strides
    return np.asarray(resize(torch.from_numpy(data), zoom).numpy())


def scan_real(head: RealHead, rng: np.random.Generator) -> tuple[Array, Array, float]:
    """A real head in a drawn contrast, pose, size and quality, as :func:`~.synthesis.scan` has it.

    Returns
    -------
    image, brain : (X, Y, Z); image normalised as for the network, brain fraction 0…1
    spacing_mm : of both
    """
    brain = head.brain.astype(np.float32) / np.float32(255)
    image = repaint(head.image.astype(np.float32), brain, rng)
    scale = float(rng.uniform(0.8, 1.1) if rng.random() < 0.8 else rng.uniform(0.5, 0.8))
    spacing = scale * HEAD_MM * float(rng.uniform(0.85, 1.3))
    grid = Grid(FIELD, spacing)
    image, brain = deform(image, brain, rng, grid, scale=scale, source_mm=REAL_MM)
    return *acquire(image, brain, rng, spacing), spacing


def as_it_is(head: RealHead) -> tuple[Array, Array, float]:
    """A real head without any change, as :func:`scan_real` returns it."""
    image = normalise(torch.from_numpy(head.image.astype(np.float32)))
    return image.numpy(), head.brain.astype(np.float32) / np.float32(255), REAL_MM


def repaint(image: Array, brain: Array, rng: np.random.Generator) -> Array:
    """Another contrast of a T1w head: as it is, turned round (T2w, FLAIR), or any curve.

    Parameters
    ----------
    image, brain : (X, Y, Z), as in :class:`RealHead`, the brain 0…1

    Returns
    -------
    (X, Y, Z) brightness, about 0…1
    """
    kind = str(rng.choice(["as it is", "t2", "flair", "any"], p=[0.5, 0.2, 0.1, 0.2]))
    if kind == "as it is":
        return image
    levels = {
        "t2": (1.0, 0.75, 0.5, 0.4, 0.3, rng.uniform(0.2, 1)),
        "flair": (0.1, 0.3, 0.6, 0.5, 0.4, rng.uniform(0.2, 1)),
        "any": tuple(rng.uniform(0.05, 1, len(KNOTS))),
    }[kind]
    values = np.interp(image, KNOTS, np.array(levels) * rng.uniform(0.8, 1.2, len(KNOTS)))
    return np.asarray((1 - dark_share(image, brain, DARK)) * values, dtype=np.float32)


def dark_share(image: Array, brain: Array, level: float) -> Array:
    """Where an image is dark outside the brain, air and bone, as a smooth share 0…1.

    Parameters
    ----------
    image, brain : (X, Y, Z)
    level : brightness below which it is dark, by half at this value
    """
    smooth = scipy.ndimage.gaussian_filter(image, 0.7)
    dark = np.clip(1.5 - smooth / max(level, 1e-6), 0, 1)
    return np.asarray(dark * (1 - brain), dtype=np.float32)
