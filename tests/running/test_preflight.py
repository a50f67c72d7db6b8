# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from pathlib import Path

import pytest
from bad_cases import bomb, healthy, mask_image, patched
from bad_images import put

from bmex_bids.common.names import BidsName
from bmex_bids.inputs.collect import SourceImage
from bmex_bids.inputs.plan import PlannedImage
from bmex_bids.running import disks
from bmex_bids.running.disks import ignores_case
from bmex_bids.running.preflight import look_at


def planned(path: Path, mask: Path | None = None, skip_reason: str | None = None) -> PlannedImage:
    name = BidsName.parse(path.name)
    image = SourceImage(path, name.entities, name.suffix, {}, path.parent)
    return PlannedImage(
        image, None, "fetal", 0.75, "0p75", f"sub-{name.subject}/anat", ("old",), skip_reason, mask
    )


def looked_at(*paths: Path, **more) -> list[PlannedImage]:
    return list(look_at([planned(path) for path in paths], **more))


def test_a_sound_image_is_left_as_it_is(tmp_path):
    put(healthy(), tmp_path / "sub-01_T2w.nii.gz")
    assert looked_at(tmp_path / "sub-01_T2w.nii.gz", memory_gb=8.0, output_dir=tmp_path) == [
        planned(tmp_path / "sub-01_T2w.nii.gz")
    ]


def test_an_odd_header_is_a_warning_after_the_others(tmp_path):
    put(patched(qform_code=0, sform_code=0), tmp_path / "sub-01_T2w.nii.gz")
    (item,) = looked_at(tmp_path / "sub-01_T2w.nii.gz")
    assert item.runnable
    assert item.warnings[0] == "old"
    assert "right may be exchanged" in item.warnings[1]


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "sub-01_T2w.nii.gz")
    (item,) = looked_at(tmp_path / "sub-01_T2w.nii.gz")
    assert "not a file (a pipe or a device)" in item.skip_reason


def test_an_image_that_was_skipped_keeps_its_reason(tmp_path):
    item = planned(tmp_path / "sub-01_T2w.nii.gz", skip_reason="no age")
    assert list(look_at([item])) == [item]


@pytest.mark.parametrize(
    "names",
    [
        ("a/sub-01_T2w.nii", "a/sub-01_T2w.nii.gz"),
        ("a/sub-01_T2w.nii.gz", "b/sub-01_T2w.nii.gz"),
        ("a/sub-a+b_T2w.nii.gz", "a/sub-a b_T2w.nii.gz"),
    ],
)
def test_images_whose_results_would_have_one_name_are_not_run(names, tmp_path):
    for name in names:
        put(healthy() if name.endswith("gz") else healthy().to_bytes(), tmp_path / name)
    put(healthy(), tmp_path / "sub-02_T2w.nii.gz")
    *twins, other = looked_at(*(tmp_path / name for name in names), tmp_path / "sub-02_T2w.nii.gz")
    assert all("got 2 whose results would have one name" in twin.skip_reason for twin in twins)
    assert other.runnable


def test_a_small_file_that_declares_more_than_the_memory_holds(tmp_path):
    path = tmp_path / "sub-01_T2w.nii.gz"
    path.write_bytes(bomb(2600)[:200_000])
    (item,) = looked_at(path, memory_gb=64.0)
    assert "sub-01_T2w.nii.gz, got a header that asks for about" in item.skip_reason
    assert "crop or resample it, or give the run more memory" in item.skip_reason
    # on other machines, nobody knows their memory
    assert looked_at(path, memory_gb=None)[0].runnable


def test_memory_is_that_of_the_networks_grid(tmp_path):
    put(healthy(), tmp_path / "sub-01_T2w.nii.gz")  # 0.2 million voxels at 0.75 mm
    (item,) = looked_at(tmp_path / "sub-01_T2w.nii.gz", memory_gb=1.1)
    assert item.runnable
    (item,) = looked_at(tmp_path / "sub-01_T2w.nii.gz", memory_gb=0.9)
    assert not item.runnable


def test_a_given_mask_counts_too(tmp_path):
    put(healthy(), tmp_path / "sub-01_T2w.nii.gz")
    put(mask_image(), tmp_path / "fine.nii.gz")
    (tmp_path / "bomb.nii.gz").write_bytes(bomb(2600)[:200_000])
    for name, runnable in (("fine.nii.gz", True), ("bomb.nii.gz", False)):
        item = planned(tmp_path / "sub-01_T2w.nii.gz", mask=tmp_path / name)
        (item,) = look_at([item], memory_gb=8.0)
        assert item.runnable == runnable
    assert "bomb.nii.gz" in item.skip_reason


