# SPDX-License-Identifier: Apache-2.0
"""Bad and odd images, each made from one healthy brain, and what must become of each.

A case ends *enhanced* or *refused* with its reason; where a person could want either, both will
do, but never a crash or half a result.  What is no brain is *marked* where it is not refused: the
gate must not pass it.
"""

from __future__ import annotations

import gzip
import io
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Image = nib.Nifti1Image

ENHANCED, REFUSED, EITHER = "enhanced", "refused", "enhanced or refused"
#: enhanced, but the gate warns of it; or refused
MARKED = "marked by the gate or refused"
#: of the healthy brain, mm and voxels: 0.028 litres, as a fetus' of 25 weeks; small is quick
SPACING, SHAPE = 1.0, (40, 48, 44)


@dataclass(frozen=True)
class Case:
    """One image of the campaign.

    Attributes
    ----------
    name : label of its participant: letters and digits
    group : ``file``, ``header``, ``values``, ``shape``, ``type``, ``geometry``, ``content``,
        ``mask`` or ``healthy``
    make : gives the image, bytes of NIfTI (compressed where the extension says so), ``Exact``
        bytes, or a function that puts something at a path
    expected : what must become of it
    words : that the reason must have (or, of an enhanced one, its warnings); any one of them
    extension, suffix : of the file's name
    mask : makes a brain mask that is given with ``--derivatives``
    newborn : two weeks old; the others are fetuses of 25 weeks
    """

    name: str
    group: str
    make: Callable[[], Any]
    expected: str = ENHANCED
    words: tuple[str, ...] = ()
    extension: str = ".nii.gz"
    suffix: str = "T2w"
    mask: Callable[[], Any] | None = None
    newborn: bool = False


#: fluid, cortex, white matter, ventricles; before myelination cortex is the brighter in T1w images
T2W, T1W = (1400, 600, 950, 1450), (500, 1100, 800, 450)


class Exact(bytes):
    """Bytes of a file as they are, not compressed."""


# ---------------------------------------------------------------- one healthy brain
def ellipsoid(
    axes_mm: tuple[float, float, float],
    shape: tuple[int, ...] = SHAPE,
    spacing: tuple[float, float, float] = (SPACING,) * 3,
    centre_mm: tuple[float, float, float] = (0, 0, 0),
) -> NDArray[np.bool_]:
    """An ellipsoid in the middle of a grid, (X, Y, Z)."""
    total: Any = 0
    for axis, (radius, n, step, shift) in enumerate(
        zip(axes_mm, shape, spacing, centre_mm, strict=True)
    ):
        place = ((np.arange(n) - (n - 1) / 2) * step - shift) / radius
        total = total + place.reshape([-1 if k == axis else 1 for k in range(3)]) ** 2
    return np.asarray(total <= 1)


def brain_mask(
    shape: tuple[int, ...] = SHAPE,
    spacing: tuple[float, float, float] = (SPACING,) * 3,
    size: float = 1.0,
    centre_mm: tuple[float, float, float] = (0, 0, 0),
) -> NDArray[np.bool_]:
    """The healthy brain's mask on a grid; ``size`` scales its axes."""
    return ellipsoid((16.5 * size, 20.5 * size, 18.5 * size), shape, spacing, centre_mm)


def brain_values(
    shape: tuple[int, ...] = SHAPE,
    spacing: tuple[float, float, float] = (SPACING,) * 3,
    size: float = 1.0,
    centre_mm: tuple[float, float, float] = (0, 0, 0),
    levels: tuple[float, float, float, float] = T2W,
) -> Array:
    """A brain without its skull, zero outside, about 200…1500, (X, Y, Z) float32."""
    part = partial(ellipsoid, shape=shape, spacing=spacing, centre_mm=centre_mm)
    values = np.zeros(shape, np.float32)
    shells = ((16.5, 20.5, 18.5), (15.5, 19.5, 17.5), (12.5, 16.5, 14.5), (2.5, 6, 3.5))
    for axes, level in zip(shells, levels, strict=True):
        values[part(tuple(a * size for a in axes))] = level
    noise = np.random.default_rng(7).normal(0, 25, shape).astype(np.float32)
    return np.where(values > 0, np.clip(values + noise, 50, None), 0).astype(np.float32)


