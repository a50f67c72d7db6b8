# SPDX-License-Identifier: Apache-2.0
"""Read an image, or say why not, and bring its axes into the working order.

Geometry is one affine (voxel → RAS+ mm, as nibabel has it) from start to end.  The working order
of axes is the one closest to LPS+ (right→left, anterior→posterior, inferior→superior: ITK's
identity direction); an oblique grid stays oblique.
"""

from __future__ import annotations

import errno
import gzip
import math
import stat
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.affines import from_matvec
from nibabel.filebasedimages import ImageFileError
from nibabel.openers import ImageOpener
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from numpy.typing import NDArray

from bmex_bids.exceptions import ImageError

WORKING_AXES = ("L", "P", "S")
#: RAS+ directions
DIRECTIONS = {
    letter: sign * np.eye(3)[axis]
    for axis, letters in enumerate(("RL", "AP", "SI"))
    for letter, sign in zip(letters, (1, -1), strict=True)
}
SMALLEST = 8  # voxels a side; fewer is no brain image
FEWEST_LEVELS = 16  # an image of 8 bits has a hundred and more
MOST_VOXELS = 2**30  # a head at 0.25 mm has half of that
MOST_PACKED = 1100  # deflate makes nothing smaller than 1/1032
SPARE_BYTES = 1 << 26  # that may follow an image
#: NIfTI's codes of units, as nibabel names them, and what a header in them must be divided by
UNITS = {"meter": ("metres", 1e-3), "micron": ("microns", 1e3)}
#: NIfTI's codes of where an image lies: scanner, aligned, Talairach, MNI152, another template
MOST_FORM_CODE = 5
#: first bytes of other formats that come under an image's name
OTHER_FORMATS = {
    b"PK\x03\x04": ("a ZIP archive", "unpack it"),
    b"\xfd7zXZ\0": ("a file compressed with xz", "unpack it, and compress it with gzip"),
    b"BZh": ("a file compressed with bzip2", "unpack it, and compress it with gzip"),
    b"\x28\xb5\x2f\xfd": ("a file compressed with zstd", "unpack it, and compress it with gzip"),
    b"\x89HDF": ("HDF5 (MINC 2 or MATLAB)", "convert it to NIfTI"),
    b"NRRD": ("NRRD", "convert it to NIfTI"),
    b"CDF": ("MINC 1", "convert it to NIfTI"),
}
MOST_SHEAR = 0.5  # cosine of the angle between two axes, 0 for a right angle


def load_image(path: str | Path) -> nib.Nifti1Image:
    """Read a three-dimensional image as float32.

    Parameters
    ----------
    path : a file that nibabel reads; trailing axes of length one are dropped

    Raises
    ------
    ImageError
        The file is missing, no file, unreadable, cut off or far too large; has several volumes;
        holds NaN or infinite values; is constant; or its affine cannot place it in space.
    """
    path = Path(path)
    fault = fault_of_file(path)
    if fault is not None:
        raise ImageError(fault)
    image: Any = _opened(path)
    _check_voxel_sizes(path)
    declared = _declared_bytes(image, path)
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused below
            data = np.asanyarray(image.dataobj)
        _check_compressed(path, declared)
    except MemoryError as error:
        raise ImageError(
            f"expected an image that fits into memory in {path}, got one of shape {image.shape}; "
            "give the run more memory, or resample the image"
        ) from error
    except (ImageFileError, OSError, EOFError, ValueError, zlib.error) as error:
        raise _unreadable(path, error) from error
    while data.ndim > 3 and data.shape[-1] == 1:
        data = data[..., 0]
    if data.ndim != 3:
        raise ImageError(
            f"expected a three-dimensional image in {path.name}, got shape {data.shape}; "
            "take one volume out of it (for example with nibabel's four_to_three) and use that"
        )
    if data.dtype.fields is not None or np.iscomplexobj(data):
        raise ImageError(
            f"expected real numbers in {path.name}, got voxels of type {data.dtype}; export the "
            "magnitude, or grey values instead of colours"
        )
    with np.errstate(over="ignore"):
        data = data.astype(np.float32)
    _check_values(data, path.name)
    return nib.Nifti1Image(data, _checked_affine(image, path.name))


