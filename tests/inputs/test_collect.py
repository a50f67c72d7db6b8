# SPDX-License-Identifier: Apache-2.0
import os
from pathlib import Path

import pytest

from bmex_bids.common.names import BidsName
from bmex_bids.exceptions import NoInputError, UsageError
from bmex_bids.inputs import collect as collect_module
from bmex_bids.inputs import sidecars
from bmex_bids.inputs.collect import collect
from bmex_bids.inputs.sidecars import read_json

TWO = {
    "sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz": None,
    "sub-01/ses-a/anat/sub-01_ses-a_T2w.nii.gz": None,
    "sub-01/ses-b/anat/sub-01_ses-b_run-01_T1w.nii.gz": None,
    "sub-01/ses-b/anat/sub-01_ses-b_run-02_T1w.nii.gz": None,
    "sub-02/anat/sub-02_acq-mprage_T1w.nii": None,
}


def names(images):
    return [image.name for image in images]


def test_all_images_sorted_with_their_entities(bids_skeleton):
    root = bids_skeleton(TWO)
    images = collect(root)
    assert [image.relative_path for image in images] == sorted(TWO)
    one, last = images[2], images[-1]
    assert one.entities == {"sub": "01", "ses": "b", "run": "01"}
    assert (one.subject, one.session, one.suffix) == ("01", "b", "T1w")
    assert one.stem == "sub-01_ses-b_run-01"
    assert one.name == "sub-01_ses-b_run-01_T1w"
    assert one.path == root / "sub-01/ses-b/anat/sub-01_ses-b_run-01_T1w.nii.gz"
    assert (last.session, last.name) == (None, "sub-02_acq-mprage_T1w")


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({"participants": ["02"]}, ["sub-02_acq-mprage_T1w"]),
        ({"sessions": ["a"]}, ["sub-01_ses-a_T1w", "sub-01_ses-a_T2w"]),
        ({"suffixes": ["T2w"]}, ["sub-01_ses-a_T2w"]),
        ({"runs": ["1"]}, ["sub-01_ses-b_run-01_T1w"]),
        ({"runs": ["002"]}, ["sub-01_ses-b_run-02_T1w"]),
        ({"participants": ["01"], "sessions": ["a"], "suffixes": ["T1w"]}, ["sub-01_ses-a_T1w"]),
    ],
)
def test_what_was_asked_for(wanted, found, bids_skeleton):
    assert names(collect(bids_skeleton(TWO), **wanted)) == found


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (
            {"participants": ["01", "0007"]},
            "expected participant 0007 in .*found only 01, 02;.*mounted",
        ),
        ({"sessions": ["z"]}, "expected session z in .*found only a, b;"),
        ({"runs": ["1", "99"]}, "expected run 99 in .*found only 1, 2;"),
    ],
)
def test_a_label_that_is_not_there_is_named(wanted, message, bids_skeleton):
    with pytest.raises(UsageError, match=message):
        collect(bids_skeleton(TWO), **wanted)


def test_a_participant_is_its_whole_label(bids_skeleton):
    tree = {f"sub-{label}/anat/sub-{label}_T1w.nii.gz": None for label in ("1", "10", "01")}
    assert names(collect(bids_skeleton(tree), participants=["1"])) == ["sub-1_T1w"]


def test_no_folder(tmp_path):
    with pytest.raises(UsageError, match=r"found no such folder; inside a container.*mounted"):
        collect(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "tree",
    [
        {},
        {"anat": {"sub-01_T1w.nii.gz": None}},  # one level too deep
        {"sub-01/func/sub-01_task-rest_bold.nii.gz": None},
        {"sub-01/anat/localizer.nii.gz": None},
        {"sub-01/anat/sub-01_T1w.json": {"EchoTime": 1}},
        {"sub-01/anat": {}},
    ],
)
def test_nothing_to_do(tree, bids_skeleton):
    with pytest.raises(NoInputError):
        collect(bids_skeleton(tree))