def affine_of(
    spacing: tuple[float, float, float] = (SPACING,) * 3, shape: tuple[int, ...] = SHAPE
) -> Array:
    """LPS+ with the middle of the grid at the origin."""
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape[:3]) - 1) / 2)
    return affine


def image_of(values: Array, affine: Array | None = None, kind: Any = Image) -> Any:
    """An image with qform and sform set, millimetres."""
    affine = affine_of() if affine is None else affine
    image = kind(values, affine, dtype=values.dtype)
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    image.header.set_xyzt_units("mm", "sec")
    return image


def healthy(dtype: Any = np.int16) -> Any:
    """The brain as a scanner stores it."""
    return image_of(np.rint(brain_values()).astype(dtype))


def on_grid(spacing: tuple[float, float, float], shape: tuple[int, ...], **where: Any) -> Any:
    """The brain sampled with other voxels."""
    values = brain_values(shape, spacing, **where)
    return image_of(np.rint(values).astype(np.int16), affine_of(spacing, shape))


def changed(change: Callable[[Array], Array], dtype: Any = np.float32) -> Any:
    """The brain with other values; ``change`` takes float32 voxels."""
    return image_of(np.asarray(change(brain_values().copy()), dtype=dtype))


def placed(values: Array, index: Any, value: Any) -> Array:
    """The array with some voxels set."""
    values[index] = value
    return values


# ---------------------------------------------------------------- headers, byte by byte
#: NIfTI-1: name → (byte, format), from the standard's nifti1.h
FIELDS = {
    "sizeof_hdr": (0, "i"),
    "dim": (40, "8h"),
    "datatype": (70, "h"),
    "bitpix": (72, "h"),
    "pixdim": (76, "8f"),
    "vox_offset": (108, "f"),
    "scl_slope": (112, "f"),
    "scl_inter": (116, "f"),
    "xyzt_units": (123, "B"),
    "qform_code": (252, "h"),
    "sform_code": (254, "h"),
    "quatern": (256, "3f"),
    "qoffset": (268, "3f"),
    "srow": (280, "12f"),
    "magic": (344, "4s"),
}


def patched(image: Any = None, **fields: Any) -> bytes:
    """NIfTI bytes of an image with header fields overwritten, whatever the standard says."""
    content = bytearray((healthy() if image is None else image).to_bytes())
    for name, value in fields.items():
        offset, form = FIELDS[name]
        values = value if isinstance(value, list | tuple) else [value]
        struct.pack_into(f"<{form}", content, offset, *values)
    return bytes(content)


def dims(*sizes: int) -> list[int]:
    """The field ``dim`` of an image of these sizes."""
    return [len(sizes), *sizes, *[1] * (7 - len(sizes))]


def pixdims(x: float, y: float, z: float, qfac: float = 1.0) -> list[float]:
    """The field ``pixdim``."""
    return [qfac, x, y, z, 1, 1, 1, 1]


NO_FORMS = {"qform_code": 0, "sform_code": 0}
QFORM_ONLY = {"sform_code": 0}
SFORM_ONLY = {"qform_code": 0}


def rows(affine: Array) -> list[float]:
    """The field ``srow``."""
    return [float(x) for x in np.asarray(affine)[:3].ravel()]


def with_affine(turn: Array) -> Any:
    """The brain on a grid that was moved by a matrix; only the sform can say it."""
    affine = turn @ affine_of()
    image = Image(np.asarray(healthy().dataobj), affine)
    image.set_sform(affine, 1)
    image.set_qform(None, 0)
    return image


