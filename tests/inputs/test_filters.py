# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

import pytest

from bmex_bids.exceptions import NoInputError, UsageError
from bmex_bids.inputs.collect import collect
from bmex_bids.inputs.filters import ENTITIES, PARTS, fits, read_filters

TREE = {
    "sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz": None,
    "sub-01/ses-a/anat/sub-01_ses-a_T2w.nii.gz": None,
    "sub-01/ses-b/anat/sub-01_ses-b_run-01_T1w.nii.gz": None,
    "sub-01/ses-b/anat/sub-01_ses-b_run-02_T1w.nii.gz": None,
    "sub-02/anat/sub-02_acq-mprage_T1w.nii": None,
    "sub-02/anat/sub-02_acq-mprage_rec-norm_T1w.nii.gz": None,
}
A, B1, B2 = "sub-01_ses-a_T1w", "sub-01_ses-b_run-01_T1w", "sub-01_ses-b_run-02_T1w"
MPRAGE, NORM, T2W = "sub-02_acq-mprage_T1w", "sub-02_acq-mprage_rec-norm_T1w", "sub-01_ses-a_T2w"


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, {A, B1, B2, MPRAGE, NORM, T2W}),
        ({"t2w": {}}, {A, B1, B2, MPRAGE, NORM, T2W}),
        ({"t1w": {"session": "a"}}, {A, T2W}),
        ({"t1w": {"session": "ses-a"}}, {A, T2W}),
        ({"t1w": {"session": ["a", "b"]}}, {A, B1, B2, T2W}),
        ({"t1w": {"session": None}}, {MPRAGE, NORM, T2W}),
        ({"t1w": {"session": ["a", None]}}, {A, MPRAGE, NORM, T2W}),
        ({"t1w": {"session": "*"}}, {A, B1, B2, T2W}),
        ({"t1w": {"run": 1}}, {B1, T2W}),
        ({"t1w": {"run": ["2"]}}, {B2, T2W}),
        ({"t1w": {"run": None, "acquisition": "*"}}, {MPRAGE, NORM, T2W}),
        ({"t1w": {"acquisition": "mprage", "reconstruction": None}}, {MPRAGE, T2W}),
        ({"t1w": {"acquisition": "mp"}}, {T2W}),
        ({"t1w": {"subject": "02", "extension": ".nii.gz"}}, {NORM, T2W}),
        ({"t1w": {"subject": "02", "extension": "nii"}}, {MPRAGE, T2W}),
        ({"t1w": {"datatype": "anat", "suffix": "T1w"}}, {A, B1, B2, MPRAGE, NORM, T2W}),
        ({"t2w": {"acquisition": "*"}}, {A, B1, B2, MPRAGE, NORM}),
        ({"t1w": {"session": "b"}, "t2w": {"session": "b"}}, {B1, B2}),
    ],
)
def test_images_that_pass(filters, expected, bids_skeleton):
    root = bids_skeleton(TREE)
    assert {image.name for image in collect(root, filters=filters)} == expected


def test_filters_and_labels_hold_together(bids_skeleton):
    root = bids_skeleton(TREE)
    found = collect(root, filters={"t1w": {"run": "1"}}, sessions=["b"], suffixes=["T1w"])
    assert [image.name for image in found] == [B1]


def test_filters_that_nothing_passes_are_shown(bids_skeleton):
    root = bids_skeleton(TREE)
    filters = {"t1w": {"session": "z"}, "t2w": {"session": "z"}}
    with pytest.raises(NoInputError, match=r'found 6, and none .*"session": "z".*filter file'):
        collect(root, filters=filters)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"t1w": {"session": "a"},}', "expected JSON in .*filters.json, got: .*line 1"),
        ("", "expected JSON"),
        ("[]", "got a list"),
        ('"t1w"', "got a text"),
        ('{"t1w": {}, "t1w": {}}', "t1w is there twice"),
        ('{"T1w": {}}', "keys t1w, t2w, flair, pdw, unit1 in .*, got T1w; .*small letters"),
        ('{"t1w": {}, "bold": {}, "fmap": {}}', "got bold, fmap; take out"),
        ('{"t1w": "a"}', "under t1w in .*, got a text"),
        ('{"t1w": {"acq": "mprage"}}', "got 'acq'; did you mean acquisition?"),
        ('{"t1w": {"sesion": "a"}}', "got 'sesion'; did you mean session?"),
        ('{"t1w": {"regex_search": true}}', "got 'regex_search'"),
        ('{"t1w": {"xyzzy": "a"}}', "known are subject, session"),
        ('{"t1w": {"session": true}}', "for session of t1w in .*, got true"),
        ('{"t1w": {"session": []}}', r"null .absent. or .* for session of t1w in .*, got \[\]"),
        ('{"t1w": {"session": {"a": 1}}}', "for session of t1w"),
        ('{"t1w": {"session": 1.5}}', "got 1.5"),
        ('{"t1w": {"suffix": "UNIT1"}}', 'expected the suffix T1w for t1w in .*, got "UNIT1"'),
        ('{"t2w": {"suffix": null}}', "expected the suffix T2w"),
    ],
)
def test_a_file_that_is_not_understood(content, message, tmp_path):
    path = tmp_path / "filters.json"
    path.write_text(content)
    with pytest.raises(UsageError, match=message):
        read_filters(path)


def test_a_file_that_is_understood(tmp_path):
    filters = {"t1w": {"session": None, "run": [1, "2"], "reconstruction": "*"}}
    path = tmp_path / "filters.json"
    path.write_text("\ufeff" + json.dumps(filters), encoding="utf-8")
    assert read_filters(path) == filters


def test_a_file_that_is_not_there_or_no_text(tmp_path):
    with pytest.raises(UsageError, match=r"No such file.*mounted"):
        read_filters(tmp_path / "nowhere.json")
    with pytest.raises(UsageError, match="Is a directory"):
        read_filters(tmp_path)
    (tmp_path / "binary.json").write_bytes(b"\xff\x00\xfe")
    with pytest.raises(UsageError, match="no UTF-8 text"):
        read_filters(tmp_path / "binary.json")


def test_a_filter_given_as_a_mapping_is_checked_too(bids_skeleton):
    with pytest.raises(UsageError, match=r"in the filters, got bold"):
        collect(bids_skeleton(TREE), filters={"bold": {}})


def test_every_entity_of_a_raw_file_that_pybids_knows_is_known():
    from bids.layout import Config

    theirs = {entity.name for entity in Config.load("bids").entities.values()}
    assert theirs - {"scans", "fmap"} <= {*ENTITIES, *PARTS}


@pytest.mark.parametrize(
    ("label", "wanted", "key", "fitting"),
    [
        ("01", "1", "run", True),
        ("01", "1", "ses", False),
        ("a*", "*", "ses", True),
        (None, ["*", None], "ses", True),
        ("a", None, "ses", False),
        ("anat", "ana", "", False),
    ],
)
def test_one_label(label, wanted, key, fitting):
    assert fits(label, wanted, key) == fitting