def test_a_contrast_that_is_not_there(bids_skeleton):
    with pytest.raises(NoInputError, match="expected a T2w image"):
        collect(bids_skeleton({"sub-01/anat/sub-01_T1w.nii.gz": None}), suffixes=["T2w"])


def test_what_is_no_raw_image_is_left_alone(bids_skeleton):
    name = "sub-01/anat/sub-01_T1w.nii.gz"
    others = ["derivatives/bmex", "sourcedata", "code", "work", ".git/annex", "sub-01/.cache"]
    tree = {name: None} | {f"{folder}/{name}": None for folder in others}
    tree["sub-01/func/sub-01_T1w.nii.gz"] = None
    tree["sub-01/anat/sub-01_desc-x_mask.nii.gz"] = None
    assert [image.relative_path for image in collect(bids_skeleton(tree))] == [name]


def test_a_dataset_inside_a_folder_named_derivatives(bids_skeleton):
    root = bids_skeleton({"sub-01/anat/sub-01_T1w.nii.gz": None}, name="derivatives/work/raw")
    assert names(collect(root)) == ["sub-01_T1w"]


def test_metadata_are_inherited_and_the_nearer_overrules(bids_skeleton):
    root = bids_skeleton(
        {
            **TWO,
            "T1w.json": {"MagneticFieldStrength": 3, "Manufacturer": "top", "EchoTime": 0.1},
            "T2w.json": {"EchoTime": 0.9},
            "acq-mprage_T1w.json": {"InversionTime": 1.0},
            "sub-01/sub-01_T1w.json": {"Manufacturer": "subject"},
            "sub-01/ses-b/anat/sub-01_ses-b_T1w.json": {"EchoTime": 0.2},
            "sub-01/ses-b/anat/sub-01_ses-b_run-01_T1w.json": {"EchoTime": 0.3},
            "sub-01/ses-b/anat/sub-01_ses-b_run-02_T1w.json": "not JSON",
        }
    )
    found = {image.name: image.metadata for image in collect(root)}
    common = {"MagneticFieldStrength": 3, "Manufacturer": "subject"}
    assert found["sub-01_ses-b_run-01_T1w"] == {**common, "EchoTime": 0.3}
    assert found["sub-01_ses-b_run-02_T1w"] == {**common, "EchoTime": 0.2}
    assert found["sub-01_ses-a_T1w"] == {**common, "EchoTime": 0.1}
    assert found["sub-01_ses-a_T2w"] == {"EchoTime": 0.9}
    assert found["sub-02_acq-mprage_T1w"] == {
        "MagneticFieldStrength": 3, "Manufacturer": "top", "EchoTime": 0.1, "InversionTime": 1.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    "name", ["T1w.nii.gz", "brain.nii", "ses-a_T1w.nii", "sub-_T1w.nii", "sub-1_x_T1w.nii"]
)
def test_names_that_are_none(name):
    assert BidsName.parse(name) is None


def test_the_ten_images_of_the_lifespan(shared_data):
    images = collect(shared_data / "lifespan-bids")
    expected = ["sub-0001_ses-V01_T1w", "sub-0001_ses-V02_T1w"]
    expected += [f"sub-000{n}_ses-V01_T1w" for n in range(2, 9)] + ["sub-0009_ses-V01_T2w"]
    assert names(images) == expected


def test_the_datasets_top_is_listed_once_and_not_for_each_image(bids_skeleton, monkeypatch):
    """It took the square of the number of participants: 100,000 of them would have taken days."""
    tree = {f"sub-{n:02d}/anat/sub-{n:02d}_T1w.nii.gz": b"" for n in range(20)}
    bids = bids_skeleton({**tree, "T1w.json": {"MagneticFieldStrength": 3}})
    paths = sorted(bids.glob("sub-*/anat/*.nii.gz"))
    listed = []
    real = sidecars.os.scandir
    monkeypatch.setattr(sidecars.os, "scandir", lambda path: listed.append(path) or real(path))
    images = [sidecars.sidecar_metadata(path, bids) for path in paths]
    assert images == [{"MagneticFieldStrength": 3}] * 20
    assert listed.count(bids) == 1