def fault_of_file(path: Path) -> str | None:
    """Why nothing can be read from a path, without reading it; None where a file is there.

    A pipe or a device is refused: whoever reads one may wait, or read, for ever.
    """
    try:
        state = path.stat()
    except OSError as error:
        if not path.is_symlink():
            hint = "check the path, and inside a container the mounts"
        elif error.errno == errno.ELOOP:
            hint = "it is a link that leads back to itself: make it again"
        else:
            hint = (
                "it is a link to a file that is not here: run `datalad get` (or `git annex get`) "
                "on it"
            )
        return f"expected an image at {path}, found none; {hint}"
    if stat.S_ISREG(state.st_mode) and state.st_size > 0:
        return None
    what = "what is not a file (a pipe or a device)"
    if stat.S_ISREG(state.st_mode):
        what = "an empty file, damaged or cut off"
    elif stat.S_ISDIR(state.st_mode):
        what = "a folder"
    return (
        f"expected a complete NIfTI image at {path}, got {what}; put the image there, or take it "
        "out of the dataset"
    )


def _opened(path: Path) -> Any:
    """An image whose header was read, and nothing more."""
    try:
        image: Any = nib.load(path)
        fine = all(size > 0 for size in image.shape) and len(image.shape) > 0
    except Exception as error:  # whatever a damaged header makes a parser raise
        raise _unreadable(path, error) from error
    if not fine:
        raise ImageError(
            f"expected a NIfTI image in {path}, got a header with the shape {image.shape}; the "
            "header is damaged: convert the image again from DICOM"
        )
    return image


def _raw_header(path: Path) -> Any:
    """A NIfTI header as it is, before nibabel mends it; None where there is none."""
    try:
        image: Any = nib.load(path)
        if not isinstance(image, nib.Nifti1Pair):
            return None
        with ImageOpener(str(path)) as stream:
            return type(image.header).from_fileobj(stream, check=False)
    except Exception:  # noqa: BLE001 - that it cannot be read is said where it is read
        return None


def _check_voxel_sizes(path: Path) -> None:
    """Refuse voxel sizes of zero where nothing else says them; nibabel would make them 1 mm."""
    header = _raw_header(path)
    if header is None or _has_form(header, "sform"):
        return
    sizes = [float(size) for size in header["pixdim"][1:4]]
    if not all(sizes):
        raise ImageError(
            f"expected voxel sizes in {path.name}, got a header with pixdim {sizes} and without "
            "an sform; convert the image again from DICOM, or write its voxel sizes"
        )


def _has_form(header: Any, form: str) -> bool:
    """Whether a header says by sform or qform where the image lies: with a code of the standard."""
    return int(header[f"{form}_code"]) in range(1, MOST_FORM_CODE + 1)


def header_remarks(path: Path) -> tuple[str, ...]:
    """What is odd about where a NIfTI header says that an image lies; empty for a sound one.

    Parameters
    ----------
    path : of an image; one that cannot be read has no remarks
    """
    header = _raw_header(path)
    if header is None:
        return ()
    remarks = []
    qform, sform = _has_form(header, "qform"), _has_form(header, "sform")
    try:
        with np.errstate(all="ignore"):
            if not qform and not sform:
                remarks.append(
                    "the header has neither a valid sform nor a valid qform: the orientation was "
                    "guessed, and left and right may be exchanged"
                )
            elif qform and sform and not _same_place(header):
                remarks.append(
                    "the sform and the qform of the header differ: the sform is used, and the "
                    "results have it in both"
                )
    except Exception:  # noqa: BLE001 - a qform that makes no sense beside an sform that does
        remarks.append("the qform of the header is invalid: the sform is used")
    unit = _unit_of_length(header)
    if unit in UNITS:
        remarks.append(
            f"the header says that its lengths are in {UNITS[unit][0]}: they were taken for "
            "millimetres"
        )
    return tuple(remarks)


def _unit_of_length(header: Any) -> str:
    """As nibabel names it; ``unknown`` for a code that is none of the standard's."""
    try:
        return str(header.get_xyzt_units()[0])
    except (AttributeError, KeyError):
        return "unknown"


