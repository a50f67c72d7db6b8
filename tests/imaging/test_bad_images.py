# SPDX-License-Identifier: Apache-2.0
"""What reading says of each bad file of the fault campaign (``tests/faults/bad_cases.py``)."""

from __future__ import annotations

import bz2
import lzma
import warnings

import numpy as np
import pytest
from bad_cases import (
    ENHANCED,
    REFUSED,
    Exact,
    bomb,
    cases,
    changed,
    dims,
    healthy,
    mask_image,
    patched,
    pixdims,
)
from bad_images import put

from bmex_bids.exceptions import ImageError
from bmex_bids.imaging.orientation import (
    check_levels,
    fault_of_file,
    header_remarks,
    load_image,
)
from bmex_bids.interfaces.files import header_of

READ = {
    case.name: case
    for case in cases()
    if case.group in {"file", "header", "type", "geometry", "shape"} and case.name != "zipBomb"
}
#: refused by what they show, or by the memory they need, not when they are read
LATER = {"needle", "giantView"}


def path_of(case, tmp_path):
    path = tmp_path / f"sub-{case.name}_{case.suffix}{case.extension}"
    put(case.make(), path)
    return path


@pytest.mark.parametrize(
    "name", [n for n, c in READ.items() if c.expected == REFUSED and n not in LATER]
)
def test_a_bad_file_is_refused_with_its_name_what_it_is_and_what_to_do(name, tmp_path):
    path = path_of(READ[name], tmp_path)
    with pytest.raises(ImageError) as refused:
        load_image(path)
    message = str(refused.value)
    assert message.startswith("expected ")
    assert ";" in message
    assert path.name in message
    assert any(word.lower() in message.lower() for word in READ[name].words or ("",)), message


@pytest.mark.parametrize("name", [n for n, c in READ.items() if c.expected == ENHANCED])
def test_a_rare_but_sound_file_is_read(name, tmp_path):
    case = READ[name]
    image = load_image(path_of(case, tmp_path))
    assert image.ndim == 3
    assert np.isfinite(image.get_fdata()).all()


@pytest.mark.parametrize("name", READ)
def test_a_header_is_looked_at_without_an_exception(name, tmp_path):
    path = path_of(READ[name], tmp_path)
    header_remarks(path)
    size = header_of(path)
    assert size is None or (min(size[0]) > 0 and np.isfinite(size[1]).all())


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path):
    path = tmp_path / "bomb.nii.gz"
    path.write_bytes(Exact(bomb(2600)[:100_000] + bytes(40_000_000)))
    with pytest.raises(ImageError, match=r"at most 1073741824 voxels .*too large for the memory"):
        load_image(path)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("noForms", "and right may be exchanged"),
        ("formsDiffer", "differ: the sform is used"),
        ("longQuaternionUnused", "qform of the header is invalid"),
        ("wrongUnit", "microns: they were taken for millimetres"),
        ("noQform", None),
        ("int8", None),
    ],
)
def test_what_is_odd_about_a_header(name, words, tmp_path):
    remarks = header_remarks(path_of(READ[name], tmp_path))
    assert (words is None and remarks == ()) or words in remarks[0]


def test_a_scanners_rounding_of_qform_and_sform_is_no_remark(tmp_path):
    image = healthy()
    moved = image.affine.copy()
    moved[:3, 3] += 0.3
    image.set_sform(moved, 1)
    put(image, tmp_path / "image.nii.gz")
    assert header_remarks(tmp_path / "image.nii.gz") == ()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"qform_code": 99, "sform_code": -3}, "neither a valid sform nor a valid qform"),
        ({"qform_code": -1, "sform_code": 6}, "neither a valid sform nor a valid qform"),
        ({"qform_code": 99, "srow": [float(n) for n in range(12)]}, None),
        ({"sform_code": 99, "srow": [float(n) for n in range(12)]}, None),
        ({"xyzt_units": 255}, None),
        ({"xyzt_units": 7}, None),
    ],
)
def test_codes_that_are_none_of_the_standards_count_for_nothing(fields, words, tmp_path):
    """The orientation was guessed, without a word; of a unit it said that the qform was invalid."""
    put(patched(**fields), tmp_path / "image.nii.gz")
    remarks = header_remarks(tmp_path / "image.nii.gz")
    assert (words is None and remarks == ()) or words in remarks[0]


@pytest.mark.parametrize("form", ["qform", "sform"])
def test_voxel_sizes_of_zero_are_refused_beside_a_code_that_counts_for_nothing(form, tmp_path):
    codes = {"qform_code": 0, "sform_code": 0, f"{form}_code": 99}
    put(patched(pixdim=pixdims(1, 0, 1), **codes), tmp_path / "image.nii.gz")
    with pytest.raises(ImageError, match="expected voxel sizes"):
        load_image(tmp_path / "image.nii.gz")


PLAIN = healthy().to_bytes()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"PK\x03\x04" + PLAIN, "a ZIP archive; unpack it"),
        (lzma.compress(PLAIN), "compressed with xz; unpack it"),
        (bz2.compress(PLAIN), "compressed with bzip2; unpack it"),
        (b"\x28\xb5\x2f\xfd" + PLAIN, "compressed with zstd; unpack it"),
        (b"\x89HDF\r\n\x1a\n" + PLAIN, "HDF5"),
        (b"NRRD0005\ntype: short\n\n" + PLAIN, "NRRD; convert it"),
        (b"CDF\x01" + PLAIN, "MINC 1; convert it"),
        (bytes(128) + b"DICM" + PLAIN, "DICOM; convert it with dcm2niix"),
    ],
)
@pytest.mark.parametrize("extension", [".nii", ".nii.gz"])
def test_another_format_under_an_images_name_is_named(content, words, extension, tmp_path):
    """Some were to be renamed to .nii."""
    put(Exact(content), tmp_path / f"image{extension}")
    with pytest.raises(ImageError, match=words):
        load_image(tmp_path / f"image{extension}")


def test_a_file_is_no_fault_and_what_is_none_is_named(tmp_path):
    put(healthy(), tmp_path / "image.nii.gz")
    assert fault_of_file(tmp_path / "image.nii.gz") is None
    assert "a folder" in fault_of_file(tmp_path)
    (tmp_path / "empty.nii").touch()
    assert "an empty file" in fault_of_file(tmp_path / "empty.nii")
    assert "found none" in fault_of_file(tmp_path / "nothing.nii.gz")


def test_numbers_too_large_for_float32_are_refused_without_a_warning(tmp_path):
    put(patched(scl_slope=3e38), tmp_path / "image.nii.gz")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageError, match="NaN or infinite"):
            load_image(tmp_path / "image.nii.gz")


def test_what_follows_an_image_is_read_to_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr("bmex_bids.imaging.orientation.SPARE_BYTES", 1000)
    x, y, z = healthy().shape
    put(patched(dim=dims(x, y, z // 4)), tmp_path / "image.nii.gz")  # four times what it says
    with pytest.raises(ImageError, match="more than its header says"):
        load_image(tmp_path / "image.nii.gz")


def test_a_segmentation_is_no_image_and_eight_bits_are_one():
    with pytest.raises(
        ImageError, match=r"a\.nii, got 2 different values.*mask or a segmentation"
    ):
        check_levels(mask_image(), "a.nii")
    with pytest.raises(ImageError, match="got 15 different values"):
        check_levels(changed(lambda v: np.arange(v.size).reshape(v.shape) % 15), "a.nii")
    check_levels(changed(lambda v: np.arange(v.size).reshape(v.shape) % 16), "a.nii")
    check_levels(changed(lambda v: v / 12, np.uint8), "a.nii")
