# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

import pytest

from bmex_bids.exceptions import NoInputError
from bmex_bids.running.validation import Finding, findings, refuse_fatal, summary, validate


def test_only_errors_are_read_and_the_fatal_ones_come_first():
    issues = [
        {"code": "README_FILE_MISSING", "severity": "warning", "location": "/"},
        {
            "code": "TSV_VALUE_INCORRECT_TYPE",
            "severity": "error",
            "location": "/a.tsv",
            "issueMessage": "'x'\n  y",
        },
        {
            "code": "MISSING_DATASET_DESCRIPTION",
            "severity": "error",
            "affects": ["/dataset_description.json"],
        },
    ]
    assert findings(json.dumps({"issues": {"issues": issues}})) == [
        Finding("MISSING_DATASET_DESCRIPTION", "/dataset_description.json"),
        Finding("TSV_VALUE_INCORRECT_TYPE", "/a.tsv", "'x' y"),
    ]


def test_only_what_the_app_needs_is_fatal():
    refuse_fatal([Finding("TSV_VALUE_INCORRECT_TYPE", "/a.tsv"), Finding("EMPTY_FILE", "/b.nii")])
    with pytest.raises(NoInputError, match=r"JSON_INVALID.*--skip-bids-validation"):
        refuse_fatal([Finding("JSON_INVALID", "/dataset_description.json")])


def test_a_long_list_is_cut_and_says_so():
    lines = summary([Finding("E", f"/{number}") for number in range(13)])
    assert lines[0] == "  E /0"
    assert lines[-1] == "  … and 3 more"


def test_the_real_validator_on_a_good_and_a_bad_dataset(bids_skeleton, make_image):
    tree = {
        "README.md": "A dataset for a test.\n" * 20,
        "sub-01": {"anat/sub-01_T1w.nii.gz": None},
    }
    assert validate(bids_skeleton(tree)) == []
    bad = validate(bids_skeleton(tree, name="bad", description=False))
    assert [error.code for error in bad if error.fatal] == ["MISSING_DATASET_DESCRIPTION"]


def test_without_the_validator_there_is_no_answer(tmp_path, monkeypatch):
    monkeypatch.setattr("bmex_bids.running.validation.PROGRAM", "no-such-program")
    assert validate(tmp_path) is None


def test_only_the_chosen_participants_and_the_top_level_are_validated(bids_skeleton):
    """The validator read every file of the dataset, each time, whoever was asked for."""
    tree = {
        "README.md": "A dataset for a test.\n" * 20,
        "participants.tsv": [{"participant_id": f"sub-{label}"} for label in ("01", "02", "03")],
        "sub-01": {"anat/sub-01_T1w.nii.gz": None},
        "sub-02": {"anat/sub-02_wrong_T1w.nii.gz": None},
        "sub-03": {"anat/sub-03_T1w.nii.gz": ""},
    }
    root = bids_skeleton(tree)
    assert {error.location[:7] for error in validate(root)} == {"/sub-02", "/sub-03"}
    assert validate(root, ["01"]) == []
    assert {error.location[:7] for error in validate(root, ["01", "02"])} == {"/sub-02"}
    (root / "dataset_description.json").unlink()
    assert [error.fatal for error in validate(root, ["01"])] == [True]


def test_what_the_validator_sees_does_not_grow_with_the_dataset(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "bmex_bids.running.validation._validate",
        lambda folder: seen.append(sorted(path.name for path in folder.iterdir())),
    )
    for number in range(50):
        (tmp_path / f"sub-{number:02d}/anat").mkdir(parents=True)
    (tmp_path / "derivatives/x").mkdir(parents=True)
    (tmp_path / "dataset_description.json").touch()
    validate(tmp_path, ["07"])
    assert seen == [["dataset_description.json", "sub-07"]]