@pytest.mark.parametrize("folder", ["sub-01", "sub-01/anat", "sub-01/figures"])
def test_links_do_not_lead_out_of_the_output(folder, tmp_path):
    out, elsewhere, within = tmp_path / "out", tmp_path / "elsewhere", tmp_path / "out/disk"
    for path in (within, elsewhere, (out / folder).parent):
        path.mkdir(parents=True, exist_ok=True)
    put(healthy(), tmp_path / "sub-01_T2w.nii.gz")
    (out / folder).symlink_to(elsewhere)
    (item,) = looked_at(tmp_path / "sub-01_T2w.nii.gz", output_dir=out)
    assert f"the folder {folder} of sub-01_T2w within the output" in item.skip_reason
    (out / folder).unlink()
    (out / folder).symlink_to(within)
    assert looked_at(tmp_path / "sub-01_T2w.nii.gz", output_dir=out)[0].runnable


@pytest.mark.parametrize("folder", ["output_dir", "work_dir"])
def test_labels_that_differ_in_case_only_where_the_disk_does_not(tmp_path, monkeypatch, folder):
    """Both images were written to one file, the second over the first."""
    paths = [tmp_path / f"a/sub-{label}_T2w.nii.gz" for label in ("ab", "AB")]
    for path in paths:
        put(healthy(), path)
    where = {folder: tmp_path / "out"}
    assert all(item.runnable for item in looked_at(*paths, **where))
    monkeypatch.setattr("bmex_bids.running.preflight.ignores_case", lambda _: True)
    assert all("got 2 whose results" in item.skip_reason for item in looked_at(*paths, **where))


def test_names_that_the_disk_of_the_output_does_not_take(tmp_path, monkeypatch):
    """Found after minutes, when the first result was to be written."""
    path = tmp_path / f"sub-{'x' * 220}_T2w.nii.gz"
    put(healthy(), path)
    (item,) = looked_at(path, output_dir=tmp_path / "new/out")
    assert "names of at most 255 bytes" in item.skip_reason
    assert "shorten the labels" in item.skip_reason
    path = tmp_path / f"sub-{'x' * 150}_T2w.nii.gz"
    put(healthy(), path)
    assert looked_at(path, output_dir=tmp_path / "new/out")[0].runnable
    monkeypatch.setattr("os.pathconf", lambda *_: 143)  # eCryptfs
    assert not looked_at(path, output_dir=tmp_path / "new/out")[0].runnable


def test_whether_a_disk_ignores_case_is_found_without_writing(tmp_path, monkeypatch):
    assert not ignores_case(tmp_path / "not/made/yet")
    (tmp_path / "Home").mkdir()
    (tmp_path / "hOME").symlink_to("Home")  # as if they were one
    assert ignores_case(tmp_path / "Home/not/made/yet")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Home", "hOME"]


@pytest.fixture
def mounted(tmp_path, monkeypatch):
    """The top of a disk of its own, whose name is one of the disk above."""
    top = tmp_path / "Home"
    top.mkdir()
    real = Path.stat

    def stat(path, **more):
        found = real(path, **more)
        if not path.is_relative_to(top):
            return found
        return os.stat_result((*found[:2], found.st_dev + 1, *found[3:]))

    monkeypatch.setattr(Path, "stat", stat)
    return top


def test_the_name_of_a_mounted_disk_says_nothing_of_the_disk(mounted):
    mounted.with_name("hOME").symlink_to("Home")
    assert not ignores_case(mounted)
    assert not ignores_case(mounted / "new/out")


def test_what_lies_on_a_mounted_disk_says_whether_it_ignores_case(mounted):
    (mounted / "1").touch()
    (mounted / "Abc").touch()
    assert not ignores_case(mounted / "new/out")
    (mounted / "aBC").symlink_to("Abc")
    assert ignores_case(mounted / "new/out")


def test_a_file_of_two_numbers_that_is_listed_once_is_one(tmp_path, monkeypatch):
    """As with FUSE; two files that differ in case are listed both."""
    for name in ("Home", "hOME"):
        (tmp_path / name).mkdir()
    assert not ignores_case(tmp_path / "Home")
    real = disks._entries
    monkeypatch.setattr(
        disks, "_entries", lambda *args: (path for path in real(*args) if path.name != "hOME")
    )
    assert ignores_case(tmp_path / "Home")


@pytest.mark.parametrize(
    ("listed", "keeps"), [("T1w_x", True), ("t1w_x", False), ("T1W_X", False), ("other", True)]
)
def test_a_disk_that_changes_the_letters_of_names(listed, keeps, tmp_path):
    """A name that is not listed at all is one of a slow listing."""
    (tmp_path / listed).touch()
    assert disks.keeps_names(tmp_path / "T1w_x") is keeps