def _same_place(header: Any) -> bool:
    """Whether sform and qform put the corners of an image within half a voxel (or 1 mm)."""
    shape = np.array([int(n) for n in header.get_data_shape()[:3]])
    corners = np.array([[*(c * (shape - 1)), 1] for c in np.ndindex(2, 2, 2)]).T
    there = [form @ corners for form in (header.get_sform(), header.get_qform())]
    apart = float(np.abs(there[0] - there[1]).max())
    sizes = np.sqrt((header.get_sform()[:3, :3] ** 2).sum(axis=0))
    return apart <= max(1.0, 0.5 * float(sizes.max()))


def _unreadable(path: Path, error: Exception) -> ImageError:
    """The error for a file that is not an image, or not a whole one; it says what it is."""
    try:
        with path.open("rb") as stream:
            start = stream.read(256)
    except OSError:
        start = b"\0"
    packed = start.startswith(b"\x1f\x8b")
    other = next((said for magic, said in OTHER_FORMATS.items() if start.startswith(magic)), None)
    what = f"{type(error).__name__}: {' '.join(str(error).split())}"
    advice = "the file is damaged or cut off: copy or convert it again"
    if not start:
        what = "an empty file"
    elif b"annex/objects" in start:
        what, advice = "a pointer to a file that is not here", "run `datalad get` on it"
    elif start.startswith(b"version https://git-lfs"):
        what, advice = "a pointer to a file that is not here", "run `git lfs pull`"
    elif other is not None:
        what, advice = other
    elif start[128:132] == b"DICM":
        what, advice = "DICOM", "convert it with dcm2niix"
    elif start.isascii() and b"\0" not in start:
        begin = " ".join(start.decode("ascii").split())[:40]
        what, advice = f"text ({begin!r})", "put the image in its place"
    elif path.suffix == ".gz" and not packed:
        what = "a file that is not compressed"
        advice = "rename it to .nii if it is an image, or copy it again"
    elif path.suffix == ".nii" and packed:
        what, advice = "a compressed file", "rename it to .nii.gz"
    elif isinstance(error, ImageFileError):
        what = "what is not NIfTI"
        advice = "it is damaged, cut off or of another format: copy or convert it again"
    elif not isinstance(error, OSError | EOFError | zlib.error):
        what = f"an invalid header ({error})"
        advice = "convert the image again from DICOM"
    return ImageError(f"expected a complete NIfTI image in {path}, got {what}; {advice}")


def _declared_bytes(image: Any, path: Path) -> int:
    """Bytes up to the end of the voxels, by the header; ImageError where there cannot be as many.

    Nothing is read: a file of some kilobytes may declare what no machine can hold.
    """
    voxels = math.prod(int(size) for size in image.shape)
    offset = int(getattr(image.dataobj, "offset", 0))
    declared = voxels * int(image.get_data_dtype().itemsize) + offset
    size = path.stat().st_size
    most = size * MOST_PACKED if path.suffix in {".gz", ".mgz"} else size
    if declared > most:
        raise ImageError(
            f"expected a complete NIfTI image in {path}, got a header for {_size(declared)} and a "
            f"file that holds at most {_size(most)}; the file is damaged or cut off, or its header "
            "is wrong: copy or convert it again"
        )
    if voxels > MOST_VOXELS:
        raise ImageError(
            f"expected an image of at most {MOST_VOXELS} voxels in {path}, got one of shape "
            f"{image.shape}, too large for the memory; resample it"
        )
    return declared


def _size(count: int) -> str:
    """
    >>> _size(1500), _size(54 * 10**12)
    ('1.5 kB', '54000 GB')
    """
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= unit:
            return f"{round(count / unit, 1):g} {name}"
    return f"{count} bytes"


def _check_compressed(path: Path, declared: int) -> None:
    """Read a compressed file to its end: only there does gzip compare the checksum.

    Raises ImageError where there is far more than the header declares, so that a small file
    that unpacks to terabytes does not hold up a run.
    """
    if path.suffix == ".gz":
        read, most = 0, 2 * declared + SPARE_BYTES
        with gzip.open(path) as stream:
            while block := stream.read(1 << 20):
                read += len(block)
                if read > most:
                    raise ImageError(
                        f"expected {_size(declared)} of image in {path}, got more than its header "
                        f"says, {_size(most)} and still no end; convert it again"
                    )


