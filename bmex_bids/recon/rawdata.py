# SPDX-License-Identifier: Apache-2.0
"""Raw data as their files have them, brought to one form: fastMRI HDF5 and ISMRMRD.

fastMRI's files hold Cartesian k-space and an ISMRMRD header, but not where the slices lie: their
orientation is assumed (:data:`ASSUMED_AXES`).  ISMRMRD's acquisitions say it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.affines import from_matvec
from numpy.typing import NDArray

from bmex_bids.exceptions import ImageError
from bmex_bids.recon.coils import Complex, centred_inverse, library

#: directions in which rows, columns and slices are counted, where a file does not say it: an axial
#: slice, nose up, as radiologists look at it
ASSUMED_AXES = "PLS"
#: of acquisitions that are no part of the image
LEFT_OUT = (
    "ACQ_IS_NOISE_MEASUREMENT", "ACQ_IS_NAVIGATION_DATA", "ACQ_IS_PHASECORR_DATA",
    "ACQ_IS_HPFEEDBACK_DATA", "ACQ_IS_DUMMYSCAN_DATA", "ACQ_IS_RTFEEDBACK_DATA",
    "ACQ_IS_SURFACECOILCORRECTIONSCAN_DATA",
)  # fmt: skip
#: counters that may not vary: which of them would be the image?
SINGLE = ("contrast", "phase", "repetition", "set")


@dataclass(frozen=True)
class RawData:
    """Cartesian k-space of parallel slices.

    Attributes
    ----------
    kspace : (slices, R, H, W), centred; H is the readout, W the phase encoding; 0 where nothing
        was measured
    mask : (W,), lines that were measured
    shape : (rows, columns) of the image: the middle of (H, W), for readouts are oversampled
    affine : 4×4, voxel (row, column, slice) of that image → RAS+ mm
    assumed : whether the orientation is assumed
    facts : of the scan, by BIDS names
    """

    kspace: Complex
    mask: NDArray[np.bool_]
    shape: tuple[int, int]
    affine: NDArray[np.float64]
    assumed: bool
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def acceleration(self) -> float:
        """All lines over those that were measured."""
        return len(self.mask) / max(int(self.mask.sum()), 1)


def read(path: Path, axes: str = ASSUMED_AXES) -> RawData:
    """Read a file of either format.

    Parameters
    ----------
    path : HDF5 with ``kspace`` (fastMRI) or ``dataset/data`` (ISMRMRD)
    axes : directions of rows, columns and slices, as ``"PLS"``, where the file does not say them

    Raises
    ------
    ImageError
        It cannot be read, or holds something else than one Cartesian image of slices.
    """
    h5py = library("h5py")
    try:
        with h5py.File(path, "r") as file:
            if "kspace" in file:
                return _fastmri(file, path, axes)
            if "dataset" in file and "data" in file["dataset"]:
                return _ismrmrd(file["dataset"], path)
            found = ", ".join(sorted(file)) or "nothing"
    except OSError as error:
        raise ImageError(
            f"expected an HDF5 file at {path}, got: {error}; check the path"
        ) from error
    raise ImageError(
        f"expected 'kspace' (fastMRI) or 'dataset/data' (ISMRMRD) in {path.name}, found {found}; "
        "convert the data to one of these formats"
    )


# ---------------------------------------------------------------- fastMRI
def _fastmri(file: Any, path: Path, axes: str) -> RawData:
    kspace = np.asarray(file["kspace"])
    if kspace.ndim == 3:  # one coil
        kspace = kspace[:, None]
    if kspace.ndim != 4 or not np.iscomplexobj(kspace):
        raise ImageError(
            f"expected complex k-space of slices, coils, rows and columns in {path.name}, got "
            f"{kspace.dtype} of shape {kspace.shape}"
        )
    kspace = kspace.astype(np.complex64)
    height, width = kspace.shape[-2:]
    shape, facts = (height, width), dict[str, Any]()
    spacing: tuple[float, ...] = (1.0, 1.0, 1.0)
    if "ismrmrd_header" in file:
        header = _header(file["ismrmrd_header"][()])
        shape, spacing = _grid(header, height, width)
        facts = _facts(header)
    affine = _affine_of_axes(axes, (*shape, len(kspace)), spacing)
    return RawData(kspace, _lines(kspace, path), shape, affine, True, facts)


def _affine_of_axes(
    axes: str, shape: tuple[int, ...], spacing: tuple[float, ...]
) -> NDArray[np.float64]:
    """Affine whose world centre is the centre of the grid."""
    signs = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
    matrix = np.zeros((3, 3))
    for column, letter in enumerate(axes):
        row, sign = signs[letter]
        matrix[row, column] = sign * spacing[column]
    middle = (np.array(shape) - 1) / 2
    return np.asarray(from_matvec(matrix, -matrix @ middle))


# ---------------------------------------------------------------- ISMRMRD
def _ismrmrd(group: Any, path: Path) -> RawData:
    if "xml" not in group:
        raise ImageError(f"expected an ISMRMRD header in {path.name}, found none")
    header = _header(group["xml"][0])
    encoding = header.encoding[0]
    if _word(encoding.trajectory) != "cartesian":
        raise ImageError(
            f"expected Cartesian sampling in {path.name}, got {_word(encoding.trajectory)}"
        )
    acquisitions = group["data"][:]
    heads = acquisitions["head"]
    constants = library("ismrmrd.constants")
    bits = sum(1 << (getattr(constants, name) - 1) for name in LEFT_OUT)
    used = (heads["flags"] & np.uint64(bits)) == 0
    used &= heads["encoding_space_ref"] == 0
    if not used.any():
        raise ImageError(f"expected acquisitions of an image in {path.name}, found none")
    heads, lines = heads[used], acquisitions["data"][used]
    for name in SINGLE:
        if len(np.unique(heads["idx"][name])) > 1:
            raise ImageError(
                f"expected one {name} in {path.name}, found "
                f"{len(np.unique(heads['idx'][name]))}; write each into a file of its own"
            )
    kspace = _sorted(encoding, heads, lines, path)
    volume = kspace.shape[2] > 1  # slices by a third encoding
    if volume:
        if not (np.abs(kspace).sum((0, 1, 3, 4)) > 0).all():
            raise ImageError(
                f"expected all partitions in {path.name}, found some that were not measured; "
                "a 3-D scan may be accelerated along its lines only"
            )
        kspace = np.swapaxes(centred_inverse(kspace, (2,)), 1, 2)[0]
    else:
        kspace = kspace[:, :, 0]
    shape, spacing = _grid(header, *kspace.shape[-2:])
    affine, order = _affine(heads, shape, spacing, len(kspace), volume)
    return RawData(
        np.ascontiguousarray(kspace[order]), _lines(kspace, path), shape, affine, False,
        _facts(header),
    )  # fmt: skip


def _sorted(encoding: Any, heads: Any, lines: Any, path: Path) -> Complex:
    """Acquisitions in their places: (slices, R, partitions, H, W); repeated ones are averaged."""
    matrix = encoding.encodedSpace.matrixSize
    index = heads["idx"]
    coils = int(heads["active_channels"][0])
    slices = int(index["slice"].max()) + 1
    shape = (slices, coils, int(matrix.z), int(matrix.x), int(matrix.y))
    kspace = np.zeros(shape, dtype=np.complex64)
    count = np.zeros((slices, 1, shape[2], 1, shape[4]), dtype=np.int32)
    limits = encoding.encodingLimits
    columns = index["kspace_encode_step_1"] + shape[4] // 2 - _centre(limits, 1, shape[4])
    partitions = index["kspace_encode_step_2"] + shape[2] // 2 - _centre(limits, 2, shape[2])
    for head, samples, column, partition in zip(heads, lines, columns, partitions, strict=True):
        data = samples.view(np.complex64).reshape(coils, -1)
        begin, end = int(head["discard_pre"]), data.shape[1] - int(head["discard_post"])
        first = shape[3] // 2 - int(head["center_sample"]) + begin
        place = int(head["idx"]["slice"]), 0, int(partition), 0, int(column)
        inside = 0 <= column < shape[4] and 0 <= partition < shape[2] and first >= 0
        if not inside or first + end - begin > shape[3]:
            raise ImageError(
                f"expected lines of a matrix of {shape[3]} × {shape[4]} × {shape[2]} in "
                f"{path.name}, got line {column} of partition {partition}, samples {first} to "
                f"{first + end - begin}"
            )
        kspace[place[0], :, partition, first : first + end - begin, column] += data[:, begin:end]
        count[place] += 1
    kspace /= np.maximum(count, 1)
    return kspace


def _centre(limits: Any, number: int, size: int) -> int:
    """Number of the line of the centre of k-space."""
    limit = getattr(limits, f"kspace_encoding_step_{number}", None)
    return size // 2 if limit is None or limit.center is None else int(limit.center)


def _affine(
    heads: Any, shape: tuple[int, int], spacing: tuple[float, ...], slices: int, volume: bool
) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Voxel → RAS+ mm, and the order of the slices along their direction."""
    first = heads[0]
    rows, columns, through = (
        np.array(first[name], dtype=float) for name in ("read_dir", "phase_dir", "slice_dir")
    )
    if not (np.linalg.norm(rows) and np.linalg.norm(columns) and np.linalg.norm(through)):
        raise ImageError("expected directions in the acquisitions' headers, got zeros")
    steps = list(spacing)
    centre = np.array(first["position"], dtype=float)
    order = np.arange(slices)
    if not volume and slices > 1:
        number = heads["idx"]["slice"]
        places = np.array(
            [heads["position"][np.argmax(number == k)] for k in range(slices)], dtype=float
        )
        along = places @ through
        order = np.argsort(along)
        gaps = np.diff(along[order])
        if gaps.min() <= 0 or np.ptp(gaps) > 0.05 * gaps.mean():
            raise ImageError(
                "expected slices at equal distances, got distances of "
                f"{gaps.min():.2f} to {gaps.max():.2f} mm"
            )
        steps[2] = float(gaps.mean())
        centre = places.mean(axis=0)
    matrix = np.stack([rows * steps[0], columns * steps[1], through * steps[2]], axis=1)
    # the centre of the Fourier transform is voxel n // 2; slices lie about the middle of their row
    middle = np.array([shape[0] // 2, shape[1] // 2, (slices - 1) / 2])
    if volume:
        middle[2] = slices // 2
    to_ras = np.diag([-1.0, -1.0, 1.0])
    return np.asarray(from_matvec(to_ras @ matrix, to_ras @ (centre - matrix @ middle))), order


# ---------------------------------------------------------------- both
def _header(text: Any) -> Any:
    return library("ismrmrd.xsd").CreateFromDocument(text)


def _word(value: Any) -> str:
    return str(getattr(value, "value", value)).lower()


def _grid(header: Any, height: int, width: int) -> tuple[tuple[int, int], tuple[float, ...]]:
    """(rows, columns) of the image, and mm of a voxel along rows, columns and slices."""
    encoded, wanted = header.encoding[0].encodedSpace, header.encoding[0].reconSpace
    step_x = encoded.fieldOfView_mm.x / height
    step_y = encoded.fieldOfView_mm.y / width
    rows = min(round(wanted.fieldOfView_mm.x / step_x), height)
    columns = min(round(wanted.fieldOfView_mm.y / step_y), width)
    step_z = wanted.fieldOfView_mm.z / max(int(wanted.matrixSize.z), 1)
    return (rows, columns), (float(step_x), float(step_y), float(step_z))


def _lines(kspace: Complex, path: Path) -> NDArray[np.bool_]:
    """Lines that were measured, of any of the slices."""
    mask = np.abs(kspace).sum(axis=tuple(range(kspace.ndim - 1))) > 0
    if not mask.any() or not np.isfinite(kspace).all():
        raise ImageError(f"expected finite numbers in {path.name}, not all of them zero")
    return np.asarray(mask)


def _facts(header: Any) -> dict[str, Any]:
    """What the header says of the scan, by BIDS names and in BIDS units."""
    system, sequence = header.acquisitionSystemInformation, header.sequenceParameters
    found = {
        "Manufacturer": getattr(system, "systemVendor", None),
        "ManufacturersModelName": getattr(system, "systemModel", None),
        "MagneticFieldStrength": getattr(system, "systemFieldStrength_T", None),
        "FlipAngle": _first(sequence, "flipAngle_deg", 1),
        "RepetitionTime": _first(sequence, "TR", 1e-3),
        "EchoTime": _first(sequence, "TE", 1e-3),
        "InversionTime": _first(sequence, "TI", 1e-3),
    }
    return {name: value for name, value in found.items() if value is not None}


def _first(sequence: Any, name: str, factor: float) -> float | None:
    values = getattr(sequence, name, None) or []
    return float(values[0]) * factor if values and values[0] else None
