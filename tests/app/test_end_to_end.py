# SPDX-License-Identifier: Apache-2.0
"""The whole app, from the command line to a valid dataset, on small brains and a tiny network.

The network is untrained: its last layers are zero, so it returns its input.  What comes out is
then known: ``desc-preproc`` is the input, but for the bias correction.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from app_runs import bmex, derivatives, expected, participants, status_of

from bmex_bids.cli.run import main
from bmex_bids.config import Config
from bmex_bids.running.validation import validate


def test_three_storage_orders_and_a_session_come_out_valid(bids_skeleton, brain, tmp_path, capsys):
    bids = bids_skeleton(
        {
            **participants("01", "02", "03"),
            "sub-01/anat/sub-01_T1w.nii.gz": brain("LAS"),
            "sub-02/ses-A/anat/sub-02_ses-A_run-1_T1w.nii.gz": brain("PIR"),
            "sub-03/anat/sub-03_T2w.nii.gz": brain("RAS", oblique=20, contrast="T2w"),
        }
    )
    assert bmex(bids) == 0

    out = tmp_path / "out"
    assert derivatives(out) == (
        expected("sub-01") | expected("sub-02_ses-A_run-1") | expected("sub-03", "T2w")
    )
    assert validate(out) == []
    for raw_path in bids.rglob("sub-*.nii.gz"):
        folder = out / raw_path.parent.relative_to(bids)
        stem, suffix = raw_path.name.removesuffix(".nii.gz").rsplit("_", 1)
        _check_the_grids(nib.load(raw_path), folder, expected(stem, suffix))
        _check_the_values(nib.load(raw_path), folder, stem, suffix)

    printed = capsys.readouterr().out
    assert "image 1 of 3  sub-01_T1w  preprocess: brain mask" in printed
    assert "image 3 of 3  sub-03_T2w  done in" in printed
    assert [row["status"] for row in status_of(out)] == ["done"] * 3
    for page in ("sub-01.html", "sub-02_ses-A.html", "sub-03.html"):
        assert (out / page).is_file()
    (settings,) = out.glob("logs/*/config.toml")
    assert Config.from_toml(settings.read_text()).paths.bids_dir == bids


def _check_the_grids(raw: nib.Nifti1Image, folder: Path, names: set[str]) -> None:
    for name in names:
        image = nib.load(folder / name)
        assert np.isfinite(image.get_fdata()).all()
        assert (folder / name.replace(".nii.gz", ".json")).is_file()
        if "_res-" in name:
            np.testing.assert_allclose(image.header.get_zooms(), 0.8, atol=1e-4)
            continue
        assert image.shape == raw.shape, name
        np.testing.assert_array_equal(image.affine, raw.affine, err_msg=name)
        assert image.header["sform_code"] == raw.header["sform_code"], name
        assert image.header["qform_code"] == raw.header["qform_code"], name


def _check_the_values(raw: nib.Nifti1Image, folder: Path, stem: str, suffix: str) -> None:
    def load(name: str) -> np.ndarray:
        return nib.load(folder / f"{stem}_{name}.nii.gz").get_fdata()

    truth = raw.get_fdata()
    inside = truth > 0
    mask = load("desc-brain_mask") > 0
    assert 2 * (mask & inside).sum() / (mask.sum() + inside.sum()) > 0.98
    # a network that changes nothing gives the input back, but for the bias correction
    preproc = load(f"desc-preproc_{suffix}")
    assert np.corrcoef(preproc[mask], truth[mask])[0, 1] > 0.95
    assert preproc[mask].mean() == pytest.approx(truth[mask].mean(), rel=0.1)
    enhanced = load(f"desc-enhanced_{suffix}")
    assert not enhanced[~mask].any()
    assert 100 < np.median(enhanced[mask]) < 1000
    total = sum(load(f"label-{name}_desc-enhanced_probseg") for name in ("CSF", "GM", "WM"))
    np.testing.assert_allclose(total, mask, atol=1e-3)
    assert set(np.unique(load("desc-enhanced_dseg")[mask])) <= {1, 2, 3}


@pytest.mark.usefixtures("coarse_grid")
def test_uni_of_mp2rage_beside_a_t1w_keeps_its_suffix_and_is_valid(bids_skeleton, brain, tmp_path):
    bids = bids_skeleton(
        {
            **participants("01"),
            "sub-01/anat/sub-01_T1w.nii.gz": brain(),
            "sub-01/anat/sub-01_UNIT1.nii.gz": brain(seed=1),
        }
    )
    assert bmex(bids, "--modalities", "T1w", "UNIT1") == 0
    out = tmp_path / "out"
    found = {path.name for path in (out / "sub-01/anat").glob("*UNIT1*.nii.gz")}
    assert {
        "sub-01_desc-enhanced_UNIT1.nii.gz",
        "sub-01_desc-preproc_UNIT1.nii.gz",
        "sub-01_space-UNIT1_desc-brain_mask.nii.gz",
    } <= found
    assert expected("sub-01") | found == derivatives(out)
    assert validate(out) == []
    assert main([str(bids), "out", "group", "--modalities", "UNIT1"]) == 0
    assert (out / "group_UNIT1.tsv").is_file()


@pytest.mark.usefixtures("coarse_grid")
def test_an_image_whose_qform_lies_elsewhere_gives_results_in_one_place(
    bids_skeleton, brain, tmp_path, capsys
):
    raw = brain("LAS", oblique=12.0)
    elsewhere = raw.affine.copy()
    elsewhere[:3, 3] += 0, 30, -20
    raw.set_qform(elsewhere, 2)
    bids = bids_skeleton({**participants("01"), "sub-01/anat/sub-01_T1w.nii.gz": raw})
    assert bmex(bids) == 0
    assert "the sform is used, and the results have it in both" in capsys.readouterr().out
    assert derivatives(tmp_path / "out") == expected("sub-01")
    brains = []
    for name in expected("sub-01"):
        image = nib.load(tmp_path / "out/sub-01/anat" / name)
        np.testing.assert_allclose(image.get_qform(), image.affine, atol=1e-3, err_msg=name)
        if "_res-" not in name:
            np.testing.assert_allclose(image.affine, raw.affine, err_msg=name)
        if "desc-enhanced_T1w" in name:
            inside = np.argwhere(image.get_fdata() > 0).mean(axis=0)
            brains.append(nib.affines.apply_affine(image.affine, inside))
    np.testing.assert_allclose(*brains, atol=0.5)


def test_a_fetus_comes_at_its_own_resolution(bids_skeleton, brain, tmp_path):
    bids = bids_skeleton(
        {**participants("01"), "sub-01/anat/sub-01_T2w.nii.gz": brain(contrast="T2w")},
    )
    assert bmex(bids, "--age-months", "6.5", "--fetal") == 0
    assert derivatives(tmp_path / "out") == expected("sub-01", "T2w", "0p75")


@pytest.mark.usefixtures("coarse_grid")
def test_one_bad_image_among_good_ones_and_one_without_an_age(
    bids_skeleton, brain, tmp_path, capsys
):
    bids = bids_skeleton(
        {
            **participants("01", "02"),
            "sub-01/anat/sub-01_T1w.nii.gz": brain(),
            "sub-02/anat/sub-02_T1w.nii.gz": b"not an image at all",
            "sub-03/anat/sub-03_T1w.nii.gz": brain(),
        }
    )
    assert bmex(bids) == 3
    out = tmp_path / "out"
    assert derivatives(out) == expected("sub-01")
    rows = {row["image"]: row for row in status_of(out)}
    assert rows["sub-01_T1w"]["status"] == "done"
    assert rows["sub-02_T1w"]["status"] == "failed"
    assert "expected a complete NIfTI image" in rows["sub-02_T1w"]["reason"]
    assert rows["sub-03_T1w"]["status"] == "skipped"
    assert "age" in rows["sub-03_T1w"]["reason"]
    printed = capsys.readouterr()
    assert "FAILED in preprocess" in printed.out
    assert "expected a complete NIfTI image" in printed.err
    assert "Traceback" not in printed.out + printed.err
    assert list(out.glob("logs/*/crash-*.txt"))
    assert validate(out) == []


def _with_nan(image: nib.Nifti1Image) -> nib.Nifti1Image:
    data = image.get_fdata(dtype=np.float32)
    data[3, 4, 5] = np.nan
    return nib.Nifti1Image(data, image.affine)


def _four_volumes(image: nib.Nifti1Image) -> nib.Nifti1Image:
    return nib.Nifti1Image(np.stack([np.asarray(image.dataobj)] * 4, axis=-1), image.affine)


def _zeros(image: nib.Nifti1Image) -> nib.Nifti1Image:
    return nib.Nifti1Image(np.zeros(image.shape, np.int16), image.affine)


def _cut_off(image: nib.Nifti1Image) -> bytes:
    return gzip.compress(image.to_bytes())[:-4000]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda _: b"not an image at all", "expected a complete NIfTI image"),
        (_cut_off, "expected a complete NIfTI image"),
        (_four_volumes, "expected a three-dimensional image"),
        (_zeros, "zero everywhere"),
        (_with_nan, "1 voxels that are NaN or infinite"),
    ],
    ids=["unreadable", "truncated", "4D", "all zero", "NaN"],
)
def test_a_bad_image_leaves_nothing_but_its_reason(
    bids_skeleton, brain, tmp_path, capsys, spoil, words
):
    bids = bids_skeleton({**participants("01"), "sub-01/anat/sub-01_T1w.nii.gz": spoil(brain())})
    assert bmex(bids, "--skip-bids-validation") == 1
    out = tmp_path / "out"
    assert words in capsys.readouterr().err
    assert words in status_of(out)[0]["reason"]
    assert derivatives(out) == set()
    assert not [path for path in out.rglob("sub-*/**/*") if path.is_file()]


def refused(code: int, *words: str, bids: Path, capsys, out: str = "out", flags=()) -> None:
    """A run that must end with a code and a message, before anything is written."""
    before = sorted(Path.cwd().rglob("*"))
    assert bmex(bids, *flags, out=out) == code
    message = capsys.readouterr().err
    for word in words:
        assert word in message
    assert "Traceback" not in message
    assert sorted(Path.cwd().rglob("*")) == before


def test_a_missing_dataset(tmp_path, capsys):
    refused(2, "expected a dataset folder", "mounted", bids=tmp_path / "no", capsys=capsys)


@pytest.mark.parametrize("flags", [(), ("--skip-bids-validation",)])
def test_an_empty_folder(tmp_path, capsys, flags):
    (tmp_path / "bids").mkdir()
    refused(4, "expected", bids=tmp_path / "bids", capsys=capsys, flags=flags)


def test_a_dataset_without_images(bids_skeleton, capsys):
    other = {"sub-01/dwi/sub-01_dwi.json": {"Modality": "MR"}}
    bids = bids_skeleton({**participants("01"), **other})
    refused(4, "expected a T1w or T2w image", bids=bids, capsys=capsys)


def test_a_dataset_of_images_without_age(bids_skeleton, brain, capsys):
    bids = bids_skeleton({"sub-01/anat/sub-01_T1w.nii.gz": brain()})
    refused(4, "can be processed", bids=bids, capsys=capsys, flags=["--skip-bids-validation"])


def test_an_unknown_participant(bids_skeleton, brain, capsys):
    bids = bids_skeleton({**participants("01"), "sub-01/anat/sub-01_T1w.nii.gz": brain()})
    refused(2, "99", "mount", bids=bids, capsys=capsys, flags=["--participant-label", "01", "99"])


def test_output_inside_the_input(bids_skeleton, brain, capsys):
    bids = bids_skeleton({**participants("01"), "sub-01/anat/sub-01_T1w.nii.gz": brain()})
    inside = str(bids / "derivatives" / "bmex")
    refused(2, "outside the dataset", bids=bids, out=inside, capsys=capsys)


def test_work_inside_the_input(bids_skeleton, brain, capsys):
    bids = bids_skeleton({**participants("01"), "sub-01/anat/sub-01_T1w.nii.gz": brain()})
    refused(2, "with -w", bids=bids, capsys=capsys, flags=["-w", str(bids / "work")])


def test_an_output_that_is_a_file(bids_skeleton, brain, tmp_path, capsys):
    bids = bids_skeleton({**participants("01"), "sub-01/anat/sub-01_T1w.nii.gz": brain()})
    (tmp_path / "file").write_text("mine")
    flags = ["-w", str(tmp_path)]
    refused(5, "can be written", bids=bids, out="file/out", capsys=capsys, flags=flags)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_output_that_cannot_be_written(bids_skeleton, brain, tmp_path, capsys):
    bids = bids_skeleton({**participants("01"), "sub-01/anat/sub-01_T1w.nii.gz": brain()})
    (tmp_path / "locked").mkdir(mode=0o555)
    refused(5, "permissions", bids=bids, out="locked/out", capsys=capsys, flags=["-w", "."])


def test_a_gpu_that_is_not_there(bids_skeleton, brain, capsys):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    bids = bids_skeleton({**participants("01"), "sub-01/anat/sub-01_T1w.nii.gz": brain()})
    refused(5, "--device cpu", bids=bids, capsys=capsys, flags=["--device", "cuda"])


def test_unknown_weights(bids_skeleton, brain, capsys):
    bids = bids_skeleton({**participants("01"), "sub-01/anat/sub-01_T1w.nii.gz": brain()})
    refused(5, "tiny", bids=bids, capsys=capsys, flags=["--weights", "magic"])


def test_a_dry_run_tells_all_and_writes_nothing(bids_skeleton, brain, capsys):
    bids = bids_skeleton(
        {
            **participants("01"),
            "sub-01/anat/sub-01_T1w.nii.gz": brain(),
            "sub-02/anat/sub-02_T1w.nii.gz": brain(),
        }
    )
    before = sorted(Path.cwd().rglob("*"))
    assert bmex(bids, "--dry-run") == 3  # as the run: sub-02 is skipped
    printed = capsys.readouterr().out
    assert "2 images, 1 to process on cpu" in printed
    assert "sub-01_T1w: age 0.5 months (" in printed
    assert "model month0, weights tiny, 0.8 mm → sub-01/anat" in printed
    assert "sub-02_T1w: skipped: " in printed
    assert sorted(Path.cwd().rglob("*")) == before


def test_as_a_program():
    done = subprocess.run(
        [sys.executable, "-m", "bmex_bids", "/nowhere", "out", "participant"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("bmex: expected a dataset folder at /nowhere")


def test_several_processes_the_whole_report_and_what_a_sidecar_tells(
    bids_skeleton, brain, tmp_path
):
    # the pictures are drawn in a worker process, which few_pictures does not reach
    bids = bids_skeleton(
        {
            **participants("01", "02"),
            "sub-01/anat/sub-01_T1w.nii.gz": brain(),
            "sub-02/anat/sub-02_T1w.nii.gz": b"not an image at all",
        }
    )
    flags = ["--nprocs", "2", "--omp-nthreads", "1", "--skull-strip", "skip"]
    assert bmex(bids, *flags) == 3
    out = tmp_path / "out"
    assert [row["status"] for row in status_of(out)] == ["done", "failed"]
    assert derivatives(out) == expected("sub-01")
    assert validate(out) == []
    text = (out / "sub-01/anat/sub-01_desc-enhanced_T1w.json").read_text()
    for word in ("participants.tsv", "month0", "tiny", "made by a test", "tct_after"):
        assert word in text, word
    gate = json.loads(text)["BMEX"]["Gate"]
    rules = {rule["Rule"]: rule["Verdict"] for rule in gate["Rules"]}
    assert gate["Verdict"] != "pass"  # an untrained network finds no tissues, and that is said
    assert rules["tissue volume change"] == rules["quality index"] == "warn"
    assert rules["correlation with input"] == "pass"
    page = (out / "sub-01.html").read_text()
    pictures = sorted(path.name for path in (out / "sub-01/figures").glob("*.svg"))
    assert len(pictures) >= 4
    for picture in pictures:
        assert picture in page
    assert f'class="badge {gate["Verdict"]}">{gate["Verdict"]}</span>\nQuality gate' in page
    # opens without a network: links may lead there, but nothing is loaded from there
    assert not re.search(r"""(?:src|data)=["']?http|<link[^>]+http|url\(["']?http""", page)


def test_a_head_keeps_what_is_outside_its_brain(
    bids_skeleton, head_phantom, tmp_path, monkeypatch
):
    phantom = head_phantom(spacing=2.5, size=0.55)
    monkeypatch.setattr(
        "bmex_bids.interfaces.stripping.brain_probability",
        lambda *_, **__: phantom.mask.astype(np.float32),
    )
    bids = bids_skeleton({**participants("01"), "sub-01/anat/sub-01_T1w.nii.gz": phantom.image})
    assert bmex(bids, "--skull-strip", "force") == 0
    anat = tmp_path / "out/sub-01/anat"
    truth = phantom.image.get_fdata()
    preproc = nib.load(anat / "sub-01_desc-preproc_T1w.nii.gz").get_fdata()
    scalp = truth > 800
    assert preproc[scalp].mean() == pytest.approx(truth[scalp].mean(), rel=0.1)
    sidecar = json.loads((anat / "sub-01_desc-preproc_T1w.json").read_text())
    assert sidecar["SkullStripped"] is False
    assert "tiny-strip" in json.dumps(sidecar)
    enhanced = json.loads((anat / "sub-01_desc-enhanced_T1w.json").read_text())
    assert enhanced["SkullStripped"] is True


@pytest.mark.usefixtures("coarse_grid")
def test_a_second_run_fills_an_output_that_was_deleted(bids_skeleton, brain, tmp_path):
    bids = bids_skeleton({**participants("01"), "sub-01/anat/sub-01_T1w.nii.gz": brain()})
    assert bmex(bids) == 0
    shutil.rmtree(tmp_path / "out")
    assert bmex(bids) == 0
    assert derivatives(tmp_path / "out") == expected("sub-01")


def test_an_interrupted_run_says_what_it_did_not_do(
    bids_skeleton, brain, tmp_path, monkeypatch, capsys
):
    def interrupted(*_: object, **__: object) -> None:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("bmex_bids.running.execution.run", interrupted)
    bids = bids_skeleton({**participants("01"), "sub-01/anat/sub-01_T1w.nii.gz": brain()})
    before = signal.getsignal(signal.SIGTERM)
    assert bmex(bids) == 143
    assert "interrupted" in capsys.readouterr().err
    assert [row["status"] for row in status_of(tmp_path / "out")] == ["not run"]
    assert signal.getsignal(signal.SIGTERM) is before
