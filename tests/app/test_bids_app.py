# SPDX-License-Identifier: Apache-2.0
"""What users of BIDS Apps know: flags that all of them have, resumption, exit codes."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import odd_disks
import pytest
from app_runs import bmex, derivatives, expected, participants, status_of

from bmex_bids.cli.run import main
from bmex_bids.network.weights.registry import bundled
from bmex_bids.outputs import lock
from bmex_bids.outputs.pictures import PICTURES
from bmex_bids.running.validation import validate
from bmex_bids.workflows.base import RUN_WORKFLOW, workflow_name

pytestmark = pytest.mark.usefixtures("coarse_grid")


@pytest.fixture
def all_pictures_are_few(monkeypatch):
    """The pictures of few_pictures are taken for all there are."""
    monkeypatch.setattr("bmex_bids.outputs.pictures.PICTURES", {"summary": PICTURES["summary"]})


@pytest.fixture
def finished(one, tmp_path, all_pictures_are_few):
    """The output of a run on it, whose work folder is there."""
    assert bmex(one) == 0
    return tmp_path / "out"


@pytest.fixture(scope="module")
def kept_output(tmp_path_factory):
    """Where the output of one run waits for the tests that need no work folder."""
    return tmp_path_factory.mktemp("kept") / "out"


@pytest.fixture
def output(one, tmp_path, kept_output, all_pictures_are_few):
    """The output of a run on it, as it was left, without a work folder."""
    if not kept_output.exists():
        assert bmex(one) == 0
        shutil.rmtree(tmp_path / "work")
        shutil.move(tmp_path / "out", kept_output)
    return shutil.copytree(kept_output, tmp_path / "out")


def contents(out: Path) -> dict[str, tuple[int, bytes]]:
    """Time of change and bytes of every file of the participants."""
    return {
        str(path.relative_to(out)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(out.rglob("anat/*"))
    }


def test_the_same_command_again_does_nothing_without_a_work_folder(one, output, capsys):
    before = contents(output)
    capsys.readouterr()
    assert bmex(one) == 0
    assert contents(output) == before
    assert [row["status"] for row in status_of(output)] == ["unchanged"]
    assert "1 done before and unchanged" in capsys.readouterr().out


@pytest.mark.parametrize("what", ["image", "sidecar", "record", "picture"])
def test_what_is_missing_is_made_again(one, output, what):
    before = contents(output)
    victim = {
        "image": "sub-01/anat/sub-01_desc-preproc_T1w.nii.gz",
        "sidecar": "sub-01/anat/sub-01_desc-brain_mask.json",
        "record": "sub-01/anat/sub-01_desc-enhanced_T1w.json",
        "picture": "sub-01/figures/sub-01_desc-summary_T1w.html",
    }[what]
    (output / victim).unlink()
    assert bmex(one) == 0
    assert [row["status"] for row in status_of(output)] == ["done"]
    assert (output / victim).is_file()
    assert contents(output).keys() == before.keys()


def test_half_a_file_under_a_final_name_is_not_taken_for_a_whole_one(one, finished, tmp_path):
    image = finished / "sub-01/anat/sub-01_desc-enhanced_T1w.nii.gz"
    whole = image.read_bytes()
    image.write_bytes(whole[: len(whole) // 2])
    assert bmex(one) == 0
    assert image.stat().st_size > len(whole) // 2
    assert [row["status"] for row in status_of(finished)] == ["done"]


@pytest.mark.parametrize("change", ["voxels", "age", "flag", "metadata"])
def test_what_changed_is_done_again(one, finished, brain, tmp_path, change):
    import nibabel as nib

    flags = []
    if change == "voxels":
        nib.save(brain(seed=5), one / "sub-01/anat/sub-01_T1w.nii.gz")
    elif change == "age":
        flags = ["--age-months", "0.6"]
    elif change == "flag":
        flags = ["--skull-strip", "skip"]
    else:
        (one / "sub-01/anat/sub-01_T1w.json").write_text('{"Manufacturer": "Acme"}')
    assert bmex(one, *flags) == 0
    assert [row["status"] for row in status_of(finished)] == ["done"]
    assert bmex(one, *flags) == 0
    assert [row["status"] for row in status_of(finished)] == ["unchanged"]


def test_other_weights_are_a_change(one, finished, tiny_records, monkeypatch):
    others = [dataclasses.replace(record, sha256="f" * 64) for record in tiny_records]
    monkeypatch.setattr("bmex_bids.network.weights.registry.bundled", lambda: others)
    monkeypatch.setattr("bmex_bids.network.weights.registry.verify", lambda *_: None)
    assert bmex(one, "--dry-run") == 0
    assert bmex(one) == 0
    assert [row["status"] for row in status_of(finished)] == ["done"]


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_where_it_was(bids_skeleton, brain, tmp_path):
    # the real program with the bundled weights, since a child process has no tiny network
    bids = bids_skeleton(
        {
            **participants("01", "02"),
            "sub-01/anat/sub-01_T1w.nii.gz": brain(),
            "sub-02/anat/sub-02_T1w.nii.gz": brain(seed=1),
        }
    )
    command = [
        *(sys.executable, "-m", "bmex_bids", str(bids), "out", "participant"),
        *("--nprocs", "1", "--skip-bids-validation"),
    ]
    first = subprocess.Popen(command, start_new_session=True)
    deadline = time.monotonic() + 300
    record = tmp_path / "out/sub-01/anat/sub-01_desc-enhanced_T1w.json"
    while not record.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert record.exists()
    shutil.rmtree(tmp_path / "work")
    before = contents(tmp_path / "out")
    subprocess.run(command, check=True)
    assert [row["status"] for row in status_of(tmp_path / "out")][1] == "done"
    assert derivatives(tmp_path / "out") == expected("sub-01") | expected("sub-02")
    after = contents(tmp_path / "out")
    images = [name for name in before if "sub-01" in name]
    assert all(before[name][1] == after[name][1] for name in images if name.endswith("gz"))
    assert validate(tmp_path / "out") == []


def test_what_a_killed_run_left_half_written_is_swept_away(one, tmp_path):
    anat = tmp_path / "out/sub-01/anat"
    anat.mkdir(parents=True)
    (anat / ".sub-01_desc-enhanced_T1w.nii.gz.x7f3").write_bytes(b"half")
    (anat / ".sub-02_desc-enhanced_T1w.nii.gz.x7f3").write_bytes(b"of another image")
    assert bmex(one) == 0
    hidden = [path.name for path in anat.iterdir() if path.name.startswith(".")]
    assert hidden == [".sub-02_desc-enhanced_T1w.nii.gz.x7f3"]


def test_a_dry_run_for_programs_is_json_and_nothing_else(bids_skeleton, brain, capsys):
    bids = bids_skeleton(
        {
            **participants("01"),
            "sub-01/anat/sub-01_T1w.nii.gz": brain(),
            "sub-02/anat/sub-02_T1w.nii.gz": brain(),
        }
    )
    assert bmex(bids, "--dry-run=json", "--skip-bids-validation") == 3  # sub-02 is skipped
    plan = json.loads(capsys.readouterr().out)
    first, second = plan["images"]
    assert first["image"] == "sub-01_T1w"
    assert first["status"] == "to process"
    assert (first["age"]["value"], first["age"]["unit"], first["age"]["months"]) == (
        "0.5",
        "months",
        0.5,
    )
    assert (first["model"], first["weights"], plan["device"]) == ("month0", "tiny", "cpu")
    assert first["seconds"] > 0
    assert first["memory_gib"] > 0
    assert "sub-01/anat/sub-01_desc-brain_mask.nii.gz" in first["outputs"]
    assert second["status"] == "skipped"
    assert "age" in second["reason"]
    assert "group" not in plan
    assert not (Path.cwd() / "out").exists()
    main([str(bids), "out", "participant", "group", "--dry-run=json", "--skip-bids-validation"])
    both = json.loads(capsys.readouterr().out)  # one object for both levels
    assert [entry["images"] for entry in both.pop("group")] == [0, 0]
    assert both["images"][1] == second


def test_what_a_dry_run_promises_is_what_comes(one, tmp_path, capsys):
    bmex(one, "--dry-run=json", "--skip-bids-validation")
    (image,) = json.loads(capsys.readouterr().out)["images"]
    assert bmex(one) == 0
    assert {Path(name).name for name in image["outputs"]} == derivatives(tmp_path / "out")


def test_quality_without_an_image(one, tmp_path):
    assert bmex(one, "--qc-only") == 0
    out = tmp_path / "out"
    assert derivatives(out) == set()
    table = json.loads((out / "sub-01/anat/sub-01_desc-quality_T1w.json").read_text())
    assert {"tct_before", "tct_after", "qi"} <= set(table["BMEX"]["Quality"])
    assert (out / "sub-01.html").is_file()
    assert validate(out) == []


@pytest.mark.parametrize("grid", ["native", "0p8"])
def test_one_grid_only(one, tmp_path, grid):
    assert bmex(one, "--output-res", grid) == 0
    names = derivatives(tmp_path / "out")
    left_out = {
        "native": {"sub-01_res-0p8_desc-enhanced_T1w.nii.gz"},
        "0p8": {"sub-01_desc-enhanced_T1w.nii.gz", "sub-01_desc-preproc_T1w.nii.gz"},
    }[grid]
    assert names == expected("sub-01") - left_out
    assert validate(tmp_path / "out") == []


def test_a_grid_of_half_the_edge_when_it_is_asked_for(one, tmp_path, tiny_records, monkeypatch):
    (record,) = (record for record in bundled() if record.kind == "super")
    monkeypatch.setattr(
        "bmex_bids.network.weights.registry.bundled", lambda: [*tiny_records, record]
    )
    monkeypatch.setattr("bmex_bids.outputs.pictures.PICTURES", {"summary": PICTURES["summary"]})
    half = ("--output-res", "native", "0p8", "0p4")
    assert bmex(one) == 0
    assert bmex(one, *half) == 0
    out = tmp_path / "out"
    assert [row["status"] for row in status_of(out)] == ["done"], "0p4 was added"
    assert derivatives(out) == expected("sub-01") | expected("sub-01", res="0p4")
    assert validate(out) == []
    anat = out / "sub-01" / "anat"
    sidecar = json.loads((anat / "sub-01_res-0p4_desc-enhanced_T1w.json").read_text())
    # the grid of these tests is coarser
    assert sidecar["Resolution"] == (
        "0.8 mm isotropic, super-resolved from the network's 1.6 mm grid; axes in the order LPS"
    )
    made = sidecar["BMEX"]["SuperResolution"]
    assert (made["Weights"]["Name"], made["Weights"]["SHA256"]) == (record.name, record.sha256)
    assert made["VoxelSize"] == 0.8
    coarse, fine = (
        nib.load(anat / f"sub-01_res-{res}_desc-enhanced_T1w.nii.gz") for res in ("0p8", "0p4")
    )
    assert fine.shape == tuple(2 * n for n in coarse.shape)
    values = coarse.get_fdata()
    means = fine.get_fdata().reshape([k for n in values.shape for k in (n, 2)]).mean((1, 3, 5))
    assert abs(means - values).max() < 0.01 * values.max()
    summary = out / "sub-01/figures/sub-01_desc-summary_T1w.html"
    assert f"weights {record.name}" in summary.read_text()
    assert "super-resolved to half the edge" in (out / "logs" / "CITATION.md").read_text()
    assert bmex(one, *half) == 0
    assert [row["status"] for row in status_of(out)] == ["unchanged"]
    (anat / "sub-01_res-0p4_desc-enhanced_T1w.nii.gz").unlink()
    assert bmex(one, "--output-res", "0p4") == 0
    assert [row["status"] for row in status_of(out)] == ["done"]
    assert (anat / "sub-01_res-0p4_desc-enhanced_T1w.nii.gz").is_file()


def test_the_bundled_network_labels_structures(one, tmp_path, tiny_records, monkeypatch):
    (record,) = (record for record in bundled() if record.kind == "segment")
    records = [*tiny_records, dataclasses.replace(record, age_groups=tiny_records[0].age_groups)]
    monkeypatch.setattr("bmex_bids.network.weights.registry.bundled", lambda: records)
    assert bmex(one, "--segment", "rois") == 0
    anat = tmp_path / "out" / "sub-01" / "anat"
    table = (anat / "sub-01_seg-subcortical_desc-enhanced_dseg.tsv").read_text().splitlines()
    assert len(table) == 14
    assert (anat / "sub-01_seg-subcortical_desc-enhanced_dseg.nii.gz").is_file()
    sidecar = json.loads((anat / "sub-01_desc-enhanced_T1w.json").read_text())
    assert sidecar["BMEX"]["Quality"]["Structures"]["weights"] == "bmex-segment-2"


def test_the_configuration_of_a_run_repeats_it(one, tmp_path, capsys):
    assert bmex(one, "--qc-only", "--skull-strip", "skip", "--age-months", "0.4") == 0
    (settings,) = (tmp_path / "out").glob("logs/*/config.toml")
    capsys.readouterr()
    again = ["--config-file", str(settings), "--dry-run=json", "--age-months", "0"]
    assert main([str(one), "out2", "participant", *again]) == 0
    (image,) = json.loads(capsys.readouterr().out)["images"]
    assert image["outputs"] == ["sub-01/anat/sub-01_desc-quality_T1w.json"]
    assert image["age"]["months"] == 0  # the command line overrules the file


def test_a_plugin_of_nipype(one, tmp_path):
    plugin = tmp_path / "plugin.yml"
    plugin.write_text("plugin: Linear\nplugin_args: {}\n")
    assert bmex(one, "--use-plugin", str(plugin)) == 0
    assert derivatives(tmp_path / "out") == expected("sub-01")
    assert [row["status"] for row in status_of(tmp_path / "out")] == ["done"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("plugin: Magic\n", "expected one of Nipype's plugins"),
        ("- 1\n", "plugin_args"),
        (":\n- [", "YAML"),
    ],
)
def test_a_plugin_file_that_is_wrong(one, tmp_path, capsys, text, words):
    plugin = tmp_path / "plugin.yml"
    plugin.write_text(text)
    assert bmex(one, "--use-plugin", str(plugin)) == 2
    assert words in capsys.readouterr().err


def test_the_graph_of_the_workflow(one, tmp_path):
    assert bmex(one, "--write-graph", "--qc-only") == 0
    (source,) = (tmp_path / "out").glob("logs/*/workflow.dot")
    assert "match_histogram" in source.read_text()
    if shutil.which("dot"):
        assert "<svg" in source.with_suffix(".svg").read_text()


def test_clean_workdir_removes_what_is_ours_and_nothing_else(one, tmp_path):
    (tmp_path / "work/bmex_0_1_0_wf/left").mkdir(parents=True)
    (tmp_path / "work/mine.txt").write_text("keep")
    assert bmex(one, "--clean-workdir", "--qc-only") == 0
    assert not (tmp_path / "work/bmex_0_1_0_wf/left").exists()
    assert (tmp_path / "work/mine.txt").read_text() == "keep"


def test_the_monitor_writes_what_it_measured(one, tmp_path):
    assert bmex(one, "--resource-monitor", "--qc-only") == 0
    (table,) = (tmp_path / "out").glob("logs/*/resource_monitor.json")
    assert json.loads(table.read_text())["rss_GiB"]


def test_the_monitor_writes_what_it_measured_though_an_image_fails(bids_skeleton, brain, tmp_path):
    tree = {
        "sub-01/anat/sub-01_T1w.nii.gz": b"not an image",
        "sub-02/anat/sub-02_T1w.nii.gz": brain(),
    }
    bids = bids_skeleton({**participants("01", "02"), **tree})
    flags = ("--nprocs", "2", "--resource-monitor", "--qc-only", "--skip-bids-validation")
    assert bmex(bids, *flags) == 3
    assert [row["status"] for row in status_of(tmp_path / "out")] == ["failed", "done"]
    (table,) = (tmp_path / "out").glob("logs/*/resource_monitor.json")
    measured = json.loads(table.read_text())
    assert any("_02" in name for name in measured["name"])
    assert min(measured["rss_GiB"]) > 0.01


def test_reports_only_makes_the_pages_again(one, output):
    (output / "sub-01.html").unlink()
    before = contents(output)
    assert bmex(one, "--reports-only") == 0
    assert (output / "sub-01.html").is_file()
    assert contents(output) == before


def test_boilerplate_only_writes_the_methods_text(one, output):
    shutil.rmtree(output / "logs")
    assert bmex(one, "--boilerplate-only") == 0
    assert "tiny" in (output / "logs/CITATION.md").read_text()


def test_the_group_level_after_the_participants(one, output):
    assert main([str(one), "out", "group"]) == 0
    table = (output / "group_T1w.tsv").read_text()
    assert "sub-01" in table
    assert (output / "group_T1w.html").is_file()
    assert validate(output) == []


def test_an_image_without_an_age_is_in_the_table_the_page_and_the_exit_code(
    bids_skeleton, brain, tmp_path
):
    bids = bids_skeleton(
        {
            **participants("01"),
            "sub-01/anat/sub-01_T1w.nii.gz": brain(),
            "sub-02/anat/sub-02_T1w.nii.gz": brain(),
        }
    )
    assert bmex(bids, "--qc-only") == 3
    out = tmp_path / "out"
    assert [row["status"] for row in status_of(out)] == ["done", "skipped"]
    assert "age" in (out / "sub-02.html").read_text()


def test_a_crash_in_a_dataset_with_sessions_is_on_the_page(bids_skeleton, tmp_path):
    bids = bids_skeleton(
        {**participants("01"), "sub-01/ses-A/anat/sub-01_ses-A_T1w.nii.gz": b"not an image"}
    )
    assert bmex(bids, "--skip-bids-validation") == 1
    page = (tmp_path / "out/sub-01_ses-A.html").read_text()
    assert "expected a complete NIfTI image" in page


def test_a_mask_made_elsewhere_is_used_and_named(one, brain, tmp_path, capsys):
    import nibabel as nib
    import numpy as np

    image = brain()
    mask = np.asarray(image.dataobj) > 0
    mask[:, :, : mask.shape[2] // 2] = False  # half of the brain: nobody would find that himself
    anat = tmp_path / "masks/sub-01/anat"
    anat.mkdir(parents=True)
    nib.save(
        nib.Nifti1Image(mask.astype(np.uint8), image.affine),
        anat / "sub-01_desc-brain_mask.nii.gz",
    )
    bmex(one, "--derivatives", f"mine={tmp_path / 'masks'}")
    found = nib.load(tmp_path / "out/sub-01/anat/sub-01_desc-brain_mask.nii.gz")
    np.testing.assert_array_equal(np.asarray(found.dataobj) > 0, mask)
    sidecar = (tmp_path / "out/sub-01/anat/sub-01_desc-enhanced_T1w.json").read_text()
    assert json.loads(sidecar)["BMEX"]["Mask"]["method"] == "given"
    assert "mine" in sidecar
    # an altered mask is a change
    mask[:, :, : mask.shape[2] // 2 + 1] = False
    nib.save(
        nib.Nifti1Image(mask.astype(np.uint8), image.affine),
        anat / "sub-01_desc-brain_mask.nii.gz",
    )
    bmex(one, "--derivatives", f"mine={tmp_path / 'masks'}", "--dry-run=json")
    printed = capsys.readouterr().out
    assert '"to process"' in printed[printed.index("{") :]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_inside_a_step_ends_the_run_and_not_only_its_image(
    bids_skeleton, brain, tmp_path, monkeypatch, number, code
):
    from bmex_bids.interfaces.preprocess import Conform

    def struck(*_: object) -> None:
        signal.raise_signal(number)

    monkeypatch.setattr(Conform, "work", struck)
    bids = bids_skeleton(
        {
            **participants("01", "02"),
            "sub-01/anat/sub-01_T1w.nii.gz": brain(),
            "sub-02/anat/sub-02_T1w.nii.gz": brain(),
        }
    )
    assert bmex(bids) == code
    assert [row["status"] for row in status_of(tmp_path / "out")] == ["not run", "not run"]


def test_a_run_keeps_out_of_the_intermediate_files_of_another(one, tmp_path, capsys, monkeypatch):
    """Two runs in one work folder lost images: one removed what the other was about to read."""
    monkeypatch.setattr("bmex_bids.outputs.pictures.PICTURES", {"summary": PICTURES["summary"]})
    theirs = tmp_path / "work" / RUN_WORKFLOW
    claim = theirs / ".claims" / workflow_name("sub-01_T1w")
    claim.parent.mkdir(parents=True)
    claim.write_text(f"{lock.machine()} {os.getppid()} abc")
    (theirs / "sub_01_T1w_wf").mkdir()
    assert bmex(one, "--qc-only", "--clean-workdir", "--drop-workdir") == 0
    assert "another run processes the same images" in capsys.readouterr().out
    assert claim.is_file()
    assert sorted(path.name for path in theirs.iterdir()) == [".claims", "sub_01_T1w_wf"]
    assert list((theirs / "sub_01_T1w_wf").iterdir()) == []
    assert list((tmp_path / "work").iterdir()) == [theirs]


@pytest.mark.parametrize("folder", ["out", "work"])
def test_a_disk_that_writes_names_in_small_letters_is_refused(
    folder, one, tmp_path, monkeypatch, capsys
):
    """The results would be no BIDS files, and no later run would find them."""
    real = os.scandir

    class Lowered:
        def __init__(self, entry):
            self.name, self.path = entry.name.lower(), entry.path.lower()

    class Scan(list):
        __enter__, __exit__ = (lambda self: self), (lambda self, *_: None)

    def scandir(path="."):
        if Path(path) == tmp_path / folder:
            with real(path) as entries:
                return Scan(Lowered(entry) for entry in entries)
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr("bmex_bids.running.disks.os.scandir", scandir)
        assert bmex(one) == 5
    error = capsys.readouterr().err
    assert f"keeps names such as T1w at {tmp_path / folder}" in error
    assert not list((tmp_path / "out").glob("sub-*"))


def test_disks_that_refuse_what_others_do(one, tmp_path, monkeypatch):
    """``chmod`` alone (CIFS, exFAT) ended the run with code 5."""
    with monkeypatch.context() as patch:
        for folder in ("out", "work"):
            odd_disks.refuse(patch, tmp_path / folder, "chmod", "links", "utime", "over")
        assert bmex(one, "--qc-only") == 0
        shutil.rmtree(tmp_path / "work")
        assert bmex(one, "--qc-only", "--age-months", "1") == 0  # over the first
    assert status_of(tmp_path / "out")[0]["status"] == "done"


def test_what_is_not_taken_is_told_everywhere(one, tmp_path, monkeypatch, capsys):
    """Plan, table, closing line; and a participant asked for that brings nothing counts."""
    monkeypatch.setattr("bmex_bids.outputs.pictures.PICTURES", {"summary": PICTURES["summary"]})
    for name in ("sub-02/anat/sub-02_T2map.nii.gz", "sub-02/sub-02_T1w.nii.gz"):
        (one / name).parent.mkdir(parents=True, exist_ok=True)
        (one / name).write_bytes((one / "sub-01/anat/sub-01_T1w.nii.gz").read_bytes())
    (one / "sub-03").mkdir()
    assert bmex(one, "--dry-run=json", "--participant-label", "01") == 0
    assert json.loads(capsys.readouterr().out)["not_taken"] == []
    asked = ("--participant-label", "01", "02", "03", "--qc-only", "--skip-bids-validation")
    assert bmex(one, "--dry-run", *asked) == 3
    assert "sub-02/sub-02_T1w.nii.gz: not taken: expected in the" in capsys.readouterr().out
    assert bmex(one, *asked) == 3
    said = capsys.readouterr()
    assert "sub-02/anat/sub-02_T2map.nii.gz: not taken: images of the suffix T2map" in said.out
    assert "1 done, 2 skipped, 2 not taken in" in said.out
    assert "bmex: sub-03 skipped: expected an image of sub-03, which was asked for" in said.err
    rows = {row["image"]: row["status"] for row in status_of(tmp_path / "out")}
    assert rows == {
        "sub-01_T1w": "done",
        "sub-02": "skipped",
        "sub-03": "skipped",
        "sub-02/anat/sub-02_T2map.nii.gz": "not taken",
        "sub-02/sub-02_T1w.nii.gz": "not taken",
    }
    assert not list((tmp_path / "out").glob("sub-0[23]*"))
    assert bmex(one, "--participant-label", "02", "03", "--skip-bids-validation") == 4
    assert "sub-02_T2map.nii.gz: images of the suffix T2map" in capsys.readouterr().err


def test_strict_ages_skip_one_age_for_two_sessions(one, capsys):
    for session in ("00m", "24m"):
        target = one / f"sub-02/ses-{session}/anat/sub-02_ses-{session}_T1w.nii.gz"
        target.parent.mkdir(parents=True)
        target.write_bytes((one / "sub-01/anat/sub-01_T1w.nii.gz").read_bytes())
    with (one / "participants.tsv").open("a") as table:
        table.write("sub-02\t0.5 months\n")
    base = ("--dry-run=json", "--skip-bids-validation")
    assert bmex(one, *base) == 0
    _, *images = json.loads(capsys.readouterr().out)["images"]
    assert ["one age for 2 sessions" in " ".join(i["warnings"]) for i in images] == [True, True]
    assert bmex(one, *base, "--strict-ages") == 3
    first, *images = json.loads(capsys.readouterr().out)["images"]
    assert first["status"] == "to process"
    assert [image["status"] for image in images] == ["skipped", "skipped"]
    assert "one age for 2 sessions" in images[0]["reason"]
