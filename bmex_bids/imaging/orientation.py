# SPDX-License-Identifier: Apache-2.0
"""Read an image, or say why not, and bring its axes into the working order.

Geometry is one affine (voxel → RAS+ mm, as nibabel has it) from start to end.  The working order
of axes is the one closest to LPS+ (right→left, anterior→posterior, inferior→superior: ITK's
identity direction); an oblique grid stays oblique.
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from numpy.typing import NDArray

from bmex_bids.exceptions import ImageError

WORKING_AXES = ("L", "P", "S")
SMALLEST = 8  # voxels a side; fewer is no brain image


def load_image(path: str | Path) -> nib.Nifti1Image:
    """Read a three-dimensional image as float32.

    Parameters
    ----------
    path : a file that nibabel reads; trailing axes of length one are dropped

    Raises
    ------
    ImageError
        The file is missing, unreadable or cut off; has several volumes; holds NaN or infinite
        values; is constant; or its affine cannot place it in space.
    """
    path = Path(path)
    if not path.exists():
        hint = (
            "it is a link to a file that is not here: run `datalad get` (or `git annex get`) on it"
            if path.is_symlink()
            else "check the path, and inside a container the mounts"
        )
        raise ImageError(f"expected an image at {path}, found none; {hint}")
    try:
        image: Any = nib.load(path)
        data = np.asanyarray(image.dataobj)
        _check_compressed(path)
    except (ImageFileError, OSError, EOFError, ValueError, zlib.error) as error:
        raise ImageError(
            f"expected a complete NIfTI image in {path}, got {type(error).__name__}: {error}; "
            "the file is damaged or cut off: copy or convert it again"
        ) from error
    while data.ndim > 3 and data.shape[-1] == 1:
        data = data[..., 0]
    if data.ndim != 3:
        raise ImageError(
            f"expected a three-dimensional image in {path.name}, got shape {data.shape}; "
            "take one volume out of it (for example with nibabel's four_to_three) and use that"
        )
    if data.dtype.fields is not None or np.iscomplexobj(data):
        raise ImageError(f"expected real numbers in {path.name}, got voxels of type {data.dtype}")
    data = data.astype(np.float32)
    _check_values(data, path.name)
    return nib.Nifti1Image(data, _checked_affine(image, path.name))


def _check_compressed(path: Path) -> None:
    """Read a compressed file to its end: only there does gzip compare the checksum."""
    if path.suffix == ".gz":
        with gzip.open(path) as stream:
            while stream.read(1 << 20):
                pass


def _check_values(data: np.ndarray[tuple[int, ...], np.dtype[np.float32]], name: str) -> None:
    if min(data.shape) < SMALLEST:
        raise ImageError(
            f"expected at least {SMALLEST} voxels along each axis of {name}, got shape "
            f"{data.shape}"
        )
    bad = int(data.size - np.isfinite(data).sum())
    if bad:
        raise ImageError(
            f"expected finite numbers in {name}, got {bad} voxels that are NaN or infinite; "
            "replace them (for example `fslmaths IN -nan OUT`) and find out where they come from"
        )
    low, high = float(data.min()), float(data.max())
    if low == high:
        what = "zero" if low == 0 else f"the constant {low:g}"
        raise ImageError(f"expected an image in {name}, got {what} everywhere; export it again")


def _checked_affine(image: nib.spatialimages.SpatialImage, name: str) -> NDArray[np.float64]:
    affine = np.asarray(image.affine, dtype=np.float64)
    spacing = (
        np.sqrt((affine[:3, :3] ** 2).sum(axis=0)) if np.isfinite(affine).all() else np.zeros(3)
    )
    volume = abs(np.linalg.det(affine[:3, :3])) if spacing.all() else 0.0
    if (
        volume < 1e-3 * np.prod(spacing)
        or not spacing.all()
        or spacing.min() < 0.05
        or spacing.max() > 20
    ):
        raise ImageError(
            f"expected an affine with voxels of 0.05 to 20 mm in {name}, got spacing "
            f"{np.round(spacing, 4).tolist()} and volume {volume:.3g} mm³; its header (sform, "
            "qform, pixdim) is broken: convert it again from DICOM"
        )
    return affine


def conform(image: nib.Nifti1Image) -> nib.Nifti1Image:
    """Reorder and flip axes to the order closest to LPS+; voxels stay in their places."""
    change = ornt_transform(io_orientation(image.affine), axcodes2ornt(WORKING_AXES))
    result: nib.Nifti1Image = image.as_reoriented(change)
    return result


def voxel_sizes(affine: NDArray[Any]) -> tuple[float, float, float]:
    """Edge lengths of a voxel in mm."""
    x, y, z = (float(v) for v in np.sqrt((np.asarray(affine)[:3, :3] ** 2).sum(axis=0)))
    return x, y, z
