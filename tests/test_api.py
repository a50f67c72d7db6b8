# SPDX-License-Identifier: Apache-2.0
"""``from bmex_bids import enhance``: the same result as ``bmex-enhance``, in Python."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bmex_bids import BmexError, Enhanced, enhance
from bmex_bids.cli.enhance import main
from bmex_bids.common.contrasts import MEAN
from bmex_bids.network.weights.registry import bundled
from bmex_bids.refocus import refocus
from bmex_bids.refocus.refocus import Refocused
from bmex_bids.running.planning import NO_STRUCTURES

pytestmark = pytest.mark.usefixtures("coarse_grid")


@pytest.fixture(autouse=True)
def surroundings(tiny_records, monkeypatch, tmp_path):
    """The tiny network, one picture, and folders of the test's own, the temporary one too."""
    from bmex_bids.interfaces import reportlets

    only = {"summary": reportlets.write_summary}
    monkeypatch.setattr(reportlets, "drawings", lambda: only)
    monkeypatch.setattr("bmex_bids.network.weights.registry.bundled", lambda: tiny_records)
    (tmp_path / "tmp").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)


def test_a_path_gives_what_the_command_line_gives(brain):
    raw = brain("PIR", oblique=12)
    nib.save(raw, "sub-07_ses-A_T1w.nii.gz")
    Path("sub-07_ses-A_T1w.json").write_text(json.dumps({"EchoTime": 0.003}))
    before = {path: path.read_bytes() for path in Path().glob("sub-*")}
    lines: list[str] = []
    result = enhance(
        "sub-07_ses-A_T1w.nii.gz",
        age_months=0.5,
        report=True,
        progress=lines.append,
        skull_strip="skip",
        omp_nthreads=1,
    )
    assert list(Path("tmp").iterdir()) == []
    assert before == {path: path.read_bytes() for path in Path().glob("sub-*")}
    assert "age 0.5 months, model month0, weights tiny" in lines[0]
    assert "done in" in lines[-1]

    flags = ["--age-months", "0.5", "--omp-nthreads", "1", "--skull-strip", "skip"]
    assert main(["sub-07_ses-A_T1w.nii.gz", "cli.nii.gz", *flags]) == 0
    theirs = nib.load("cli.nii.gz")
    np.testing.assert_array_equal(result.images["enhanced"].dataobj, theirs.dataobj)
    np.testing.assert_array_equal(result.images["enhanced"].affine, theirs.affine)
    record = json.loads(Path("cli.json").read_text())
    assert result.quality == record["BMEX"]["Quality"]
    assert result.gate == record["BMEX"]["Gate"]
    assert result.provenance["EchoTime"] == 0.003
    assert result.provenance["Sources"] == ["sub-07_ses-A_T1w.nii.gz"]
    assert result.provenance["Age"]["months"] == 0.5
    assert set(result.images) >= {"enhanced", "enhanced_res", "head", "mask", "pCSF", "pGM", "pWM"}
    assert result.images["mask"].shape == raw.shape
    assert set(np.unique(result.tissues.dataobj)) <= {0, 1, 2, 3}

    written = result.save("out")
    assert {path.name for path in Path("out").iterdir()} == {path.name for path in written}
    saved = nib.load("out/sub-07_ses-A_desc-enhanced_T1w.nii.gz")
    np.testing.assert_array_equal(saved.dataobj, theirs.dataobj)
    sidecar = json.loads(Path("out/sub-07_ses-A_desc-enhanced_T1w.json").read_text())
    for table in (sidecar, record):
        del table["BMEX"]["NetworkSeconds"]
    assert sidecar == record
    assert "Methods" in Path("out/sub-07_ses-A.html").read_text()

    shown = result._repr_html_()
    assert "data:image/png;base64," in shown
    assert "tiny" in shown
    assert result.picture().startswith(b"\x89PNG")
    assert "pGM" not in repr(result)  # no megabytes of bytes in a notebook


def test_an_image_in_memory_with_a_mask_in_memory(brain):
    raw = brain(contrast="T2w")
    data = np.asarray(raw.dataobj).astype(np.float32)
    image = nib.MGHImage(data, raw.affine)  # any class of nibabel's
    mask = nib.Nifti1Image((data > 0).astype(np.uint8), raw.affine)
    result = enhance(image, age_months=6.5, fetal=True, contrast="T2w", mask=mask, omp_nthreads=1)
    assert isinstance(result, Enhanced)
    assert result.name == "image"
    np.testing.assert_array_equal(result.images["mask"].dataobj, mask.dataobj)
    assert result.provenance["Mask"]["method"] == "given"
    assert result.page is None
    np.testing.assert_array_equal(image.dataobj, data)
    assert list(Path("tmp").iterdir()) == []


def test_motion_is_undone_in_the_result_and_the_network_judged_without_it(
    head_phantom, monkeypatch
):
    """The network returns its input; so what changed is what the motion correction did."""
    phantom = head_phantom(spacing=2.5, size=0.55)
    mask = nib.Nifti1Image(phantom.mask.astype(np.uint8), phantom.image.affine)
    truth = np.asarray(phantom.image.dataobj)
    moved = nib.Nifti1Image((truth + np.roll(truth, 6, axis=1)) / 2, phantom.image.affine)
    monkeypatch.setattr(
        refocus,
        "refocus",
        lambda image, *_, **__: Refocused(truth, True, "it moved", {"Model": "poses"}, 9.0, 8.5),
    )

    def of(setting):
        return enhance(moved, age_months=0.5, mask=mask, motion_correction=setting, omp_nthreads=1)

    on, off = of("auto"), of("off")
    assert on.provenance["MotionCorrection"] == {
        "Applied": True, "Reason": "it moved", "Model": "poses", "EntropyBefore": 9.0,
        "EntropyAfter": 8.5,
    }  # fmt: skip
    assert "MotionCorrection" not in off.provenance
    np.testing.assert_allclose(on.images["head"].dataobj, truth, rtol=1e-3, atol=0.5)
    np.testing.assert_allclose(off.images["head"].dataobj, moved.dataobj, rtol=1e-3, atol=0.5)
    # the gate judges the network by what it was given
    assert min(on.quality["correlation"], off.quality["correlation"]) > 0.99
    with pytest.raises(BmexError, match="motion_correction of auto, off"):
        of("always")


