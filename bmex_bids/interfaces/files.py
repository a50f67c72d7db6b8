# SPDX-License-Identifier: Apache-2.0
"""Reading and writing the images that travel between nodes."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from bmex_bids.common.replacing import put_in_place
from bmex_bids.imaging.orientation import voxel_sizes
from bmex_bids.imaging.resampling import rigid_affine

#: mm by which a qform or a sum of voxel sizes may differ from the affine: it was rounded
ROUNDED_MM = 0.01


def read(path: str | Path, dtype: Any = "float32") -> nib.Nifti1Image:
    """An image that another node wrote, with its data in memory as ``dtype``."""
    image: Any = nib.load(path)
    return nib.Nifti1Image(np.asarray(image.dataobj).astype(dtype, copy=False), image.affine)


def data_of(image: nib.Nifti1Image) -> NDArray[Any]:
    """The voxels of an image in memory."""
    return np.asanyarray(image.dataobj)


def with_data(data: NDArray[Any], like: nib.Nifti1Image) -> nib.Nifti1Image:
    """New voxels on the grid of another image."""
    return nib.Nifti1Image(data, like.affine)


def write(image: nib.Nifti1Image, folder: str | Path, name: str) -> str:
    """Save an image as ``folder/name`` and return its absolute path."""
    path = Path(folder).absolute() / name
    temporary = path.with_name(f".{os.getpid()}.{name}")
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, temporary)
    put_in_place(temporary, path)
    return str(path)


def on_original_grid(data: NDArray[Any], original: str | Path, dtype: Any) -> nib.Nifti1Image:
    """Voxels on the grid of a raw image, with its affine, qform and sform and their codes.

    Where the raw image's qform or voxel sizes contradict its sform, they are made to agree with
    it: some programs read the one, some the other.

    Parameters
    ----------
    data : (X, Y, Z), the first three axes of the raw image
    original : the raw image; of its header, only what says where it lies is kept
    dtype : of the file that will be written
    """
    raw: Any = nib.load(original)
    header = nib.Nifti1Header.from_header(raw.header)
    header.extensions.clear()
    for key in ("descrip", "aux_file", "intent_name", "db_name"):
        header[key] = b""
    for key in ("intent_code", "cal_max", "cal_min", "slice_duration", "toffset"):
        header[key] = 0
    header.set_data_dtype(dtype)
    header.set_xyzt_units("mm", "sec")
    image = nib.Nifti1Image(np.asarray(data, dtype=dtype), raw.affine, header)
    code = int(image.header["sform_code"])
    if code > 0 and not _agrees_with_sform(image):
        qform = rigid_affine(image.shape, image.affine)
        image.set_qform(qform, code if image.header["qform_code"] > 0 else 0)
    return image


def _agrees_with_sform(image: nib.Nifti1Image) -> bool:
    """Whether the qform (where it counts) and the voxel sizes say what the sform says."""
    sizes, shape = np.array(voxel_sizes(image.affine)), np.array(image.shape)
    if (np.abs(image.header.get_zooms()[:3] - sizes) * shape).max() > ROUNDED_MM:
        return False
    if image.header["qform_code"] <= 0:
        return True
    try:
        qform = image.header.get_qform()
    except (HeaderDataError, ValueError):
        return False
    wanted = rigid_affine(image.shape, image.affine)
    corners = np.array([(*(corner * (shape - 1)), 1) for corner in np.ndindex(2, 2, 2)])
    return bool(np.abs(corners @ (qform - wanted).T).max() <= ROUNDED_MM)


def with_codes_of(image: nib.Nifti1Image, original: str | Path) -> nib.Nifti1Image:
    """An image on another grid, which says in the raw image's code to what its place refers.

    The grid's axes are at right angles, so that sform and qform say the same.

    Where the raw image has no code, nothing is claimed.
    """
    raw: Any = nib.load(original)
    codes = [int(raw.header[key]) for key in ("sform_code", "qform_code") if key in raw.header]
    code = next((code for code in codes if code > 0), 0)
    if code:
        image.set_sform(image.affine, code)
        image.set_qform(image.affine, code)
    return image


def voxel_count(path: str | Path, spacing_mm: float | None = None) -> int | None:
    """Voxels of a raw image by its header, at its own or the working spacing: the larger number.

    Without a spacing, at its own.  None where the header cannot be read.
    """
    size = header_of(path)
    if size is None:
        return None
    shape, zooms = size
    count = math.prod(shape)
    if spacing_mm is None:
        return count
    return max(count, round(count * math.prod(zooms) / spacing_mm**3))


def header_of(path: str | Path) -> tuple[tuple[int, ...], tuple[float, ...]] | None:
    """The first three axes of an image: voxels along each, and their sizes in mm.

    None where there is no file, or no header that makes sense.
    """
    if not Path(path).is_file():  # a pipe would be waited for
        return None
    try:
        image: Any = nib.load(path)
        shape = tuple(int(n) for n in image.shape[:3])
        zooms = tuple(map(float, nib.affines.voxel_sizes(image.affine)))
    except Exception:  # noqa: BLE001 - whatever a damaged header makes a parser raise
        return None
    if len(shape) < 3 or min(shape) < 1 or not all(0 < zoom < math.inf for zoom in zooms):
        return None
    return shape, zooms


def geometry_of(path: str | Path) -> dict[str, Any]:
    """The grid of a raw image, as a sidecar holds it: voxels, their sizes in mm, axes as stored."""
    size = header_of(path)
    if size is None:
        return {}
    image: Any = nib.load(path)
    return {
        "Shape": list(size[0]),
        "VoxelSizes": [round(zoom, 4) for zoom in size[1]],
        "Orientation": "".join(map(str, nib.aff2axcodes(image.affine))),
    }