def rotation(degrees: float, axis: int = 2) -> Array:
    """A turn about one axis, 4 × 4."""
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    first, second = (k for k in range(3) if k != axis)
    turn = np.eye(4)
    turn[[first, first, second, second], [first, second, first, second]] = cos, -sin, sin, cos
    return turn


def sheared(amount: float) -> Array:
    """x is moved along y."""
    turn = np.eye(4)
    turn[0, 1] = amount
    return turn


# ---------------------------------------------------------------- files
def zipped(content: bytes) -> bytes:
    """Compressed without a time, so that each run makes the same bytes."""
    return gzip.compress(content, 6, mtime=0)


def cut(keep: float) -> Exact:
    """The compressed brain, cut off."""
    content = zipped(healthy().to_bytes())
    return Exact(content[: int(len(content) * keep)])


def flipped_bytes() -> Exact:
    """The compressed brain with 64 bytes of nonsense in its middle."""
    content = bytearray(zipped(healthy().to_bytes()))
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(range(64))
    return Exact(content)


def bomb(edge: int) -> Exact:
    """A few megabytes that unpack to a cube of zeros, with a header that says so."""
    header = patched(dim=dims(edge, edge, edge))[:352]
    block = zipped(bytes(1 << 24))
    count = edge**3 * 2 // (1 << 24) + 1
    return Exact(zipped(header) + block * count)


def junk_bomb() -> Exact:
    """A healthy image, and 8 GB of zeros after it."""
    return Exact(zipped(healthy().to_bytes()) + zipped(bytes(1 << 24)) * 512)


def mgh() -> Exact:
    """Another format under this name."""
    image = nib.freesurfer.MGHImage(brain_values(), affine_of())
    return Exact(zipped(image.to_bytes()))


def big_endian() -> Exact:
    """As scanners of the nineties wrote it."""
    source = healthy()
    header = source.header.as_byteswapped(">")
    stream = io.BytesIO()
    swapped = Image(np.asarray(source.dataobj).astype(">i2"), source.affine, header)
    swapped.file_map["image"].fileobj = stream
    swapped.to_file_map()
    return Exact(zipped(stream.getvalue()))


def odd_type(code: int, bits: int, content: Array) -> bytes:
    """An image whose type nibabel would not write."""
    head = patched(image_of(np.zeros(SHAPE, np.int16)), datatype=code, bitpix=bits)[:352]
    return head + np.asfortranarray(content).tobytes(order="F")


def colours() -> bytes:
    """Red, green and blue, a byte each."""
    grey = (brain_values() / 8).clip(0, 255).astype(np.uint8)
    return odd_type(128, 24, np.repeat(grey.ravel(order="F")[:, None], 3, 1).ravel())


# ---------------------------------------------------------------- contents
def head(brain: bool = True) -> Any:
    """A head with scalp and skull; without a brain, it is empty."""
    shape, spacing = (64, 72, 68), (1.0,) * 3
    values = np.zeros(shape, np.float32)
    values[ellipsoid((24, 29, 26.5), shape, spacing)] = 1200
    values[ellipsoid((21.5, 26.5, 24), shape, spacing)] = 60
    if brain:
        inner = brain_values(shape, spacing)
        values = np.where(inner > 0, inner, values)
    values += np.abs(np.random.default_rng(3).normal(0, 12, shape))
    return image_of(np.rint(values).astype(np.int16), affine_of(spacing, shape))


def two_brains() -> Any:
    """Twins side by side, 0.015 litres each."""
    shape = (76, 48, 44)
    values = sum(brain_values(shape, size=0.8, centre_mm=(shift, 0, 0)) for shift in (-19.0, 19.0))
    return image_of(np.rint(values).astype(np.int16), affine_of(shape=shape))


def noise(low: float = 0.0) -> Array:
    """Nothing but noise."""
    return np.abs(np.random.default_rng(1).normal(100, 30, SHAPE)) + low


def cropped(planes: int) -> Any:
    """The field of view ends within the brain."""
    whole = healthy()
    return whole.slicer[planes:-planes, :, :]