def test_the_expected_error_is_among_the_images(brain, tiny_slices, monkeypatch):
    monkeypatch.setattr("bmex_bids.network.weights.registry.bundled", lambda: tiny_slices)
    result = enhance(brain(), age_months=1, skull_strip="skip", omp_nthreads=1)
    assert {"uncertainty", "pCSF", "pGM", "pWM"} <= set(result.images)
    values = np.asarray(result.images["uncertainty"].dataobj)
    assert (values > 0).any()
    assert result.files["uncertainty"].ending == "_desc-uncertainty_T1w"


def test_structures_and_half_the_edge_are_made_where_they_are_asked_for(
    brain, tiny_records, monkeypatch
):
    groups = tiny_records[0].age_groups
    records = [
        dataclasses.replace(record, age_groups=groups)
        for record in bundled()
        if record.kind in ("segment", "super")
    ]
    monkeypatch.setattr(
        "bmex_bids.network.weights.registry.bundled", lambda: [*tiny_records, *records]
    )
    how = {"age_months": 1, "skull_strip": "skip", "omp_nthreads": 1}
    made = enhance(brain(), segment="rois", output_res=["0p8", "0p4"], **how)
    coarse, fine = made.images["enhanced_res"], made.images["enhanced_half"]
    assert fine.shape == tuple(2 * n for n in coarse.shape)
    assert len(np.unique(made.images["structures"].dataobj)) > 2
    plain = enhance(brain(), output_res="native", **how)
    assert set(plain.images) == set(made.images) - {"enhanced_res", "enhanced_half", "structures"}
    plain = enhance(brain(), **how)
    assert set(made.images) - set(plain.images) == {"enhanced_half", "structures"}
    assert {path.name for path in made.save("out")} > {path.name for path in plain.save("plain")}


def test_structures_for_which_there_are_no_weights_are_warned_about(
    brain, tiny_records, monkeypatch
):
    (record,) = (record for record in bundled() if record.kind == "segment")
    record = dataclasses.replace(record, age_groups=("fetal",))
    monkeypatch.setattr(
        "bmex_bids.network.weights.registry.bundled", lambda: [*tiny_records, record]
    )
    lines: list[str] = []
    made = enhance(
        brain(), age_months=1, skull_strip="skip", segment="rois", progress=lines.append,
        omp_nthreads=1,
    )  # fmt: skip
    assert "structures" not in made.images
    assert NO_STRUCTURES in made.warnings
    assert any(NO_STRUCTURES in line for line in lines)


@pytest.mark.parametrize("contrast", ["FLAIR", "PDw"])
def test_a_contrast_without_a_reference_goes_through_in_its_own_units(
    contrast, brain, tiny_slices, monkeypatch
):
    records = [dataclasses.replace(record, contrasts=(contrast,)) for record in tiny_slices]
    monkeypatch.setattr("bmex_bids.network.weights.registry.bundled", lambda: records)
    raw = brain()
    nib.save(raw, f"sub-07_{contrast}.nii.gz")
    result = enhance(
        f"sub-07_{contrast}.nii.gz", age_months=0.5, skull_strip="skip", omp_nthreads=1
    )
    assert result.name == "sub-07"
    inside = np.asarray(result.images["mask"].dataobj) > 0
    ours = np.asarray(result.images["enhanced"].dataobj)
    assert ours[inside].mean() == pytest.approx(MEAN, rel=0.05)
    assert ("contrast" in {rule["Rule"] for rule in result.gate["Rules"]}) == (contrast == "FLAIR")


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"image": 3}, TypeError, "expected a path or an image of nibabel for image"),
        ({"image": "no.nii.gz"}, BmexError, "found nothing; check the path"),
        ({"mask": "no.nii.gz"}, BmexError, "an image for mask"),
        ({"age_months": "six"}, BmexError, "age_months: expected a number of 0 or more"),
        ({"age_months": 3000}, BmexError, "expected an age of 0 to 130 years"),
        ({"wieghts": "bundled"}, BmexError, "did you mean weights"),
        ({"skull_strip": "no"}, BmexError, "expected skull_strip of auto, skip, force"),
        ({"output_res": ["native", "0p5"]}, BmexError, "expected output_res of .*, got '0p5'"),
        ({"segment": "all"}, BmexError, "expected segment of "),
        ({"device": "gpu"}, BmexError, "device: expected auto, cpu"),
        *(
            ({"contrast": name}, BmexError, "contrast: expected one of T1w, T2w")
            for name in ("T3w", "t1w", "", 1)
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_done(brain, changes, error, words):
    nib.save(brain(), "in.nii.gz")
    arguments = {"image": "in.nii.gz", "age_months": 1} | changes
    with pytest.raises(error, match=words):
        enhance(**arguments)
    assert list(Path("tmp").iterdir()) == []