def test_a_label_with_a_slash_is_no_participant(bids_skeleton):
    bids = bids_skeleton({"sub-01/anat/sub-01_T1w.nii.gz": b""})
    (bids.parent / "other").mkdir()
    with pytest.raises(UsageError, match="expected participant 01/"):
        collect_module.collect(bids, participants=["01/../../other"])


def test_one_participant_needs_no_look_at_the_others(bids_skeleton, monkeypatch):
    tree = {f"sub-{n:02d}/anat/sub-{n:02d}_T1w.nii.gz": b"" for n in range(5)}
    bids = bids_skeleton(tree)
    seen = []
    real = Path.is_dir
    monkeypatch.setattr(Path, "is_dir", lambda path: seen.append(path.name) or real(path))
    (image,) = collect_module.collect(bids, participants=["03"])
    assert image.subject == "03"
    assert not {"sub-00", "sub-01", "sub-02", "sub-04"} & set(seen)


@pytest.mark.parametrize(
    "label", [b"line\nbreak", b"tab\tstop", b"\x1b[31mred", b"\xff\xfe", "\u202eright".encode()]
)
def test_a_name_that_cannot_be_printed_is_left_out_and_told(label, bids_skeleton, caplog):
    root = bids_skeleton(TWO)
    folder = os.fsencode(root) + b"/sub-" + label + b"/anat"
    os.makedirs(folder)  # noqa: PTH103 - bytes
    os.close(os.open(folder + b"/sub-" + label + b"_T1w.nii.gz", os.O_CREAT))
    assert names(collect(root)) == names(collect(bids_skeleton(TWO, name="other")))
    (said,) = caplog.messages
    assert "cannot be printed; rename it" in said
    assert said.isprintable()


def test_what_markup_and_commands_a_label_holds_is_only_a_label(bids_skeleton):
    labels = ["<img src=x onerror=alert(1)>", "a;touch PWNED;", "$(touch PWNED)", "%s{x}", "-rf"]
    tree = {f"sub-{label}/anat/sub-{label}_T1w.nii.gz": None for label in labels}
    assert sorted(image.subject for image in collect(bids_skeleton(tree))) == sorted(labels)


def test_a_sidecar_that_cannot_be_read_says_nothing(tmp_path):
    path = tmp_path / "a.json"
    for content in ("{" * 10, '{"a": ' * 100_000, "[1]", '"text"', "9" * 5000, ""):
        path.write_text(content)
        assert read_json(path) == {}
    assert read_json(tmp_path) == {}
    path.unlink()
    os.mkfifo(path)
    assert read_json(path) == {}  # and nobody waits


def test_a_sidecar_far_too_large_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr("bmex_bids.inputs.sidecars.MOST_JSON_BYTES", 10)
    (tmp_path / "a.json").write_text('{"a": 1}')
    (tmp_path / "b.json").write_text('{"a": 1, "b": 2}')
    assert read_json(tmp_path / "a.json") == {"a": 1}
    assert read_json(tmp_path / "b.json") == {}


def test_what_json_does_not_have_is_taken_out_of_a_sidecar(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"a": NaN, "b": [Infinity, "x\\ud800y"], "c": "\\ud83d\\ude00"}')
    assert read_json(path) == {"a": None, "b": [None, "x\ufffdy"], "c": "\U0001f600"}


def test_a_link_back_to_the_dataset_is_not_walked(bids_skeleton):
    root = bids_skeleton(TWO)
    for name in ("sub-loop", "sub-loop2", "sub-01/again", "sub-01/ses-a/anat/again"):
        (root / name).symlink_to(root)
    assert names(collect(root)) == names(collect(bids_skeleton(TWO, name="other")))


