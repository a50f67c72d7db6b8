# SPDX-License-Identifier: Apache-2.0
"""Still and moved scans: registration, figures and the page, on a small head that a test moves."""

from __future__ import annotations

import csv

import nibabel as nib
import numpy as np
import pytest
import scipy.ndimage

from bmex_bids.cli import evaluate, run
from bmex_bids.degrade.cells import CELLS
from bmex_bids.evaluation import judge, pairs
from bmex_bids.evaluation.pairs import Choice, find_pairs
from bmex_bids.evaluation.registration import on_grid_of, rigid
from bmex_bids.exceptions import UsageError
from bmex_bids.outputs.sidecar import structures_table

SPACING = 3.0


def turned(image, degrees, shift_mm):
    """The same voxels where another position of the head has them."""
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    move = np.array([[cos, -sin, 0, shift_mm], [sin, cos, 0, -2], [0, 0, 1, 3], [0, 0, 0, 1.0]])
    return nib.Nifti1Image(np.asarray(image.dataobj), move @ image.affine), move


def rescanned(image, degrees, shift_mm, data=None):
    """The head in another position, on the scanner's own grid; without data, its image."""
    data = np.asarray(image.dataobj) if data is None else data
    _, move = turned(image, degrees, shift_mm)
    inverse = np.linalg.inv(image.affine) @ np.linalg.inv(move) @ image.affine
    order = 0 if data.dtype == bool else 3
    found = scipy.ndimage.affine_transform(
        data.astype(np.float32), inverse[:3, :3], inverse[:3, 3], order=order
    )
    return nib.Nifti1Image(np.clip(found, 0, None), image.affine)


@pytest.fixture
def dataset(bids_skeleton, head_phantom, tmp_path):
    """Two participants with a still and two moved scans, and what enhancement makes of them."""
    tree, made = {}, {}
    for label, seed in (("01", 1), ("02", 2)):
        phantom = head_phantom(spacing=SPACING, size=0.62, noise=8.0, seed=seed)
        mask = nib.Nifti1Image(phantom.mask.astype(np.uint8), phantom.image.affine)
        stem = f"sub-{label}/anat/sub-{label}_acq-"
        tree[f"{stem}standard_T1w.nii.gz"] = phantom.image
        made[f"{stem}standard_desc-brain_mask.nii.gz"] = mask
        for k, (name, cell) in enumerate((("headmotion1", "moderate"), ("headmotion2", "severe"))):
            clean = rescanned(phantom.image, 6 - 9 * k, 4 + k)
            data = np.asarray(clean.dataobj)
            bad = CELLS[cell].recipe(seed).apply(data, (SPACING,) * 3)
            tree[f"{stem}{name}_T1w.nii.gz"] = nib.Nifti1Image(2.5 * bad.clip(0), clean.affine)
            mended = nib.Nifti1Image(2.5 * (0.25 * bad.clip(0) + 0.75 * data), clean.affine)
            made[f"{stem}{name}_desc-preproc_T1w.nii.gz"] = mended
            there = rescanned(phantom.image, 6 - 9 * k, 4 + k, phantom.mask)
            made[f"{stem}{name}_desc-brain_mask.nii.gz"] = nib.Nifti1Image(
                (np.asarray(there.dataobj) > 0.5).astype(np.uint8), there.affine
            )
    bids = bids_skeleton(tree)
    for name, image in made.items():
        path = tmp_path / "enhanced" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(image, path)
    return bids


@pytest.fixture
def no_field(monkeypatch):
    """The heads have no bias field; to look for one takes most of the time."""
    monkeypatch.setattr(pairs, "unbiased", lambda image, mask: image)


def words(bids, out, *more):
    flags = ["--reference", "acq-standard", "--moved", "acq-headmotion1", "acq-headmotion2"]
    return ["pairs", str(bids), *flags, "--out", str(out), *map(str, more)]


def test_a_turned_head_is_brought_back(head_phantom):
    phantom = head_phantom(spacing=SPACING, size=0.62)
    mask = nib.Nifti1Image(phantom.mask.astype(np.uint8), phantom.image.affine)
    other = rescanned(phantom.image, 7.0, 5.0)
    inside = np.asarray(rescanned(phantom.image, 7.0, 5.0, phantom.mask).dataobj) > 0.5
    there = nib.Nifti1Image(inside.astype(np.uint8), other.affine)
    _, move = turned(phantom.image, 7.0, 5.0)
    found = rigid(phantom.image, other, mask, there)
    brain = np.argwhere(phantom.mask)[::50]
    world = nib.affines.apply_affine(phantom.image.affine, brain)
    wanted = nib.affines.apply_affine(move, world)
    got = np.array([found.TransformPoint((-x, -y, z)) for x, y, z in world]) * [-1, -1, 1]
    assert np.abs(got - wanted).max() < 1.0  # mm, of voxels of 3 mm
    back = on_grid_of(other, phantom.image, found)
    inside = phantom.mask
    truth = np.asarray(phantom.image.dataobj)
    assert np.corrcoef(back[inside], truth[inside])[0, 1] > 0.95


