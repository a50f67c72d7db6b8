# SPDX-License-Identifier: Apache-2.0
"""Whatever looks like an anatomical image and is not taken is named with its reason."""

from __future__ import annotations

import os
import re

import pytest

from bmex_bids.exceptions import NoInputError
from bmex_bids.inputs.collect import collect, survey

GOOD = "sub-01/anat/sub-01_T1w.nii.gz"
NAME = "its name is no BIDS name"
SUFFIX = "images of the suffix {} are not enhanced"
ON_DEMAND = "images of the suffix {} are taken when --modalities names it"
HOME = "its folder is of another participant or session"

#: file → the beginning of its reason
ODD = {
    # the place
    "sub-02/sub-02_T1w.nii.gz": "expected in the folder sub-02/anat, found in sub-02",
    "sub-02/ses-1/sub-02_ses-1_T1w.nii.gz": "expected in the folder sub-02/ses-1/anat, found in",
    "sub-02_T1w.nii.gz": "expected in the folder sub-02/anat, found at the dataset's top",
    "sub-02/Anat/sub-02_T1w.nii.gz": "expected in the folder sub-02/anat, found in sub-02/Anat",
    "sub-02/anatomy/sub-02_T2w.nii": "expected in the folder sub-02/anat",
    "sub-02/func/sub-02_T1w.nii.gz": "expected in the folder sub-02/anat, found in sub-02/func",
    "sub-02/anat/orig/sub-02_T1w.nii.gz": "expected in the folder sub-02/anat",
    "sub-02/ses-1.5/anat/sub-02_ses-1.5_T1w.nii.gz": NAME,
    "sub-02/anat/1.2.840.113619/sub-02_T1w.nii.gz": "expected in the folder sub-02/anat, found in",
    "sub-02/anat/1.2.840.113619/1.2.840.1.dcm": "a DICOM file in sub-02/anat/1.2.840.113619",
    "sub-02/session1/anat/sub-02_T1w.nii.gz": "expected in the folder sub-02/anat",
    "sub-02/ses-1/ses-2/anat/sub-02_ses-1_T1w.nii.gz": "expected in the folder sub-02/ses-1/anat",
    "sub-02/T1w/sub-02_T1w.nii.gz": "expected in the folder sub-02/anat",
    "Sub-02/anat/sub-02_T1w.nii.gz": "expected in the folder sub-02/anat, found in Sub-02/anat",
    "sub02/anat/sub-02_T1w.nii.gz": "expected in the folder sub-02/anat, found in sub02/anat",
    "subject_02/anat/sub-02_T1w.nii.gz": "expected in the folder sub-02/anat",
    "02/anat/02_T1w.nii.gz": NAME,
    "02/ses-1/anat/T1.nii.gz": NAME,
    "P02/anat/sub-02_T1w.nii.gz": "expected in the folder sub-02/anat, found in P02/anat",
    "anat/sub-02_T1w.nii.gz": "expected in the folder sub-02/anat, found in anat; move it there",
    "anat/T1w.nii.gz": NAME,
    "Anat/02_T1w.nii": NAME,
    "anatomical/0001.dcm": "a DICOM file in anatomical; convert with dcm2niix",
    "ses-1/anat/sub-02_ses-1_T1w.nii.gz": "expected in the folder sub-02/ses-1/anat, found in ses",
    "ses-1/sub-02_ses-1_T2w.nii.gz": "expected in the folder sub-02/ses-1/anat, found in ses-1",
    "ses-1/anatomy/sub-02_ses-1_T1w.nii": "expected in the folder sub-02/ses-1/anat, found in ses",
    "T1w/sub-02_T1w.nii.gz": "expected in the folder sub-02/anat, found in T1w; move it there",
    "images/sub-02_T1w.nii.gz": "expected in the folder sub-02/anat, found in images; move it",
    "siteA/sub-02/anat/sub-02_T1w.nii.gz": "expected in the folder sub-02/anat, found in siteA/",
    "siteA/sub-02/ses-1/anat/sub-02_ses-1_T1w.nii": "expected in the folder sub-02/ses-1/anat, fo",
    "sub-02/anat/sub-03_T1w.nii.gz": HOME,
    "sub-02/ses-1/anat/sub-02_T1w.nii.gz": HOME,
    "sub-02/anat/sub-02_ses-1_T1w.nii.gz": HOME,
    # the name
    "sub-02/anat/sub-02_t1w.nii.gz": "expected the suffix T1w, got t1w; rename it",
    "sub-02/anat/sub-02_T1W.nii.gz": "expected the suffix T1w, got T1W; rename it",
    "sub-02/anat/sub-02_T2W.nii": "expected the suffix T2w, got T2W; rename it",
    "sub-02/anat/sub-02_T1.nii.gz": "expected the suffix T1w, got T1; rename it",
    "sub-02/anat/sub-02_MPRAGE.nii.gz": "expected the suffix T1w, got MPRAGE; rename it",
    "sub-02/anat/sub-02_acq-0.8mm_T1w.nii.gz": NAME,
    "sub-02/anat/sub-02_T1w_brain.nii.gz": NAME,
    "sub-02/anat/sub-02_T1w (1).nii.gz": "its name is no BIDS name",
    "sub-02/anat/T1w.nii.gz": NAME,
    "sub-02/anat/mprage.nii.gz": NAME,
    "sub-02/anat/SUB-02_T1w.nii.gz": NAME,
    "sub-02/anat/sub_02_T1w.nii.gz": NAME,
    "sub-02/T1.nii.gz": NAME,
    # the extension
    "sub-02/anat/sub-02_T1w.NII.GZ": "expected the extension .nii.gz in small letters, got .NII.GZ",
    "sub-02/anat/sub-02_T1w.Nii": "expected the extension .nii in small letters, got .Nii",
    "sub-02/anat/sub-02_T1w.img": "an image in two files",
    "sub-02/anat/sub-02_T1w.hdr": "an image in two files",
    "sub-02/anat/sub-02_T1w.mgz": "expected .nii.gz or .nii, got .mgz; convert it (mri_convert",
    "sub-02/anat/sub-02_T1w.nrrd": "expected .nii.gz or .nii, got .nrrd; convert it",
    "sub-02/anat/sub-02_T1w.nii.bz2": "expected .nii.gz or .nii, got .nii.bz2; convert it",
    "sub-02/anat/sub-02_T1w.nii.zst": "expected .nii.gz or .nii, got .nii.zst; convert it",
    "sub-02/anat/sub-02_T1w copy.nii.gz": "its name is no BIDS name",
    "sub-02/anat/sub-02_T1w.nii.gz.part": "the name of a download that was broken off",
    "sub-02/anat/IM0001.dcm": "a DICOM file in sub-02/anat",
    "sub-02/anat/IM0001.IMA": "a DICOM file in sub-02/anat",
    "sub-02.zip": "packed",
    "sub-02.tar.gz": "packed",
    "sub-02/anat.zip": "packed",
    "sub-02/ses-1.tar.gz": "packed",
    "sub-02/ses-1/anat.tgz": "packed",
    "sub-02/anat/sub-02_T1w.tar.gz": "packed",
    "sub-02/anat/dicom.zip": "packed",
    "sub-02/T1.7z": "packed",
    "sub-02/anat/sub-02_T1w.nii.gz.bak": "expected .nii.gz or .nii, got '.nii.gz.bak'; rename it",
    "sub-02/anat/sub-02_T1w.nii.gz_old": "expected .nii.gz or .nii, got '.nii.gz_old'",
    "sub-02/anat/sub-02_T1w.nii.gz.dvc": "expected .nii.gz or .nii, got '.nii.gz.dvc'",
    "sub-02/anat/sub-02_T1w.nii.gz.1": "expected .nii.gz or .nii, got '.nii.gz.1'",
    "sub-02/anat/sub-02_T1w.nii_.gz": "expected .nii.gz or .nii, got '.nii_.gz'",
    "sub-02/anat/sub-02_t1w.gz": "expected .nii.gz or .nii, got '.gz'",
    "sub-02/anat/sub-02_T1w.niigz": "expected .nii.gz or .nii, got '.niigz'",
    "sub-02/anat/sub-02_T2w.gipl": "expected .nii.gz or .nii, got '.gipl'",
    "sub-02/anat/sub-02_T1w": "expected .nii.gz or .nii, got no extension",
    "sub-02/anat": "expected a folder of images, got a file",
    "sub-02/anat/sub-02_T1w.nii.gz.gz": "expected .nii.gz or .nii, got .nii.gz.gz; convert it",
    # other contrasts
    "sub-02/anat/sub-02_UNIT1.nii.gz": ON_DEMAND.format("UNIT1"),
    "sub-02/anat/sub-02_T2map.nii.gz": SUFFIX.format("T2map"),
    "sub-02/anat/sub-02_FLAIR.nii.gz": ON_DEMAND.format("FLAIR"),
    "sub-02/anat/sub-02_PDw.nii.gz": ON_DEMAND.format("PDw"),
    "sub-02/anat/sub-02_T2starw.nii.gz": SUFFIX.format("T2starw"),
    "sub-02/anat/sub-02_inv-1_MP2RAGE.nii.gz": SUFFIX.format("MP2RAGE"),
    "sub-02/anat/sub-02_inplaneT2.nii.gz": SUFFIX.format("inplaneT2"),
    "sub-02/sub-02_FLAIR.nii.gz": ON_DEMAND.format("FLAIR"),
}