def mask_image(values: Array | None = None, affine: Array | None = None) -> Any:
    """The brain's mask, or another."""
    return image_of(brain_mask().astype(np.uint8) if values is None else values, affine)


def moved(mm: float) -> Any:
    """The mask on a grid that lies elsewhere."""
    affine = affine_of()
    affine[0, 3] += mm
    return mask_image(affine=affine)


def shifted_mask() -> Any:
    """The mask, on the right grid, at the wrong place."""
    return mask_image(np.roll(brain_mask().astype(np.uint8), 14, axis=1))


# ---------------------------------------------------------------- special files
def folder(path: Path) -> None:
    """A folder with an image's name."""
    path.mkdir(parents=True)


def pipe(path: Path) -> None:
    """A pipe: whoever reads it waits for ever."""
    os.mkfifo(path)


def link(target: str, path: Path) -> None:
    """A link."""
    path.symlink_to(target)


# ---------------------------------------------------------------- the cases
def cases() -> Iterator[Case]:
    """All of them, healthy ones last."""
    for group in (files, headers, values, shapes, types, geometry, contents, masks, healthies):
        yield from group()


def files() -> Iterator[Case]:
    """What is no image, or not a whole one."""

    def case(name: str, make: Callable[[], Any], *words: str, **more: Any) -> Case:
        return Case(name, "file", make, more.pop("expected", REFUSED), words, **more)

    plain = healthy().to_bytes()
    yield case("truncatedGzip", lambda: cut(0.8), "cut off")
    yield case("gzipHeaderOnly", lambda: Exact(zipped(plain)[:12]), "cut off")
    yield case("lastByteMissing", lambda: Exact(zipped(plain)[:-1]), "cut off")
    yield case("corruptGzip", flipped_bytes, "damaged")
    yield case("junkAfterGzip", lambda: Exact(zipped(plain) + b"junk" * 9), expected=EITHER)
    yield case("emptyFile", lambda: Exact(b""), "empty")
    yield case("emptyGzip", lambda: Exact(zipped(b"")), "damaged")
    yield case("textFile", lambda: Exact(b"subject moved, see log\n"), "text")
    yield case("htmlPage", lambda: Exact(b"<!DOCTYPE html><html>404</html>"), "text")
    yield case("gitAnnexPointer", lambda: Exact(b"/annex/objects/MD5E-s1--1.nii.gz\n"), "datalad")
    yield case("lfsPointer", lambda: Exact(b"version https://git-lfs.github.com/spec/v1\n"), "lfs")
    yield case("plainNamedGz", lambda: Exact(plain), "not compressed")
    yield case("gzNamedPlain", lambda: Exact(zipped(plain)), "compressed", extension=".nii")
    yield case("otherFormat", mgh, "damaged")
    yield case("folderNamedImage", lambda: folder, "folder")
    yield case("pipeNamedImage", lambda: pipe, "not a file")
    yield case("linkToDevice", lambda: partial(link, "/dev/zero"), "not a file")
    yield case("danglingLink", lambda: partial(link, "../.git/annex/x"), "datalad get")
    yield case("loopingLink", lambda: partial(link, "sub-loopingLink_T2w.nii.gz"), "link")
    yield case(
        "declaresTooMuch", lambda: patched(dim=dims(30000, 30000, 30000)), "holds", "memory"
    )
    yield case("zipBomb", lambda: bomb(2600), "memory")
    yield case("bombAfterImage", junk_bomb, "more than its header says")
    yield case("plainNii", lambda: plain, expected=ENHANCED, extension=".nii")
    yield case("junkAfterNii", lambda: plain + b"junk" * 99, expected=ENHANCED, extension=".nii")
    yield case("shortNii", lambda: plain[:-1000], "cut off", extension=".nii")