def test_the_page_says_that_a_mended_scan_is_nearer(dataset, tmp_path, capsys):
    out = tmp_path / "out"
    assert evaluate.main(words(dataset, out, "--enhanced", tmp_path / "enhanced")) == 0
    with (out / "pairs.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    names = judge.segmenters()
    assert len(rows) == 2 * 2 * (2 + 4 * len(names))
    for row in rows:
        if row["measure"] in ("psnr", "ssim", *(f"dice_{name}" for name in names)):
            assert float(row["after"]) > float(row["before"]), row
            assert row["still_value"] == "n/a"
        else:
            assert float(row["still_value"]) > 0
    text = (out / "pairs.md").read_text()
    assert text in capsys.readouterr().out
    for condition in ("acq-headmotion1", "acq-headmotion2"):
        assert f"| {condition} | PSNR, dB | 2 |" in text
        for name in names:
            assert f"| {condition} | bright class, {judge.SEGMENTERS[name]} |" in text
    assert text.count("2 of 2") == 2 * (2 + len(names))
    pictures = sorted(path.name for path in out.glob("*.png"))
    assert len(pictures) == 5
    assert all(f"]({name})" in text for name in pictures)


def test_without_an_output_the_app_runs_first(dataset, no_field, tmp_path, monkeypatch):
    told = []

    def app(argv):
        told.append(argv)
        (tmp_path / "enhanced").rename(tmp_path / "out/enhanced")
        return 0

    (tmp_path / "out").mkdir()
    monkeypatch.setattr(run, "main", app)
    more = ["--weights", "bmex-slices-4", "--device", "cpu", "--pictures", "0"]
    assert evaluate.main(words(dataset, tmp_path / "out", *more)) == 0
    (argv,) = told
    assert argv[:3] == [str(dataset), str(tmp_path / "out/enhanced"), "participant"]
    assert argv[3:] == ["--weights", "bmex-slices-4", "--device", "cpu"]


def test_a_scan_without_a_result_is_left_out_and_named(dataset, no_field, tmp_path):
    enhanced = tmp_path / "enhanced"
    gone = "sub-01/anat/sub-01_acq-headmotion1_desc-preproc_T1w.nii.gz"
    (enhanced / gone).unlink()
    out = tmp_path / "out"
    assert evaluate.main(words(dataset, out, "--enhanced", enhanced, "--pictures", "0")) == 0
    text = (out / "pairs.md").read_text()
    assert "## Left out" in text
    assert "sub-01_acq-headmotion1_T1w: expected" in text
    assert "| acq-headmotion1 | SSIM | 1 |" in text


def test_an_output_of_no_pair_says_what_to_run(dataset, tmp_path, capsys):
    code = evaluate.main(words(dataset, tmp_path / "out", "--enhanced", tmp_path / "nothing"))
    assert code == 2
    assert "participant" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "reference", "moved", "expected"),
    [
        (
            ["sub-1_acq-still_T1w", "sub-1_acq-nod_T1w", "sub-2_acq-nod_T1w"],
            "acq-still", ["acq-nod"], [("sub-1_acq-still_T1w", "sub-1_acq-nod_T1w")],
        ),
        (
            ["sub-1_ses-1_T1w", "sub-1_ses-2_T1w", "sub-1_ses-3_T1w"],
            "ses-1", ["ses-2", "ses-3"],
            [("sub-1_ses-1_T1w", "sub-1_ses-2_T1w"), ("sub-1_ses-1_T1w", "sub-1_ses-3_T1w")],
        ),
        (
            ["sub-1_ses-A_acq-s_run-1_T1w", "sub-1_ses-A_acq-m_run-2_T1w",
             "sub-1_ses-B_acq-m_run-2_T1w"],
            "acq-s_run-1", ["acq-m_run-2"],
            [("sub-1_ses-A_acq-s_run-1_T1w", "sub-1_ses-A_acq-m_run-2_T1w")],
        ),
    ],
)  # fmt: skip
def test_pairs_share_what_they_were_not_chosen_by(tmp_path, names, reference, moved, expected):
    for name in names:
        folders = [word for word in name.split("_") if word.startswith(("sub-", "ses-"))]
        path = tmp_path.joinpath(*folders, "anat", f"{name}.nii.gz")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found = find_pairs(tmp_path, Choice.parse(reference), [*map(Choice.parse, moved)], "T1w")
    assert [
        tuple(path.name.removesuffix(".nii.gz") for path in (pair.still, pair.moved))
        for pair in found
    ] == expected


@pytest.mark.parametrize("text", ["standard", "acq-", "acq-a_", "-x"])
def test_a_choice_that_is_none_is_refused(text):
    with pytest.raises(UsageError, match="acq-standard"):
        Choice.parse(text)


def test_a_dataset_without_pairs_is_refused(tmp_path):
    with pytest.raises(UsageError, match="--reference and --moved"):
        find_pairs(tmp_path, Choice.parse("acq-a"), [Choice.parse("acq-b")], "T1w")


def test_bias_of_a_dataset_reads_what_the_app_measured(dataset, no_field, tmp_path):
    """Tissues and structures of the outputs are compared with those of the still scan."""
    enhanced = tmp_path / "enhanced"
    for kind, size in (("standard", 1000), ("headmotion1", 900)):
        stem = enhanced / f"sub-01/anat/sub-01_acq-{kind}"
        mask = nib.load(f"{stem}_desc-brain_mask.nii.gz")
        labels = np.asarray(mask.dataobj, np.uint8) * 2
        nib.save(nib.Nifti1Image(labels, mask.affine), f"{stem}_desc-enhanced_dseg.nii.gz")
        table = structures_table({"hippocampus_ml": size / 1000})
        stem.with_name(f"{stem.name}_seg-subcortical_desc-enhanced_dseg.tsv").write_text(table)
    out = tmp_path / "out"
    more = [*words(dataset, out, "--enhanced", enhanced)[2:]]
    assert evaluate.main(["bias", "--bids", str(dataset), *more]) == 0
    text = (out / "bias.md").read_text()
    line = "| acq-headmotion1 | hippocampus, structures of the app | 1 | 0.001 |  | -10.0% |"
    assert line in text
    assert "| acq-headmotion1 | WM, tissues of the app | 1 |" in text
    assert "| acq-headmotion2 | bright class, Otsu and Potts | 2 |" in text
    assert "PSNR" not in text
