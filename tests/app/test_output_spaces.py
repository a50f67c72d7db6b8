# SPDX-License-Identifier: Apache-2.0
"""``--output-spaces`` through the whole app, with a small TemplateFlow home."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import template_home
from app_runs import bmex, derivatives, expected, participants, status_of

from bmex_bids.common.names import BidsName
from bmex_bids.outputs.pictures import picture_paths
from bmex_bids.outputs.records import find_records
from bmex_bids.running.validation import validate


@pytest.fixture
def home(tmp_path, monkeypatch):
    root = template_home.make(tmp_path / "templateflow")
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(root))
    return root


def names_in(label, resolution="", contrast="", stem="sub-01", suffix="T1w"):
    """What is written in a standard space."""
    space = f"{stem}_space-{label}" + (f"_res-{resolution}" if resolution else "")
    tissues = {f"{space}_label-{x}_desc-enhanced{contrast}_probseg" for x in ("CSF", "GM", "WM")}
    return {
        f"{name}.nii.gz"
        for name in {
            f"{space}_desc-enhanced_{suffix}",
            f"{space}_desc-preproc_{suffix}",
            f"{space}_desc-brain{contrast}_mask",
            f"{space}_desc-enhanced{contrast}_dseg",
            *tissues,
        }
    }


def test_images_masks_tissues_and_transform_in_two_spaces(
    one, home, tmp_path, monkeypatch, coarse_grid, capsys
):
    from bmex_bids.interfaces import reportlets

    drawn = {"summary": reportlets.write_summary, "registration": reportlets.draw_registration}
    monkeypatch.setattr(reportlets, "drawings", lambda: drawn)
    spaces = ("--output-spaces", "T1w", "MNIInfant", "MNI152NLin2009cAsym:res-2")
    assert bmex(one, *spaces) == 0
    out = tmp_path / "out"
    assert derivatives(out) == (
        expected("sub-01") | names_in("MNIInfant+1") | names_in("MNI152NLin2009cAsym", "2")
    )
    assert "--output-spaces T1w: not needed here" in capsys.readouterr().err
    assert validate(out) == []
    folder = out / "sub-01" / "anat"
    assert {path.name for path in folder.glob("*_xfm.h5")} == {
        "sub-01_from-T1w_to-MNIInfant+1_mode-image_xfm.h5",
        "sub-01_from-T1w_to-MNI152NLin2009cAsym_mode-image_xfm.h5",
        "sub-01_from-MNIInfant+1_to-T1w_mode-image_xfm.h5",
        "sub-01_from-MNI152NLin2009cAsym_to-T1w_mode-image_xfm.h5",
    }
    to, back = (
        sitk.ReadTransform(str(folder / f"sub-01_from-{way}_mode-image_xfm.h5"))
        for way in ("T1w_to-MNIInfant+1", "MNIInfant+1_to-T1w")
    )
    centre = (3.0, 5.0, 8.0)
    assert to.TransformPoint(centre) != pytest.approx(centre, abs=0.5)
    assert back.TransformPoint(to.TransformPoint(centre)) == pytest.approx(centre, abs=0.5)
    told = " ".join((out / "logs" / "CITATION.md").read_text().split())
    assert "templates of TemplateFlow" in told
    assert "(MNI152NLin2009cAsym for 1 and MNIInfant+1 for 1)" in told
    template = home / "tpl-MNIInfant" / "cohort-1" / "tpl-MNIInfant_cohort-1_res-1_T1w.nii.gz"
    for name in names_in("MNIInfant+1"):
        image = nib.load(folder / name)
        assert image.shape == nib.load(template).shape
        np.testing.assert_allclose(image.affine, nib.load(template).affine, atol=1e-5)
        assert image.header["sform_code"] == 5
        assert (folder / name.replace(".nii.gz", ".json")).is_file()

    def load(name):
        return nib.load(folder / f"sub-01_space-MNIInfant+1_{name}.nii.gz").get_fdata()

    mask = load("desc-brain_mask") > 0
    there = nib.load(str(template).replace("T1w", "desc-brain_mask")).get_fdata() > 0
    assert 2 * (mask & there).sum() / (mask.sum() + there.sum()) > 0.9
    enhanced = load("desc-enhanced_T1w")
    assert not enhanced[~mask].any()
    assert 100 < np.median(enhanced[mask]) < 1000
    assert set(np.unique(load("desc-enhanced_dseg"))) <= {0, 1, 2, 3}
    shares = sum(load(f"label-{x}_desc-enhanced_probseg") for x in ("CSF", "GM", "WM"))
    assert np.median(shares[mask]) == pytest.approx(1, abs=0.01)

    sidecar = json.loads((folder / "sub-01_space-MNIInfant+1_desc-brain_mask.json").read_text())
    assert sidecar["SpatialReference"].endswith("/tpl-MNIInfant/cohort-1/" + template.name)
    assert sidecar["BMEX"]["Template"]["Overlap"] > 0.9
    assert sidecar["Resolution"] == f"that of {template.name}, 2.2 × 2.2 × 2.2 mm"
    (record,) = find_records(out)  # the images in standard spaces are no records of their own
    assert str(record.source) == "sub-01_T1w"
    assert {path.name for path in record.paths.values() if "space" in path.name} == set()
    picture = out / "sub-01" / "figures" / "sub-01_desc-registration_T1w.svg"
    assert picture.read_text().count("<image") >= 6
    assert "registration_T1w.svg" in (out / "sub-01.html").read_text()

    for path in picture_paths(out, BidsName.of("sub-01_T1w")):
        path.touch()  # the others, which are not drawn here
    assert bmex(one, *spaces) == 0
    assert [row["status"] for row in status_of(out)] == ["unchanged"]
    template_home.put(home, "tpl-MNIInfant_cohort-1_res-1", template_home.shrunk(5, 0.55))
    monkeypatch.setattr("bmex_bids.running.planning._checksum_of_template", lambda path: "new")
    assert bmex(one, *spaces, "--dry-run") == 0
    assert "1 to process" in capsys.readouterr().out


def test_a_t2w_image_beside_a_t1w_keeps_its_own_mask_and_tissues(
    bids_skeleton, brain, home, tmp_path, coarse_grid, capsys
):
    bids = bids_skeleton(
        {
            **participants("01"),
            "sub-01/anat/sub-01_T1w.nii.gz": brain(),
            "sub-01/anat/sub-01_T2w.nii.gz": brain(contrast="T2w"),
        }
    )
    assert bmex(bids, "--output-spaces", "MNIInfant:cohort-2", "--dry-run=json") == 0
    t1w, t2w = json.loads(capsys.readouterr().out)["images"]
    promised = [{name.rpartition("/")[2] for name in image["outputs"]} for image in (t1w, t2w)]
    assert not promised[0] & promised[1]
    assert names_in("MNIInfant+2", contrast="T2w", suffix="T2w") <= promised[1]
    assert "sub-01_from-T2w_to-MNIInfant+2_mode-image_xfm.h5" in promised[1]
    assert "sub-01_from-MNIInfant+2_to-T2w_mode-image_xfm.h5" in promised[1]


def test_a_template_that_is_not_there_ends_the_run_before_anything_is_written(
    one, home, tmp_path, capsys
):
    assert bmex(one, "--output-spaces", "MNI152NLin6Asym") == 5
    said = capsys.readouterr().err
    assert "templateflow get MNI152NLin6Asym --res 1" in said
    assert not (tmp_path / "out").exists()


def test_quality_alone_needs_no_space(one, home, tmp_path, coarse_grid):
    assert bmex(one, "--qc-only", "--output-spaces", "MNIInfant") == 0
    assert derivatives(tmp_path / "out") == set()
    assert not list((tmp_path / "out").rglob("*_xfm.h5"))