def headers() -> Iterator[Case]:
    """Headers that lie."""

    def case(name: str, expected: str, *words: str, **fields: Any) -> Case:
        return Case(name, "header", lambda: patched(**fields), expected, words)

    x, y, z = SHAPE
    yield case("sizesTooLarge", REFUSED, "cut off", dim=dims(x, y, 2 * z))
    yield case("sizesTooSmall", EITHER, dim=dims(x, y, z // 2))
    yield case("negativeSize", REFUSED, "header", dim=[3, x, -y, z, 1, 1, 1, 1])
    yield case("zeroSize", REFUSED, "header", dim=[3, x, 0, z, 1, 1, 1, 1])
    yield case("noDimensions", REFUSED, "header", dim=[0, x, y, z, 1, 1, 1, 1])
    yield case("nineDimensions", REFUSED, "header", dim=[9, x, y, z, 1, 1, 1, 1])
    yield case("unknownType", REFUSED, "header", datatype=9999)
    yield case("typeZero", REFUSED, "header", datatype=0)
    yield case("wrongBits", EITHER, bitpix=64)
    yield case("headerSizeZero", EITHER, sizeof_hdr=0)
    yield case("offsetInHeader", EITHER, vox_offset=100.0)
    yield case("offsetBeyondEnd", REFUSED, "cut off", vox_offset=1e8)
    yield case("offsetNaN", REFUSED, "header", vox_offset=float("nan"))
    yield case("analyzeRenamed", EITHER, magic=b"\0\0\0\0")
    yield case("pairMagic", EITHER, magic=b"ni1\0")
    yield case("slopeZero", ENHANCED, scl_slope=0.0)
    yield case("slopeNaN", ENHANCED, scl_slope=float("nan"), scl_inter=float("nan"))
    yield case("slopeInfinite", EITHER, scl_slope=float("inf"))
    yield case("slopeHuge", EITHER, scl_slope=1e30)
    yield case("slopeOverflow", REFUSED, "finite", scl_slope=3e38)
    yield case("slopeTiny", EITHER, scl_slope=1e-30)
    yield case("slopeNegative", EITHER, scl_slope=-1.0)
    yield case("slopeAndOffset", ENHANCED, scl_slope=0.5, scl_inter=-200.0)
    yield case("offsetOnlyNaN", EITHER, scl_slope=1.0, scl_inter=float("nan"))


def values() -> Iterator[Case]:
    """Voxels that are no tissue."""

    def case(name: str, change: Callable[[Array], Array], expected: str, *words: str) -> Case:
        return Case(name, "values", lambda: changed(change), expected, words)

    nan, inf = np.float32("nan"), np.float32("inf")
    yield case("oneNaN", lambda v: placed(v, (20, 20, 20), nan), REFUSED, "NaN")
    yield case("backgroundNaN", lambda v: placed(v, v == 0, nan), REFUSED, "NaN")
    yield case("allNaN", lambda v: placed(v, ..., nan), REFUSED, "NaN")
    yield case("oneInfinite", lambda v: placed(v, (20, 20, 20), inf), REFUSED, "infinite")
    yield case("minusInfinite", lambda v: placed(v, v == 0, -inf), REFUSED, "infinite")
    yield case("allNegative", lambda v: v - 5000, EITHER)
    yield case("signFlipped", lambda v: -v, EITHER)
    yield case("offset1024", lambda v: v - 1024, ENHANCED)
    yield case("offset10000", lambda v: v + 10000, ENHANCED)
    yield case("noisyOffset", lambda v: v - 1024 + noise() / 20, ENHANCED)
    yield case("constant", lambda v: v * 0 + 7, REFUSED, "constant")
    yield case("zero", lambda v: v * 0, REFUSED, "zero")
    yield case("oneVoxel", lambda v: placed(v * 0, (24, 28, 26), 100), REFUSED, "mask")
    yield case("binary", lambda v: (v > 0) * 1.0, REFUSED, "a mask or a segmentation")
    yield case("onlyNoise", lambda v: noise(), MARKED)
    yield case("faintNoise", lambda v: noise(1e5), MARKED)
    yield case("gradient", lambda v: v * 0 + np.arange(SHAPE[0])[:, None, None], MARKED)
    yield case("tinyValues", lambda v: v * 1e-11, ENHANCED)
    yield case("subnormalValues", lambda v: v * 1e-42, EITHER)
    yield case("hugeValues", lambda v: v * 1e9, ENHANCED)
    yield case("enormousValues", lambda v: v.astype(np.float64) * 1e35, EITHER)
    yield case("inverted", lambda v: np.where(v > 0, 1600 - v, 0), EITHER)
    yield case(
        "threeGreyValues",
        lambda v: np.round(v / 500) * 500,
        REFUSED,
        "a mask or a segmentation",
    )
    yield case("saturated", lambda v: v.clip(0, 700), EITHER)
    yield case("brightVessel", lambda v: placed(v, np.s_[24, 20:30, 26], 60000), ENHANCED)
    yield case("checkerboard", lambda v: v * (np.indices(SHAPE).sum(0) % 2), MARKED)
    yield case("missingSlices", lambda v: placed(v, np.s_[:, :, ::4], 0), MARKED)
    yield case("halfBrain", lambda v: placed(v, np.s_[:20], 0), MARKED)


def shapes() -> Iterator[Case]:
    """Not three dimensions, or few voxels."""

    def case(name: str, make: Callable[[], Any], expected: str, *words: str) -> Case:
        return Case(name, "shape", make, expected, words)

    flat = brain_values()
    yield case("twoD", lambda: image_of(flat[:, :, 26]), REFUSED, "three-dimensional")
    yield case("oneSlice", lambda: image_of(flat[:, :, 26:27]), REFUSED, "voxels along each axis")
    yield case("sevenSlices", lambda: image_of(flat[:, :, 22:29]), REFUSED, "voxels along")
    yield case("oneVolume", lambda: image_of(flat[..., None]), ENHANCED)
    yield case("threeVolumes", lambda: image_of(np.stack([flat] * 3, -1)), REFUSED, "volume")
    yield case("fiveDOne", lambda: image_of(flat[..., None, None]), ENHANCED)
    yield case(
        "fiveDVector", lambda: image_of(np.stack([flat] * 3, -1)[..., None, :]), REFUSED, "volume"
    )
    yield case("threeCubed", lambda: image_of(flat[20:23, 20:23, 20:23]), REFUSED, "voxels along")
    yield case("oneVoxelFile", lambda: image_of(flat[:1, :1, :1]), REFUSED, "voxels along")
    yield case("needle", lambda: image_of(flat.reshape(8, 8, -1)), REFUSED)
    yield case("thickSlices", lambda: on_grid((1.5, 1.5, 5.0), (54, 64, 18), size=2), ENHANCED)
    yield case("veryThickSlices", lambda: on_grid((1, 1, 12.0), (80, 96, 8), size=2), EITHER)
    yield case("thinSlices", lambda: on_grid((1, 1, 0.3), (40, 48, 146)), ENHANCED)
    yield case("hugeView", lambda: on_grid((4.0,) * 3, (64, 64, 64), size=2), ENHANCED)
    yield case(
        "giantView", lambda: on_grid((18.0,) * 3, (100, 100, 100), size=3), REFUSED, "memory"
    )


def types() -> Iterator[Case]:
    """Each type of voxel that NIfTI has."""

    def case(name: str, make: Callable[[], Any], expected: str = ENHANCED, *words: str) -> Case:
        return Case(name, "type", make, expected, words)

    factors = {"int8": 0.08, "uint8": 0.15, "uint64": 1e12, "int64": 1e12}
    for name in "int8 uint8 uint16 int32 uint32 int64 uint64 float32 float64".split():
        factor = factors.get(name, 1.0)
        yield case(name, partial(changed, lambda v, f=factor: v.astype(np.float64) * f, name))
    yield case("bigEndian", big_endian)
    yield case("nifti2", lambda: image_of(np.asarray(healthy().dataobj), kind=nib.Nifti2Image))
    yield case("complex64", lambda: image_of(brain_values().astype(np.complex64)), REFUSED, "real")
    yield case("rgb", colours, REFUSED, "real numbers")
    yield case(
        "bits", lambda: odd_type(1, 1, np.packbits(brain_mask().ravel("F"))), REFUSED, "header"
    )


def geometry() -> Iterator[Case]:
    """Affines that lie, or that are only rare."""

    def case(name: str, make: Callable[[], Any], expected: str = ENHANCED, *words: str) -> Case:
        return Case(name, "geometry", make, expected, words)

    nan = float("nan")
    other = rows(rotation(30) @ affine_of())
    singular = affine_of()
    singular[:3, 2] = singular[:3, 1]
    yield case("noForms", lambda: patched(**NO_FORMS))
    yield case("noSform", lambda: patched(**QFORM_ONLY))
    yield case("noQform", lambda: patched(**SFORM_ONLY))
    yield case("formsDiffer", lambda: patched(srow=other), EITHER, "sform")
    yield case("longQuaternion", lambda: patched(quatern=[0.9, 0.9, 0.9], **QFORM_ONLY), EITHER)
    yield case("longQuaternionUnused", lambda: patched(quatern=[0.9, 0.9, 0.9]), EITHER)
    yield case("zeroQuaternion", lambda: patched(quatern=[0, 0, 0], **QFORM_ONLY))
    yield case("quaternionNaN", lambda: patched(quatern=[nan, 0, 0], **QFORM_ONLY), REFUSED)
    yield case("qfacZero", lambda: patched(pixdim=pixdims(1, 1, 1, 0.0), **QFORM_ONLY), EITHER)
    yield case("singularSform", lambda: patched(srow=rows(singular)), REFUSED, "affine")
    yield case("zeroSform", lambda: patched(srow=[0.0] * 12), REFUSED, "affine")
    yield case("sformNaN", lambda: patched(srow=[nan] * 12), REFUSED, "affine")
    yield case("offsetInfinite", lambda: patched(srow=[*other[:3], float("inf"), *other[4:]]),
               REFUSED, "affine")  # fmt: skip
    yield case("farOrigin", lambda: patched(srow=[*other[:3], 1e7, *other[4:]]), EITHER)
    yield case("voxelZero", lambda: patched(pixdim=pixdims(1, 0, 1), **NO_FORMS), EITHER)
    yield case("voxelZeroSform", lambda: patched(pixdim=pixdims(0, 0, 0)), EITHER)
    yield case("voxelNegative", lambda: patched(pixdim=pixdims(1, -1, 1), **NO_FORMS), EITHER)
    yield case("voxelNaN", lambda: patched(pixdim=pixdims(1, nan, 1), **NO_FORMS), REFUSED)
    yield case("voxelNaNSform", lambda: patched(pixdim=pixdims(nan, nan, nan)), EITHER)
    yield case("voxelInfinite", lambda: patched(pixdim=pixdims(float("inf"), 1, 1)), EITHER)
    yield case("voxelHuge", lambda: patched(pixdim=pixdims(900, 900, 900), **NO_FORMS), REFUSED,
               "voxels of 0.05 to 20 mm")  # fmt: skip
    metres, microns = affine_of() * 1e-3, affine_of() * 1e3
    yield case("metres", lambda: patched(srow=rows(metres), xyzt_units=1 | 8, **SFORM_ONLY),
               REFUSED, "metre")  # fmt: skip
    yield case("microns", lambda: patched(srow=rows(microns), xyzt_units=3 | 8, **SFORM_ONLY),
               REFUSED, "micron")  # fmt: skip
    yield case("wrongUnit", lambda: patched(xyzt_units=3 | 8))
    yield case("noUnit", lambda: patched(xyzt_units=0))
    for axes in ("RAS", "LAS", "PIR", "SRA"):
        yield case(f"mirrored{axes}", partial(stored_as, axes))
    yield case("oblique45", lambda: with_affine(rotation(45)))
    yield case("oblique45twice", lambda: with_affine(rotation(45, 0) @ rotation(45)))
    yield case("sheared", lambda: with_affine(sheared(0.1)), EITHER)
    yield case("shearedMuch", lambda: with_affine(sheared(3.0)), REFUSED, "shear", "affine")


def stored_as(axes: str) -> Any:
    """The brain with its axes in another order."""
    from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

    source = healthy()
    change = ornt_transform(io_orientation(source.affine), axcodes2ornt(tuple(axes)))
    turned = source.as_reoriented(change)
    return image_of(np.asarray(turned.dataobj), turned.affine)


def contents() -> Iterator[Case]:
    """Images that are whole and show something else."""

    def case(name: str, make: Callable[[], Any], expected: str, *words: str) -> Case:
        return Case(name, "content", make, expected, words)

    yield case("emptyHead", lambda: head(brain=False), MARKED)
    yield case("wholeHead", head, EITHER)
    yield case("twoBrains", two_brains, EITHER, "piece")
    yield case("atTheEdge", lambda: cropped(9), MARKED, "border")
    yield case("mouse", lambda: on_grid((0.25,) * 3, SHAPE, size=0.25), REFUSED, "litres", "empty")
    yield case("giant", lambda: on_grid((3.5,) * 3, SHAPE, size=3.5), REFUSED, "litres")
    yield case("noBackground", lambda: healthy().slicer[14:-14, 14:-14, 14:-14], MARKED)
    yield case("box", lambda: image_of(noise() * (brain_mask() | True) * box()), EITHER)


def box() -> Array:
    """Something with corners."""
    result = np.zeros(SHAPE)
    result[10:-10, 10:-10, 10:-10] = 1
    return result


def masks() -> Iterator[Case]:
    """Good images with a mask that was made elsewhere."""

    def case(name: str, mask: Callable[[], Any], expected: str, *words: str) -> Case:
        return Case(name, "mask", healthy, expected, words, mask=mask)

    soft = brain_mask().astype(np.float32) * 0.9
    fine = brain_mask((96, 112, 104), (0.5,) * 3).astype(np.uint8)
    inverse = (~brain_mask()).astype(np.uint8)
    yield case("maskOtherGrid", lambda: mask_image(fine, affine_of((0.5,) * 3, fine.shape)),
               ENHANCED)  # fmt: skip
    yield case("maskFloat", lambda: mask_image(soft), ENHANCED)
    yield case("maskNaN", lambda: mask_image(soft * np.float32("nan")), REFUSED, "NaN")
    yield case("maskEmpty", lambda: mask_image(inverse * 0), REFUSED, "mask")
    yield case("maskAll", lambda: mask_image(inverse * 0 + 1), REFUSED, "mask")
    yield case("maskInverse", lambda: mask_image(inverse), MARKED)
    yield case("maskElsewhere", lambda: moved(75), EITHER)
    yield case("maskHalfElsewhere", lambda: moved(15), EITHER)
    yield case("maskShifted", shifted_mask, MARKED, "has no signal")
    yield case("maskBroken", lambda: Exact(b"no mask"), EITHER)
    yield case("maskBadHeader", lambda: patched(mask_image(), datatype=9999), EITHER)
    yield case("maskTruncated", lambda: cut(0.5), REFUSED, "mask")
    yield case("maskFourD", lambda: mask_image(np.stack([inverse] * 2, -1)), EITHER)
    yield case("maskBomb", lambda: bomb(2600), EITHER)


def healthies() -> Iterator[Case]:
    """Ten that must be done, whatever the others do: three newborns among them."""
    for number in range(10):
        newborn = number < 3
        suffix, levels = ("T1w", T1W) if number < 2 else ("T2w", T2W)
        spacing, size = (2.0, 2.0) if newborn else (SPACING, 1.0 - 0.004 * number)
        make = partial(on_grid, (spacing,) * 3, SHAPE, size=size, levels=levels)
        yield Case(f"healthy{number}", "healthy", make, suffix=suffix, newborn=newborn)