def _check_values(data: np.ndarray[tuple[int, ...], np.dtype[np.float32]], name: str) -> None:
    if min(data.shape) < SMALLEST:
        raise ImageError(
            f"expected at least {SMALLEST} voxels along each axis of {name}, got shape "
            f"{data.shape}; a localiser or a part of an image cannot be enhanced"
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


def check_levels(image: nib.Nifti1Image, name: str) -> None:
    """Refuse an image with fewer than 16 different values: a mask, or a segmentation.

    Raises ImageError.  Not part of :func:`load_image`, which reads masks too.
    """
    data = np.asarray(image.dataobj)
    some = data.ravel()[:: max(1, data.size // 100_000)]
    if np.unique(some).size < FEWEST_LEVELS and np.unique(data).size < FEWEST_LEVELS:
        raise ImageError(
            f"expected an image with grey values in {name}, got {np.unique(data).size} different "
            "values in all: it is a mask or a segmentation; put the image in its place"
        )


def _checked_affine(image: nib.spatialimages.SpatialImage, name: str) -> NDArray[np.float64]:
    affine = np.asarray(image.affine, dtype=np.float64)
    finite = bool(np.isfinite(affine).all())
    spacing = np.sqrt((affine[:3, :3] ** 2).sum(axis=0)) if finite else np.zeros(3)
    volume = abs(float(np.linalg.det(affine[:3, :3]))) if finite else 0.0
    if (
        volume < 1e-3 * np.prod(spacing)
        or not spacing.all()
        or spacing.min() < 0.05
        or spacing.max() > 20
    ):
        what = (
            f"spacing {np.round(spacing, 4).tolist()} and volume {volume:.3g} mm³"
            if finite
            else "NaN or infinity in it"
        )
        raise ImageError(
            f"expected an affine with voxels of 0.05 to 20 mm in {name}, got {what}; "
            f"{_unit_hint(image, spacing)}"
        )
    axes = affine[:3, :3] / spacing
    shear = float(np.abs(axes.T @ axes - np.eye(3)).max())
    if shear > MOST_SHEAR:
        angle = float(np.degrees(np.arccos(min(shear, 1.0))))
        raise ImageError(
            f"expected an affine whose axes are at right angles in {name}, got a shear to "
            f"{angle:.0f}°; resample the image to a grid without shear, or convert it again"
        )
    return affine


def _unit_hint(image: nib.spatialimages.SpatialImage, spacing: NDArray[np.float64]) -> str:
    """What to do about voxels of an impossible size: they may be in another unit."""
    name, factor = UNITS.get(_unit_of_length(image.header), ("", 1.0))
    if name and 0.05 <= float(spacing.min()) / factor and float(spacing.max()) / factor <= 20:
        return f"its header is in {name}: write it in millimetres"
    return "its header (sform, qform, pixdim) is broken: convert it again from DICOM"


def conform(image: nib.Nifti1Image) -> nib.Nifti1Image:
    """Reorder and flip axes to the order closest to LPS+; voxels stay in their places."""
    change = ornt_transform(io_orientation(image.affine), axcodes2ornt(WORKING_AXES))
    result: nib.Nifti1Image = image.as_reoriented(change)
    return result


def turned(
    affine: NDArray[np.float64], turn: str, centre: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The affine of an image whose working axes lead elsewhere than it says.

    Parameters
    ----------
    affine : voxel → RAS+ mm
    turn : where the axes that it calls L, P and S lead, such as ``"RAS"``: a turn by right angles
    centre : of the turn, RAS+ mm
    """
    said, seen = (
        np.column_stack([DIRECTIONS[letter] for letter in letters])
        for letters in (WORKING_AXES, turn)
    )
    rotation = seen @ said.T
    if not np.isclose(np.linalg.det(rotation), 1):
        raise ValueError(f"expected a turn by right angles, got {turn}")
    return np.asarray(from_matvec(rotation, centre - rotation @ centre) @ affine)


def voxel_sizes(affine: NDArray[Any]) -> tuple[float, float, float]:
    """Edge lengths of a voxel in mm."""
    x, y, z = (float(v) for v in np.sqrt((np.asarray(affine)[:3, :3] ** 2).sum(axis=0)))
    return x, y, z