def told(root, **wanted):
    return {item.name: item.reason for item in survey(root, **wanted).not_taken}


@pytest.mark.parametrize("odd", ODD)
def test_what_looks_like_an_image_is_told(odd, bids_skeleton, caplog):
    root = bids_skeleton({GOOD: None, odd: ""})
    found = told(root)
    assert list(found) == [odd]
    assert found[odd].startswith(ODD[odd])
    assert [image.relative_path for image in collect(root)] == [GOOD]
    assert caplog.messages == [f"left out: {odd}: {found[odd]}"]


@pytest.mark.parametrize(
    "name",
    [
        "derivatives/x/sub-02/anat/sub-02_T1w.NII.GZ", "sourcedata/sub-02/anat/sub-02_t1w.nii.gz",
        "sub-01/derivatives/sub-01_T1w.nii.gz", "code/T1w.nii.gz", "sub-01/anat/._sub-01_T1w.nii.gz",
        "sub-01/.hidden/sub-01_T1w.nii.gz", "sub-01/anat/sub-01_T1w.json", "T1w.json",
        "sub-01/anat/sub-01_desc-x_mask.nii.gz", "sub-01/anat/sub-01_mod-T1w_defacemask.nii.gz",
        "sub-01/func/sub-01_task-rest_bold.nii.gz", "sub-01/func/sub-01_acq-T1_task-x_bold.nii.gz",
        "sub-01/fmap/sub-01_magnitude1.nii.gz", "sub-01/dwi/sub-01_dwi.nii.gz",
        "sub-01/meg/sub-01_task-x_meg.ds/sub-01_T1w.nii.gz", "sub-01/sub-01_scans.tsv",
        "sub-01/anat/sub-01_T1w.nii.gz.bak", "sub-01/anat/sub-01_T2w.nii.gz.md5", "sub-01/anat/sub-01_T2w.png",
        "sub-01/anat/sub-01_T2w.nii.gz.json", "sub-01/anat/sub-01_T2w_notes", "sub-01/anat/sub-01_T2wx",
        "sub-01/func/sub-01_T1w.txt", "sub-01/anat/sub-01_T2w_qc.json",
        "sub-01/anat/notes.txt", "participants.tsv", "phenotype/T1w.json", "freesurfer/sub-01/mri/T1.mgz",
        "task/sub-01_bold.nii.gz",
        "sub-01/func.zip", "code.zip", "sub-01/func/sub-01_task-x_bold.tar.gz", "sub-01/mri/T1/notes.txt", "README",
    ],
)  # fmt: skip
def test_what_is_no_raw_anatomical_image_is_not_told(name, bids_skeleton):
    assert told(bids_skeleton({GOOD: None, name: ""})) == {}


