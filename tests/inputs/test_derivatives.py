# SPDX-License-Identifier: Apache-2.0
"""Masks made elsewhere: the right one is found, and never one of something else."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from bmex_bids.exceptions import UsageError
from bmex_bids.inputs.collect import collect
from bmex_bids.inputs.derivatives import (
    choose_mask,
    find_masks,
    overlap,
    parse_derivatives,
)

S1 = "sub-01/ses-a/anat/sub-01_ses-a"
S2 = "sub-02/anat/sub-02"


@pytest.fixture
def case(bids_skeleton, tmp_path):
    """Make a dataset and one derivative; return an image by its name and the derivatives."""

    def make(images, masks, wanted=None):
        root = bids_skeleton(dict.fromkeys(images))
        folder = bids_skeleton(
            masks if isinstance(masks, dict) else dict.fromkeys(masks), name="fmriprep"
        )
        found = collect(root)
        image = next(i for i in found if wanted is None or i.name == wanted)
        return image, {"fmriprep": folder}

    return make


def chosen(image, derivatives):
    masks, _ = find_masks(image, derivatives)
    return masks[0].path.name if masks else None


#: name → (raw images, the first of which is asked for; masks; name of the right one)
NAMES = {
    "the same entities": ([f"{S1}_T1w.nii.gz"], [f"{S1}_desc-brain_mask.nii.gz"], 0),
    "no session": ([f"{S2}_T1w.nii.gz"], [f"{S2}_desc-brain_mask.nii.gz"], 0),
    "not compressed": ([f"{S2}_T1w.nii.gz"], [f"{S2}_desc-brain_mask.nii"], 0),
    "space-T1w": ([f"{S2}_T1w.nii.gz"], [f"{S2}_space-T1w_desc-brain_mask.nii.gz"], 0),
    "space-T1w before no space": (
        [f"{S2}_T1w.nii.gz"],
        [f"{S2}_desc-brain_mask.nii.gz", f"{S2}_space-T1w_desc-brain_mask.nii.gz"],
        1,
    ),
    "space-T2w of a T2w image": (
        [f"{S2}_T2w.nii.gz", f"{S2}_T1w.nii.gz"],
        [f"{S2}_desc-brain_mask.nii.gz", f"{S2}_space-T2w_desc-brain_mask.nii.gz"],
        1,
    ),
    "no space, T2w image alone": ([f"{S2}_T2w.nii.gz"], [f"{S2}_desc-brain_mask.nii.gz"], 0),
    "run 1 is run 01": (
        [f"{S2}_run-01_T1w.nii.gz", f"{S2}_run-02_T1w.nii.gz"],
        [f"{S2}_run-1_desc-brain_mask.nii.gz", f"{S2}_run-2_desc-brain_mask.nii.gz"],
        0,
    ),
    "exact before fewer entities": (
        [f"{S2}_acq-x_run-1_T1w.nii.gz"],
        [f"{S2}_acq-x_desc-brain_mask.nii.gz", f"{S2}_acq-x_run-1_desc-brain_mask.nii.gz"],
        1,
    ),
    "fewer entities, the only image": (
        [f"{S2}_acq-x_T1w.nii.gz"], [f"{S2}_desc-brain_mask.nii.gz"], 0,
    ),
    "the image's own grid before a coarser one": (
        [f"{S2}_T1w.nii.gz"],
        [f"{S2}_res-2_desc-brain_mask.nii.gz", f"{S2}_desc-brain_mask.nii.gz"],
        1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_the_right_mask_is_found(name, case):
    images, masks, right = NAMES[name]
    wanted = images[0].rpartition("/")[2].split(".")[0]
    image, derivatives = case(images, masks, wanted)
    assert chosen(image, derivatives) == masks[right].rpartition("/")[2]


@pytest.mark.parametrize(
    ("images", "mask"),
    [
        ([f"{S2}_T1w.nii.gz"], "sub-01/anat/sub-01_desc-brain_mask.nii.gz"),
        ([f"{S2}_T1w.nii.gz"], "sub-02/anat/sub-01_desc-brain_mask.nii.gz"),
        ([f"{S2}_T1w.nii.gz"], "sub-02/anat/sub-0_desc-brain_mask.nii.gz"),
        ([f"{S1}_T1w.nii.gz"], "sub-01/ses-b/anat/sub-01_ses-b_desc-brain_mask.nii.gz"),
        ([f"{S1}_T1w.nii.gz"], "sub-01/ses-a/anat/sub-01_ses-b_desc-brain_mask.nii.gz"),
        ([f"{S1}_T1w.nii.gz"], "sub-01/anat/sub-01_desc-brain_mask.nii.gz"),
        ([f"{S1}_T1w.nii.gz"], "sub-01/ses-a/anat/sub-01_desc-brain_mask.nii.gz"),
        ([f"{S2}_acq-01_T1w.nii.gz"], f"{S2}_acq-1_desc-brain_mask.nii.gz"),
        ([f"{S2}_T1w.nii.gz"], "sub-02/ses-a/anat/sub-02_ses-a_desc-brain_mask.nii.gz"),
        ([f"{S2}_run-1_T1w.nii.gz"], f"{S2}_run-2_desc-brain_mask.nii.gz"),
        ([f"{S2}_T1w.nii.gz"], f"{S2}_run-1_desc-brain_mask.nii.gz"),
        ([f"{S2}_acq-x_T1w.nii.gz"], f"{S2}_acq-y_desc-brain_mask.nii.gz"),
        ([f"{S2}_T1w.nii.gz"], f"{S2}_space-MNI152NLin2009cAsym_desc-brain_mask.nii.gz"),
        ([f"{S2}_T1w.nii.gz"], f"{S2}_space-T2w_desc-brain_mask.nii.gz"),
        ([f"{S2}_T2w.nii.gz", f"{S2}_T1w.nii.gz"], f"{S2}_desc-brain_mask.nii.gz"),
        ([f"{S2}_T1w.nii.gz"], f"{S2}_label-GM_desc-brain_mask.nii.gz"),
        ([f"{S2}_T1w.nii.gz"], f"{S2}_desc-brainstem_mask.nii.gz"),
        ([f"{S2}_T1w.nii.gz"], f"{S2}_desc-brain_T1w.nii.gz"),
        ([f"{S2}_T1w.nii.gz"], f"{S2}_desc-brain_mask.json"),
        ([f"{S2}_run-1_T1w.nii.gz", f"{S2}_run-2_T1w.nii.gz"], f"{S2}_desc-brain_mask.nii.gz"),
    ],
    ids=[
        "another subject", "another subject in its folder", "a subject that begins alike",
        "another session", "another session in its folder", "a template of all sessions",
        "a name without the session", "another acquisition but for a zero",
        "a session where the image has none", "another run", "a run where the image has none",
        "another acquisition", "a standard space", "the other contrast's space",
        "that of the T1w image beside it", "a part of the brain", "another description",
        "an image that is no mask", "a sidecar without its mask", "a template of both runs",
    ],
)  # fmt: skip
def test_a_mask_of_something_else_is_not_taken(images, mask, case):
    content = {mask: {} if mask.endswith(".json") else None}
    image, derivatives = case(images, content, images[0].rpartition("/")[2].split(".")[0])
    assert chosen(image, derivatives) is None
    mask, warnings = choose_mask(image, derivatives)
    assert mask is None
    assert "no brain mask of" in warnings[-1]
    assert "in the derivatives fmriprep; it is made here" in warnings[-1]


RAW = "bids:raw:sub-02/anat/sub-02"
OWN = f"{RAW}_run-1_T1w.nii.gz"


@pytest.mark.parametrize(
    ("sources", "taken"),
    [
        ({}, True),
        ({"Sources": [OWN]}, True),
        ({"RawSources": ["sub-02/anat/sub-02_run-1_T1w.nii.gz"]}, True),
        ({"Sources": OWN}, True),
        ({"Sources": [OWN, f"{RAW}_T2w.nii.gz"]}, True),
        ({"Sources": ["bids::sub-02/anat/sub-02_desc-preproc_T1w.nii.gz"]}, True),
        ({"Sources": [OWN, f"{RAW}_run-2_T1w.nii.gz"]}, False),
        ({"Sources": [f"{RAW}_run-2_T1w.nii.gz"]}, False),
        ({"Sources": [f"{RAW}_T2w.nii.gz"]}, False),
    ],
)
def test_the_sidecar_has_a_say(sources, taken, case):
    stem = f"{S2}_run-1_desc-brain_mask"
    image, derivatives = case(
        [f"{S2}_run-1_T1w.nii.gz"], {f"{stem}.nii.gz": None, f"{stem}.json": sources}
    )
    mask, warnings = choose_mask(image, derivatives)
    assert (mask is not None) == taken
    if not taken:
        assert "its sidecar says that it was made from sub-02_" in warnings[0]


# ------------------------------------------------------------------ the grid
def shifted(make_image, mm, shape=(8, 9, 10), **options):
    return make_image("LPS", shape, "uint8", origin=(-3 + mm, -4.0, -5.0), **options)


@pytest.mark.parametrize(
    ("options", "taken"),
    [
        ({"mm": 0}, True),
        ({"mm": 0, "shape": (16, 18, 20), "spacing": (0.5, 0.5, 0.5)}, True),
        ({"mm": 2, "shape": (4, 5, 6)}, True),
        ({"mm": -20, "shape": (60, 60, 60)}, True),
        ({"mm": 100}, False),
        ({"mm": 4}, False),
    ],
    ids=["same", "finer", "a crop", "larger", "elsewhere", "half elsewhere"],
)
def test_another_grid_must_be_of_the_same_space(options, taken, case, make_image):
    image, derivatives = case(
        [f"{S2}_T1w.nii.gz"], {f"{S2}_desc-brain_mask.nii.gz": shifted(make_image, **options)}
    )
    mask, warnings = choose_mask(image, derivatives)
    assert (mask is not None) == taken
    if not taken:
        assert "its field of view differs from the image's" in warnings[0]


def test_the_order_of_the_axes_does_not_matter(case, make_image):
    mask = make_image("SAR", (10, 9, 8), "uint8")
    image, derivatives = case([f"{S2}_T1w.nii.gz"], {f"{S2}_desc-brain_mask.nii.gz": mask})
    assert chosen(image, derivatives) == "sub-02_desc-brain_mask.nii.gz"


def test_overlap_by_hand():
    one = ((8, 8, 8), np.eye(4))
    half = ((8, 8, 8), np.array([[1, 0, 0, 4.0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]))
    small = ((2, 2, 2), np.diag([1.0, 1, 1, 1]))
    far = ((8, 8, 8), np.array([[1, 0, 0, 9.0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]))
    assert overlap(one, one) == 1
    assert overlap(one, half) == 0.5
    assert overlap(one, small) == overlap(small, one) == 1
    assert overlap(one, far) == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "cannot be read"), (b"not gzip", "cannot be read"), ("4D", "not three-dimensional")],
)
def test_a_mask_that_is_no_image_is_said(content, message, case):
    if content == "4D":
        content = nib.Nifti1Image(np.zeros((8, 9, 10, 2), np.uint8), np.eye(4))
    image, derivatives = case([f"{S2}_T1w.nii.gz"], {f"{S2}_desc-brain_mask.nii.gz": content})
    mask, warnings = choose_mask(image, derivatives)
    assert mask is None
    assert message in warnings[0]


# ------------------------------------------------------------------ several
def test_the_first_derivative_wins_and_the_others_are_named(case, bids_skeleton):
    name = f"{S2}_desc-brain_mask.nii.gz"
    image, first = case([f"{S2}_T1w.nii.gz"], [name])
    second = bids_skeleton({name: None}, name="byhand")
    mask, warnings = choose_mask(image, {"byhand": second, **first})
    assert mask.path == second / name
    assert mask.source == f"byhand: {name}"
    assert warnings == (f"several brain masks: byhand: {name} is used, not fmriprep: {name}",)
    mask, _ = choose_mask(image, {**first, "byhand": second})
    assert mask.source == f"fmriprep: {name}"
    masks, _ = find_masks(image, {**first, "byhand": second})
    assert [m.source for m in masks] == [f"fmriprep: {name}", f"byhand: {name}"]


def test_without_derivatives_nothing_is_said(case):
    image, _ = case([f"{S2}_T1w.nii.gz"], [])
    assert choose_mask(image, {}) == (None, ())


# ------------------------------------------------------------------ the flag
def test_names_and_paths(tmp_path, monkeypatch):
    for name in ("a", "b", "c=d", "e"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse_derivatives(
        [f"first={tmp_path / 'b'}", "a", str(tmp_path / "c=d"), "f = ~/e"]
    ) == {
        "first": tmp_path / "b",
        "a": tmp_path / "a",
        "c=d": tmp_path / "c=d",
        "f": tmp_path / "e",
    }
    assert list(parse_derivatives(["z=b", "y=a"])) == ["z", "y"]
    assert parse_derivatives(["a", "a", "a=a"]) == {"a": tmp_path / "a"}
    assert parse_derivatives([]) == {}


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (["x=/nowhere/at/all"], "in /nowhere/at/all, found no such folder; .*mounted"),
        (["/nowhere/at/all"], "found no such folder"),
        (["x=FILE"], "found a file"),
        (["x="], "expected NAME=PATH or a path .*got 'x='"),
        (["=a"], "got '=a'"),
        ([""], "got ''"),
        (["x=a", "x=b"], "one folder for the derivatives x, got .*a and .*b; give them different"),
    ],
)
def test_what_is_no_derivative(items, message, tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "FILE").write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=message):
        parse_derivatives(items)
