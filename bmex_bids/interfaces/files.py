# SPDX-License-Identifier: Apache-2.0
"""Reading and writing the images that travel between nodes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import nibabel as nib
    from numpy.typing import NDArray


def read(path: str | Path, dtype: Any = "float32") -> nib.Nifti1Image:
    """An image that another node wrote, with its data in memory as ``dtype``."""
    import nibabel as nib
    import numpy as np

    image: Any = nib.load(path)
    return nib.Nifti1Image(np.asarray(image.dataobj).astype(dtype, copy=False), image.affine)


def data_of(image: nib.Nifti1Image) -> NDArray[Any]:
    """The voxels of an image in memory."""
    import numpy as np

    return np.asanyarray(image.dataobj)


def with_data(data: NDArray[Any], like: nib.Nifti1Image) -> nib.Nifti1Image:
    """New voxels on the grid of another image."""
    import nibabel as nib

    return nib.Nifti1Image(data, like.affine)


def write(image: nib.Nifti1Image, folder: str | Path, name: str) -> str:
    """Save an image as ``folder/name`` and return its absolute path."""
    import nibabel as nib

    path = Path(folder).absolute() / name
    temporary = path.with_name(f".{os.getpid()}.{name}")
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, temporary)
    temporary.replace(path)
    return str(path)


def on_original_grid(data: NDArray[Any], original: str | Path, dtype: Any) -> nib.Nifti1Image:
    """Voxels on the grid of a raw image, with its affine, qform and sform and their codes.

    Parameters
    ----------
    data : (X, Y, Z), the first three axes of the raw image
    original : the raw image; of its header, only what says where it lies is kept
    dtype : of the file that will be written
    """
    import nibabel as nib
    import numpy as np

    raw: Any = nib.load(original)
    header = nib.Nifti1Header.from_header(raw.header)
    header.extensions.clear()
    for key in ("descrip", "aux_file", "intent_name", "db_name"):
        header[key] = b""
    for key in ("intent_code", "cal_max", "cal_min", "slice_duration", "toffset"):
        header[key] = 0
    header.set_data_dtype(dtype)
    header.set_xyzt_units("mm", "sec")
    return nib.Nifti1Image(np.asarray(data, dtype=dtype), raw.affine, header)


def voxel_count(path: str | Path, spacing_mm: float) -> int | None:
    """Voxels of a raw image by its header, at its own or the working spacing: the larger number.

    None where the header cannot be read.
    """
    import math

    import nibabel as nib
    from nibabel.filebasedimages import ImageFileError

    try:
        header: Any = nib.load(path).header
        count = math.prod(header.get_data_shape()[:3])
        volume = math.prod(float(size) for size in header.get_zooms()[:3])
    except (ImageFileError, OSError, EOFError, ValueError):
        return None
    return max(count, round(count * volume / spacing_mm**3))
