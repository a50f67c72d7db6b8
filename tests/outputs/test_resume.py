# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import json

import pytest

from bmex_bids.common.names import BidsName
from bmex_bids.interfaces.reportlets import drawings
from bmex_bids.outputs.pictures import PICTURES, picture_paths
from bmex_bids.outputs.records import read_record
from bmex_bids.outputs.resume import (
    checksum,
    fingerprint,
    finished,
    text_checksum,
)


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "image.nii.gz"
    path.write_bytes(b"voxels")
    return path


def test_a_checksum_is_that_of_sha256(image):
    assert checksum(image) == hashlib.sha256(b"voxels").hexdigest()
    assert text_checksum("é") == hashlib.sha256("é".encode()).hexdigest()


def test_the_same_things_have_the_same_fingerprint_whatever_the_order_of_the_settings(image):
    one = fingerprint([image], {"a": 1, "b": (2, 3)}, ["w"])
    assert one == fingerprint([image], {"b": [2, 3], "a": 1}, ["w"])


def test_each_thing_changes_its_own_part_of_the_fingerprint(image):
    before = fingerprint([image], {"a": 1}, ["w"])
    assert before is not None

    def changed(after):
        return {key for key in before if before[key] != after[key]}

    assert changed(fingerprint([image], {"a": 2}, ["w"])) == {"Configuration"}
    assert changed(fingerprint([image], {"a": 1}, ["v"])) == {"Weights"}
    assert changed(fingerprint([image, image], {"a": 1}, ["w"])) == {"Input"}
    image.write_bytes(b"other voxels")
    assert changed(fingerprint([image], {"a": 1}, ["w"])) == {"Input"}


def test_an_input_that_cannot_be_read_has_no_fingerprint(tmp_path):
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    assert fingerprint([tmp_path / "dangling"], {}, []) is None


@pytest.fixture
def done(tmp_path, image):
    """A folder with one image's product, its record and one picture."""
    product = tmp_path / "out.nii.gz"
    product.write_bytes(b"enhanced")
    picture = tmp_path / "picture.svg"
    picture.write_text("<svg/>")
    expected = fingerprint([image], {}, [])
    record = tmp_path / "out.json"
    record.write_text(
        json.dumps(
            {"BMEX": {"Fingerprint": expected, "Outputs": {"out.nii.gz": checksum(product)}}}
        )
    )
    return record, expected, product, picture


def test_what_is_whole_is_finished(done):
    record, expected, _, picture = done
    assert finished(record, expected, [picture])


@pytest.mark.parametrize("damage", ["short", "altered", "gone"])
def test_a_damaged_product_is_not_taken_for_a_finished_one(done, damage):
    record, expected, product, picture = done
    if damage == "gone":
        product.unlink()
    else:
        product.write_bytes(b"enh" if damage == "short" else b"enhanceD")
    assert not finished(record, expected, [picture])


def test_without_its_picture_or_its_record_or_with_another_input_it_is_not_finished(done):
    record, expected, _, picture = done
    assert not finished(record, {**expected, "Input": "other"}, [picture])
    picture.unlink()
    assert not finished(record, expected, [picture])
    record.unlink()
    assert not finished(record, expected, [])


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"BMEX": 3}', '{"BMEX": {}}'])
def test_half_a_record_is_no_record(done, text):
    record, expected, _, _ = done
    record.write_text(text)
    assert not finished(record, expected, [])
    assert read_record(record) in (None, {})


def test_the_pictures_are_those_that_are_drawn(tmp_path):
    assert set(PICTURES) == set(drawings())
    paths = picture_paths(tmp_path, BidsName.of("sub-01_ses-A_T1w"))
    assert tmp_path / "sub-01/figures/sub-01_ses-A_desc-summary_T1w.html" in paths
    # not all weights know it, so a run without it is complete
    assert tmp_path / "sub-01/figures/sub-01_ses-A_desc-uncertainty_T1w.svg" not in paths