@pytest.mark.parametrize(
    "name", ["sub-01/anat/sub-01_T1w.nii.gz", "anat/sub-01_T1w.nii.gz", "sub-01_T1w.nii.gz"]
)
def test_another_dataset_in_a_folder_is_left_alone(name, bids_skeleton):
    description = {"out/dataset_description.json": {"Name": "results", "BIDSVersion": "1.10.0"}}
    assert told(bids_skeleton({GOOD: None, f"out/{name}": "", **description})) == {}


@pytest.mark.parametrize("suffix", ["FLAIR", "PDw", "UNIT1"])
def test_a_contrast_on_demand_is_taken_when_it_is_named(suffix, bids_skeleton):
    name = f"sub-02/anat/sub-02_{suffix}.nii.gz"
    found = survey(bids_skeleton({GOOD: None, name: None}), suffixes=("T1w", suffix))
    assert [image.relative_path for image in found.images] == [GOOD, name]
    assert found.not_taken == ()


def test_images_that_are_taken_are_not_told(bids_skeleton):
    tree = {
        GOOD: None, "sub-01/anat/sub-01_T1w.nii": None, "sub-02/ses-1/anat/sub-02_ses-1_T2w.nii": None,
        "sub-01/anat/sub-01_part-phase_T1w.nii.gz": None, "sub-01/anat/sub-01_desc-x_T1w.nii.gz": None,
    }  # fmt: skip
    root = bids_skeleton(tree)
    (root / "sub-03").mkdir()
    (root / "sub-03/anat").symlink_to(root / "sub-01/anat")
    (root / "sub-04").symlink_to(root / "sub-02")
    (root / "sub-05").symlink_to(root)  # for ever
    names = {name for name in told(root) if not name.startswith(("sub-03/", "sub-04/"))}
    assert names == set()