def test_a_folder_with_an_images_name_is_planned_to_be_refused(bids_skeleton):
    root = bids_skeleton(TWO)
    (root / "sub-02/anat/sub-02_T1w.nii.gz").mkdir()
    assert "sub-02_T1w" in names(collect(root, participants=["02"]))
    assert "sub-02_T1w" not in names(collect(root, participants=["01"]))


def test_names_that_are_no_utf_8(bids_skeleton, tmp_path):
    """Linux has them, pybids' index cannot hold them."""
    root = bids_skeleton(
        {
            "sub-01/anat/sub-01_T1w.nii.gz": None,
            "sub-01/anat/sub-01_acq-caf\udce9_T1w.nii.gz": None,
            "sub-01/anat/caf\udce9.txt": "",
        }
    )
    assert [image.name for image in collect(root)] == ["sub-01_T1w"]
    odd = root.rename(tmp_path / "caf\udce9")
    with pytest.raises(UsageError, match="UTF-8"):
        collect(odd)


def test_a_name_with_a_dot_in_a_label_is_left_out_and_told(bids_skeleton, caplog):
    """It vanished without a word: to pybids it is no image."""
    odd = "sub-03/anat/sub-03_acq-0.8mm_T1w.nii.gz"
    assert names(collect(bids_skeleton({**TWO, odd: None}))) == names(
        collect(bids_skeleton(TWO, name="other"))
    )
    (said,) = caplog.messages
    assert said.startswith(f"left out: {odd}: its name is no BIDS name")


@pytest.mark.parametrize(
    "wrong",
    [
        "sub-02/anat/sub-03_T2w.nii.gz",
        "sub-01/ses-b/anat/sub-01_T2w.nii.gz",
        "sub-01/ses-b/anat/sub-01_ses-a_T2w.nii.gz",
        "sub-02/anat/sub-02_ses-a_T2w.nii.gz",
        "sub-02/anat/sub-01_ses-a_T1w.nii.gz",
    ],
)
def test_a_name_of_another_participant_or_session_than_its_folders(wrong, bids_skeleton, caplog):
    """It was enhanced with the other one's age, and a copy took the right image down."""
    root = bids_skeleton({**TWO, wrong: None})
    assert [image.relative_path for image in collect(root)] == sorted(TWO)
    (told,) = [r.getMessage() for r in caplog.records if "left out" in r.getMessage()]
    assert told.startswith(f"left out: {wrong}: its folder is of another participant or session")


def test_a_run_that_only_another_participant_has_is_no_error(bids_skeleton):
    """Of a submission with --run-label 1 2 the tasks of those with one run ended with 2."""
    places = (("01", "1"), ("02", "1"), ("02", "02"))
    root = bids_skeleton(
        {f"sub-{sub}/anat/sub-{sub}_run-{run}_T1w.nii.gz": None for sub, run in places}
    )
    found = names(collect(root, participants=["01"], runs=["1", "2"]))
    assert found == names(collect(root, participants=["01"]))
    with pytest.raises(UsageError, match=r"expected run 3 in .*found only 1, 2"):
        collect(root, participants=["01"], runs=["1", "3"])


@pytest.mark.parametrize("options", [{}, {"sessions": ["a"]}, {"runs": ["1"]}])
def test_no_other_participants_folder_is_opened(bids_skeleton, monkeypatch, options):
    """With 1,000 participants, asking for one took as long as asking for all."""
    tree = {f"sub-{n:02d}/ses-a/anat/sub-{n:02d}_ses-a_run-1_T1w.nii.gz": b"" for n in range(1, 6)}
    root = bids_skeleton(tree)
    opened = set()
    real = os.scandir

    def scandir(path="."):
        opened.add(str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    monkeypatch.setattr(os, "listdir", lambda path=".": [e.name for e in scandir(path)])
    found = collect(root, participants=["02"], **options)
    assert [image.subject for image in found] == ["02"]
    assert any("sub-02" in path for path in opened)
    assert not any(f"sub-{n:02d}" in path for path in opened for n in (1, 3, 4, 5))
