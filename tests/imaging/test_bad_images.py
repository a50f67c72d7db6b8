# SPDX-License-Identifier: Apache-2.0
"""What reading says of each bad file of the fault campaign (``tests/faults/bad_cases.py``)."""

from __future__ import annotations

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