@pytest.mark.parametrize(
    "link", ["sub-02", "sub-02/anat", "sub-02/ses-1", "sub-02/sub-02_T1w.nii.gz"]
)
def test_links_that_lead_nowhere(link, bids_skeleton):
    root = bids_skeleton({GOOD: None})
    (root / link).parent.mkdir(exist_ok=True)
    (root / link).symlink_to(".git/annex/objects/KEY")
    found = told(root)
    assert list(found) == [link]
    assert "datalad get" in found[link]


@pytest.mark.parametrize("link", ["sub-02/anat", "sub-02/ses-1"])
def test_links_to_folders_elsewhere_are_looked_into(link, bids_skeleton, tmp_path):
    inner = "anat/" if link.endswith("1") else ""
    root = bids_skeleton({GOOD: None, "sub-02/notes.txt": ""})
    store = tmp_path / "store" / inner
    store.mkdir(parents=True)
    (store / "sub-02_t1w.nii.gz").touch()
    (root / link).symlink_to(tmp_path / "store")
    assert list(told(root)) == [f"{link}/{inner}sub-02_t1w.nii.gz"]


def test_links_to_a_folder_above_are_not_walked(bids_skeleton):
    root = bids_skeleton({GOOD: None, "sub-02/sub-02_T1w.nii.gz": None})
    (root / "sub-02/ses-1").symlink_to("..")
    (root / "sub-02/ses-2").symlink_to(".")
    assert list(told(root)) == ["sub-02/sub-02_T1w.nii.gz"]


def test_dicom_is_told_once_a_folder_and_known_by_its_bytes(bids_skeleton):
    series = {f"sub-02/anat/t1/{n:04d}": b"\0" * 128 + b"DICM" for n in range(20)}
    root = bids_skeleton({GOOD: None, **series, "sub-02/anat/README": ""})
    assert told(root) == {
        "sub-02/anat/t1/0000": "20 DICOM files in sub-02/anat/t1; convert with dcm2niix"
    }


def test_names_that_cannot_be_printed_can_be_written(bids_skeleton):
    root = bids_skeleton({GOOD: None})
    folder = os.fsencode(root) + b"/sub-01"
    names = (
        b"sub-01_acq-\x1b[31m_T1w.nii.gz",
        b"sub-01_acq-\xff_T1w.NII",
        b"anat/sub-01_T2w.nii.gz\r",  # by a script that was written in Windows
    )
    for name in names:
        os.close(os.open(folder + b"/" + name, os.O_CREAT))
    found = told(root)
    assert len(found) == len(names)
    assert all((name + reason).isprintable() for name, reason in found.items())
    assert "".join(found).encode("utf-8")


