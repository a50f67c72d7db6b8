# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest

from bmex_bids.exceptions import UsageError
from bmex_bids.inputs.collect import SourceImage
from bmex_bids.inputs.scans_filter import read_filter, refusal

ROW = {"QU_motion": "2", "site": "A b", "pass": "yes", "score": "1e1", "none": "n/a"}


@pytest.mark.parametrize(
    ("text", "passes"),
    [
        ("QU_motion<=2", True),
        ("QU_motion < 2", False),
        ("QU_motion>=2.0", True),
        ("QU_motion>1.5 and QU_motion!=3", True),
        ("QU_motion==2", True),
        ("score = 10", True),
        ("site='A b'", True),
        ('"site" != "A b"', False),
        ("pass=yes and not site=B", True),
        ("QU_motion>2 or pass=yes and score>5", True),
        ("(QU_motion>2 or pass=yes) and score>50", False),
        ("none<=2", False),
        ("none!=2", False),
        ("absent=1", False),
        ("site<3", False),
        ("pass='and'", False),
    ],
)
def test_rows_that_pass(text, passes):
    assert read_filter(text).passes(ROW) is passes


@pytest.mark.parametrize(
    "text",
    [
        "", "QU_motion", "QU_motion<=", "<=2", "QU_motion=<2", "(a=1", "a=1)", "a=1 b=2", "a=1 and",
        "a<b", "a=1 & b=2", "__import__('os').system('true')", "a='b",
    ],
)  # fmt: skip
def test_what_is_not_understood_is_refused(text):
    with pytest.raises(UsageError, match="write for example --scans-filter"):
        read_filter(text)


@pytest.fixture
def image(bids_skeleton):
    def make(rows):
        bids = bids_skeleton(
            {"sub-01/ses-A/sub-01_ses-A_scans.tsv": rows, "sub-01/ses-A/anat/x.txt": ""}
        )
        path = bids / "sub-01/ses-A/anat/sub-01_ses-A_T1w.nii.gz"
        return SourceImage(path, {"sub": "01", "ses": "A"}, "T1w", {}, bids)

    return make


def test_the_row_that_names_the_image_decides(image):
    rows = [
        {"filename": "anat/sub-01_ses-A_T1w.nii.gz", "QU_motion": "3"},
        {"filename": "anat/sub-01_ses-A_T2w.nii.gz", "QU_motion": "1"},
    ]
    found = image(rows)
    reason = refusal(found, found.root, read_filter("QU_motion<=2"))
    assert reason == (
        "QU_motion 3 in sub-01_ses-A_scans.tsv; --scans-filter 'QU_motion<=2' leaves it out"
    )
    assert refusal(found, found.root, read_filter("QU_motion<=3")) == ""


def test_each_of_two_rows_must_pass(image):
    name = "anat/sub-01_ses-A_T1w.nii.gz"
    found = image([{"filename": name, "q": "1"}, {"filename": name, "q": "n/a"}])
    assert refusal(found, found.root, read_filter("q<2")).startswith("q n/a in")


def test_a_row_about_another_file_is_none(image):
    found = image([{"filename": "anat/sub-01_ses-A_T2w.nii.gz", "QU_motion": "1"}])
    reason = refusal(found, Path(found.root), read_filter("QU_motion<=2"))
    assert reason.startswith("no row about it in a scans.tsv")
