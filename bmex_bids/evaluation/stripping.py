# SPDX-License-Identifier: Apache-2.0
"""Our brain masks of real heads beside those of another stripper, in figures and pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from bmex_bids.common.boxes import bounding_box
from bmex_bids.exceptions import UsageError
from bmex_bids.imaging.orientation import conform, load_image, voxel_sizes
from bmex_bids.imaging.resampling import resample_like
from bmex_bids.interfaces.files import data_of, write
from bmex_bids.interfaces.preprocess import correct_head
from bmex_bids.interfaces.stripping import network_mask
from bmex_bids.network.inference.deepbet import deepbet_record
from bmex_bids.network.weights.registry import WeightRecord
from bmex_bids.outputs.files import write_whole

Mask = NDArray[np.bool_]

#: mm: tissue this far inside the other's mask is surely brain
DEEP_MM = 3.0
#: of the brain's median: in a T1w image fluid is darker, tissue brighter (fluid in eleven heads:
#: 0.2 to 0.5, cortex 0.7 and more)
TISSUE_SHARE = 0.6
#: heights of the axial slices of a picture, as shares of the brain's
HEIGHTS = (0.3, 0.55, 0.8)


@dataclass(frozen=True)
class Agreement:
    """Two masks of one head.

    Attributes
    ----------
    dice : overlap, 0…1
    litres, other_litres : volumes of ours and of the other's
    lost_ml : what lies more than :data:`DEEP_MM` inside the other's mask and not in ours
    lost_tissue_ml : of that, what is bright in a T1w image; all of it where no image was given
    added_ml : what is in ours and not in the other's
    distance_mm, distance_95_mm : of our surface from the other's, mean and 95th percentile
    inside_mm : mean depth of our surface inside the other's mask; below 0 it lies outside
    """

    dice: float
    litres: float
    other_litres: float
    lost_ml: float
    lost_tissue_ml: float
    added_ml: float
    distance_mm: float
    distance_95_mm: float
    inside_mm: float


def agreement(
    ours: Mask,
    other: Mask,
    spacing: tuple[float, ...],
    t1w: NDArray[np.floating[Any]] | None = None,
) -> Agreement:
    """Compare two masks.

    Parameters
    ----------
    ours, other : (X, Y, Z), on one grid
    spacing : mm
    t1w : (X, Y, Z), any unit; tells tissue from the fluid of the cisterns, which strippers cut off
        at different places
    """
    if not (ours.any() and other.any()):
        raise UsageError("expected two masks with voxels in them, got an empty one")
    box = bounding_box(ours | other, margin=1)
    a, b = (np.pad(mask[box], 1) for mask in (ours, other))
    millilitres = float(np.prod(spacing)) / 1e3
    depth = scipy.ndimage.distance_transform_edt(b, sampling=spacing)
    height = scipy.ndimage.distance_transform_edt(~b, sampling=spacing)
    lost = (depth > DEEP_MM) & ~a
    tissue = lost
    if t1w is not None and (ours & other).any():
        bright = np.pad(t1w[box] > TISSUE_SHARE * np.median(t1w[ours & other]), 1)
        tissue = lost & bright
    half = 0.5 * min(spacing)  # distances are to centres of voxels, the surface lies between
    surface = a & ~scipy.ndimage.binary_erosion(a)
    signed = np.where(b, depth - half, half - height)[surface] - half
    return Agreement(
        dice=float(2 * (a & b).sum() / (a.sum() + b.sum())),
        litres=float(a.sum()) * millilitres / 1e3,
        other_litres=float(b.sum()) * millilitres / 1e3,
        lost_ml=float(lost.sum()) * millilitres,
        lost_tissue_ml=float(tissue.sum()) * millilitres,
        added_ml=float((a & ~b).sum()) * millilitres,
        distance_mm=float(np.abs(signed).mean()),
        distance_95_mm=float(np.percentile(np.abs(signed), 95)),
        inside_mm=float(signed.mean()),
    )


def head_rows(
    heads: Sequence[Path],
    record: WeightRecord,
    *,
    masks: Path | None,
    out: Path,
    device: str = "auto",
    threads: int = 1,
) -> Iterator[tuple[str, Agreement | None]]:
    """Strip heads with a network, and compare with the other's masks.

    Parameters
    ----------
    heads : NIfTI images
    record : of a stripping network
    masks : folder with the other's masks, ``NAME_*.nii.gz``; None asks deepbet, for T1w heads
    out : folder for our masks and for the pictures, ``NAME_mask.nii.gz`` and ``NAME.png``

    Yields
    ------
    name, agreement : None where there is no other mask
    """
    out.mkdir(parents=True, exist_ok=True)
    for path in heads:
        name = path.name.removesuffix(".gz").removesuffix(".nii")
        corrected, _, _ = correct_head(conform(load_image(path)))
        mask, _ = network_mask(corrected, record, device=device, threads=threads)
        ours = data_of(mask) > 0
        other = other_mask(name, corrected, masks, device=device, threads=threads)
        write(mask, out, f"{name}_mask.nii.gz")
        draw(out / f"{name}.png", data_of(corrected), ours, other, voxel_sizes(mask.affine))
        t1w = data_of(corrected) if name.endswith("T1w") else None
        yield (
            name,
            None if other is None else agreement(ours, other, voxel_sizes(mask.affine), t1w),
        )


def other_mask(
    name: str, head: nib.Nifti1Image, masks: Path | None, *, device: str, threads: int
) -> Mask | None:
    """The other stripper's mask on the grid of a head; None where there is none."""
    if masks is not None:
        found = sorted(masks.glob(f"{name}_*.nii.gz"))
        if not found:
            return None
        return np.asarray(data_of(resample_like(load_image(found[0]), head, order=1)) > 0.5)
    if not name.endswith("T1w"):
        return None
    mask, _ = network_mask(head, deepbet_record(), device=device, threads=threads)
    return np.asarray(data_of(mask) > 0)


def draw(
    path: Path,
    head: NDArray[np.floating[Any]],
    ours: Mask,
    other: Mask | None,
    spacing: tuple[float, ...],
) -> None:
    """Five slices of a head with our outline (red) and the other's (green), as a PNG file."""
    from matplotlib.figure import Figure

    box = bounding_box(ours if other is None else ours | other)
    low, high = box[2].start, box[2].stop
    middle = [(side.start + side.stop) // 2 for side in box]
    cuts = [(2, int(low + share * (high - low))) for share in HEIGHTS]
    cuts += [(0, middle[0] + round(6 / spacing[0])), (1, middle[1])]
    figure = Figure(figsize=(15, 3.4), layout="constrained", facecolor="black")
    top = float(np.percentile(head[ours], 99.5))
    for axes, (axis, index) in zip(figure.subplots(1, len(cuts)), cuts, strict=True):
        across, up = (size for k, size in enumerate(spacing) if k != axis)
        origin = "upper" if axis == 2 else "lower"  # LPS: anterior, or superior, on top

        def flat(volume: NDArray[Any], axis: int = axis, index: int = index) -> NDArray[Any]:
            return np.take(volume, index, axis=axis).T

        axes.imshow(flat(head), cmap="gray", vmin=0, vmax=top, aspect=up / across, origin=origin)
        for mask, colour in ((ours, "red"), (other, "lime")):
            if mask is not None and flat(mask).any():
                axes.contour(flat(mask).astype(float), [0.5], colors=colour, linewidths=0.8)
        axes.axis("off")

    def fill(temporary: Path) -> None:
        figure.savefig(temporary, format="png", dpi=80, facecolor="black")

    write_whole(path, fill)