def test_only_the_participants_asked_for_are_looked_at(bids_skeleton, monkeypatch):
    tree = {f"sub-{n:02d}/sub-{n:02d}_T1w.nii.gz": "" for n in range(5)}
    root = bids_skeleton({"sub-00/anat/sub-00_T1w.nii.gz": None, **tree})
    seen = []
    real = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: seen.append(str(path)) or real(path))
    assert set(told(root, participants=["00"])) == {"sub-00/sub-00_T1w.nii.gz"}
    assert not [path for path in seen if path.endswith(("sub-01", "sub-02", "sub-03", "sub-04"))]


# ------------------------------------------------------------------ labels asked for
def asked(root, *labels, **more):
    items = survey(root, participants=list(labels), **more).not_taken
    return {item.name: item.reason for item in items if item.asked_for}


def test_a_participant_asked_for_that_brings_nothing(bids_skeleton):
    root = bids_skeleton({GOOD: None, "sub-02/anat/sub-02_T2map.nii.gz": "", "sub-03/anat/x": ""})
    found = asked(root, "01", "02", "03")
    assert set(found) == {"sub-02", "sub-03"}
    assert "sub-02_T2map.nii.gz: images of the suffix T2map are not enhanced" in found["sub-02"]
    assert "no T1w or T2w image in sub-03" in found["sub-03"]
    assert asked(root, "01") == {}
    assert not [item for item in survey(root).not_taken if item.asked_for]


@pytest.mark.parametrize(
    "wanted",
    [
        {"suffixes": ["T1w"]}, {"sessions": ["a"]}, {"runs": ["1"]},
        {"filters": {"t2w": {"acquisition": "x"}}},
    ],
)  # fmt: skip
def test_a_participant_whose_images_were_not_asked_for(wanted, bids_skeleton):
    one = "sub-01/ses-a/anat/sub-01_ses-a_run-1_T1w.nii.gz"
    root = bids_skeleton({one: None, "sub-02/ses-b/anat/sub-02_ses-b_run-2_T2w.nii.gz": None})
    assert "found 1, not of the sessions, runs" in asked(root, "01", "02", **wanted)["sub-02"]


def test_when_all_bring_nothing_the_error_says_why(bids_skeleton):
    root = bids_skeleton({"sub-02/anat/sub-02_UNIT1.nii.gz": "", "sub-03/sub-03_T1w.nii.gz": ""})
    for participants in (None, ["02", "03"]):
        with pytest.raises(NoInputError) as raised:
            survey(root, participants=participants)
        message = str(raised.value)
        assert "sub-02/anat/sub-02_UNIT1.nii.gz: images of the suffix UNIT1" in message
        assert "sub-03/sub-03_T1w.nii.gz: expected in the folder sub-03/anat" in message


def test_when_all_bring_nothing_each_that_was_asked_for_is_named_once(bids_skeleton):
    root = bids_skeleton({"sub-02/anat/sub-02_T2map.nii.gz": "", "sub-03/anat/notes.txt": ""})
    with pytest.raises(NoInputError) as raised:
        survey(root, participants=["02", "03"])
    message = str(raised.value)
    assert "sub-03: expected an image of sub-03" in message
    assert message.count("sub-02_T2map.nii.gz") == 1


@pytest.mark.parametrize(
    ("tree", "hint"),
    [
        ("study/bids/sub-01/anat/sub-01_T1w.nii.gz", "bids in it meant?"),
        ("study/01/anat/01_T1w.nii.gz", "such as 01 to sub-01"),
        ("study/01/ses-1/anat/01_T1w.nii.gz", "such as 01 to sub-01"),
        ("study/code/anat/T1.nii.gz", "is this the dataset's top folder?"),
        ("study/README", "is this the dataset's top folder?"),
    ],
)
def test_a_folder_without_participants_is_asked_what_is_meant(tree, hint, bids_skeleton):
    root = bids_skeleton({tree: ""})
    with pytest.raises(NoInputError, match=re.escape(hint)):
        survey(root / "study")
