# SPDX-License-Identifier: Apache-2.0
from types import SimpleNamespace
from xml.etree import ElementTree

import nibabel as nib
import numpy as np
import pytest
from nipype.interfaces.base import Undefined

from bmex_bids.interfaces import reportlets
from bmex_bids.interfaces.reportlets import (
    Reportlets,
    cropped,
    window,
    write_summary,
)
from bmex_bids.outputs.summary import summary_html


@pytest.fixture
def inputs(head_phantom, tmp_path):
    """A phantom before and after, and what is said of it."""
    phantom = head_phantom(spacing=5.0)
    affine = phantom.image.affine

    def save(name, data):
        path = tmp_path / f"{name}.nii.gz"
        nib.save(nib.Nifti1Image(data, affine), path)
        return str(path)

    (tmp_path / "intensity.json").write_text("{}")
    brain = np.asarray(phantom.brain.dataobj)
    mask = save("mask", phantom.mask.astype(np.uint8))
    return {
        "output_dir": str(tmp_path / "out"),
        "planned": {
            "name": "sub-01_run-1_T1w",
            "age_group": "month24",
            "age": {
                "value": 30.0,
                "unit": "years",
                "months": 360.0,
                "fetal": False,
                "source": "participants.tsv",
                "column": "age",
            },
            "warnings": ["<b>age</b> & more"],
        },
        "conformed": save("conformed", np.asarray(phantom.image.dataobj)),
        "mask": mask,
        "matched": save("matched", brain),
        "intensity_json": str(tmp_path / "intensity.json"),
        "mask_res": mask,
        "enhanced_res": save("enhanced", (brain * 0.9).astype(np.float32)),
        "dseg_res": save("dseg", phantom.tissues),
        "mask_info": {
            "volume_litres": 1.3,
            "components": 1,
            "method": "given",
            "warnings": ["small"],
        },
        "quality": {
            "tct_before": 1.234,
            "tct_after": 2.0,
            "qi": None,
            "gm_litres_before": 0.6,
            "gm_litres_after": 0.588,
            "gm_litres_sd": 0.011,
            "wm_litres_before": None,
            "wm_litres_after": 0.4,
        },
        "gate": {
            "Verdict": "fail",
            "Rules": [
                {"Rule": "a", "Value": 1.0, "Verdict": "pass", "Reason": "Nothing is odd."},
                {"Rule": "b", "Value": None, "Verdict": "warn", "Reason": "Odd <b>."},
                {"Rule": "c", "Value": 2.0, "Verdict": "fail", "Reason": "It is wrong."},
            ],
        },
        "provenance": {
            "weights": "test-1",
            "weights_sha256": "0123456789abcdef",
            "weights_licence": "MIT",
            "weights_source": "a test",
            "device": "cpu",
            "precision": "float32",
            "mirrored": ["x", "y"],
            "seconds": 3.2,
        },
        "stripped": True,
        "split_slices": {},
        "refocus": {
            "applied": False,
            "reason": "no motion <b>",
            "motion": {},
            "lines": {},
            "spikes": 0,
        },
    }


def test_all_pictures_are_drawn_and_named_after_the_image(inputs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = Reportlets(**inputs).run()
    figures = tmp_path / "out" / "sub-01" / "figures"
    names = {path.name for path in figures.iterdir()}
    pictures = {"enhancement", "difference", "brainmask", "tissues", "histogram"}
    assert names == {f"sub-01_run-1_desc-{p}_T1w.svg" for p in pictures} | {
        "sub-01_run-1_desc-summary_T1w.html"
    }
    assert set(result.outputs.out_files) == {str(figures / name) for name in names}
    for path in figures.glob("*.svg"):
        assert ElementTree.parse(path).getroot().tag.endswith("svg")  # noqa: S314 (our own file)
    histogram = (figures / "sub-01_run-1_desc-histogram_T1w.svg").read_text()
    for label in ("before", "after", "reference (month24)"):
        assert label in histogram
    flicker = (figures / "sub-01_run-1_desc-enhancement_T1w.svg").read_text()
    for layer, word in (("background", "before"), ("foreground", "after")):
        words = flicker.split(f'<g class="{layer}-svg">')[1].split("</text>")[0]
        assert words.endswith(f">{word}"), "the bar says which of the two is seen"
    difference = (figures / "sub-01_run-1_desc-difference_T1w.svg").read_text()
    assert ">−7" in difference  # a tenth of the brightest tissue


@pytest.fixture
def draw_only(monkeypatch):
    """Leaves out all pictures but one, which is quicker."""

    def leave_out(name):
        only = {name: reportlets.drawings()[name]}
        monkeypatch.setattr(reportlets, "drawings", lambda: only)

    return leave_out


def test_the_expected_error_is_drawn_where_it_is_known_and_an_old_picture_goes(
    inputs, tmp_path, monkeypatch, draw_only
):
    monkeypatch.chdir(tmp_path)
    draw_only("uncertainty")
    picture = tmp_path / "out/sub-01/figures/sub-01_run-1_desc-uncertainty_T1w.svg"
    assert (
        str(picture) in Reportlets(**inputs, deviation=inputs["matched"]).run().outputs.out_files
    )
    drawn = picture.read_text()
    assert ">120 units of the reference<" in drawn
    assert ElementTree.parse(picture).getroot().tag.endswith("svg")  # noqa: S314 (our own file)
    assert str(picture) not in Reportlets(**inputs).run().outputs.out_files
    assert not picture.exists()


def test_structures_are_outlined_where_they_were_labelled(
    inputs, tmp_path, monkeypatch, draw_only
):
    monkeypatch.chdir(tmp_path)
    draw_only("structures")
    picture = tmp_path / "out/sub-01/figures/sub-01_run-1_desc-structures_T1w.svg"
    labelled = {
        **inputs,
        "structures_res": inputs["dseg_res"],
    }  # 1 to 3: fluid, ventricles, cortex
    assert str(picture) in Reportlets(**labelled).run().outputs.out_files
    drawn = picture.read_text()
    assert "#4cc9f0" in drawn  # ventricles
    assert "#06d6a0" in drawn  # cortex
    assert drawn.index("#06d6a0") < drawn.index("#4cc9f0"), "cortex would hide the ventricles"
    assert "#9d4edd" not in drawn  # no pallidum
    assert str(picture) not in Reportlets(**inputs).run().outputs.out_files
    assert not picture.exists()


def test_the_summary_has_the_estimated_error_where_it_is_known(inputs, tmp_path):
    target = tmp_path / "summary.html"
    write_summary(SimpleNamespace(**inputs), target)
    assert "Estimated error" not in target.read_text(encoding="utf-8")
    inputs["quality"] |= {"estimated_error_before": 0.123, "estimated_error_after": 0.081}
    write_summary(SimpleNamespace(**inputs), target)
    assert "12.3% → 8.1%" in target.read_text(encoding="utf-8")


def test_the_summary_says_what_was_done_and_escapes_it(inputs, tmp_path):
    target = tmp_path / "summary.html"
    write_summary(SimpleNamespace(**inputs), target)
    text = target.read_text(encoding="utf-8")
    for part in (
        "<span>30.0 years</span><i>360 months</i>",
        "<td>participants.tsv, column age</td>",
        "<td>test-1, licence MIT</td>",
        "<td>a test</td>",
        "<td>0123456789abcdef</td>",
        "<td>cpu, float32</td>",
        "<td>3 s</td>",
        "<span>1.30 L</span>",
        "<tr><th>Grey matter</th><td>0.600 → 0.588 ± 0.011 L (-2.0 %)</td></tr>",
        "<td>given, 1 component</td>",
        "<td>1.23 → 2.00; more is not always better</td>",
        "<td>not measured; 1 where the contrast stayed</td>",
        '<p class="warning">&lt;b&gt;age&lt;/b&gt; &amp; more</p>',
        '<p class="warning">small</p>',
    ):
        assert part in text
    assert "White matter" not in text, "of what was not measured, nothing is said"
    assert "<b>c</b> (fail): It is wrong." in text
    assert "<b>b</b> (warn): Odd &lt;b&gt;." in text
    inputs["planned"]["age"] |= {"fetal": True, "value": 30.0, "unit": "weeks", "months": 6.9}
    write_summary(SimpleNamespace(**inputs), target)
    text = target.read_text(encoding="utf-8")
    assert "<span>30.0 weeks</span><i>of gestation, 6.9 months</i>" in text
    inputs["planned"]["age"] |= {"fetal": False, "value": 7.25, "unit": "Months", "months": 7.25}
    write_summary(SimpleNamespace(**inputs), target)
    assert "<span>7.25 months</span><i>at the scan</i>" in target.read_text(encoding="utf-8")


def test_the_summary_says_which_slices_were_split(inputs, tmp_path):
    target = tmp_path / "summary.html"
    write_summary(SimpleNamespace(**inputs), target)
    assert "Thick slices" not in target.read_text(encoding="utf-8")
    inputs["split_slices"] = {"Axis": 2, "Thickness": 3.0, "Parts": 4}
    write_summary(SimpleNamespace(**inputs), target)
    assert (
        "<tr><th>Thick slices</th><td>slices of 3.0 mm in 4 parts, across superior–inferior</td>"
    ) in target.read_text(encoding="utf-8")


def test_the_summary_says_what_found_the_tissues(inputs, tmp_path):
    target = tmp_path / "summary.html"
    write_summary(SimpleNamespace(**inputs), target)
    assert "Tissues found by" not in target.read_text(encoding="utf-8")
    table = {
        "weights": "finder", "weights_sha256": "ef", "weights_licence": "L", "weights_source": "us"
    }  # fmt: skip
    inputs["provenance"] = {**inputs["provenance"], "tissues": table}
    write_summary(SimpleNamespace(**inputs), target)
    assert "<tr><th>Tissues found by</th><td>finder</td>" in target.read_text(encoding="utf-8")


def test_the_summary_says_what_the_motion_correction_did(inputs, tmp_path):
    target = tmp_path / "summary.html"

    def told():
        write_summary(SimpleNamespace(**inputs), target)
        return target.read_text(encoding="utf-8")

    row = "<tr><th>Motion correction</th><td>"
    assert f"{row}nothing undone: no motion &lt;b&gt;</td>" in told()
    inputs["refocus"] = {
        "applied": True,
        "reason": "periodic motion",
        "motion": {"Model": "periodic", "PhaseEncodingAxis": 1, "RMSDisplacement": 1.94},
        "entropy_before": 14.25,
        "entropy_after": 14.125,
    }
    assert (
        f"{row}periodic, 1.9 mm RMS, lines along anterior–posterior, undone in k-space, gradient "
        "entropy 14.25 → 14.125</td>"
    ) in told()
    inputs["refocus"] |= {
        "motion": {"Model": "poses", "PhaseEncodingAxis": 7, "RMSDisplacement": 0.5}
    }
    assert f"{row}poses, 0.5 mm RMS, undone in k-space, gradient" in told()
    inputs["refocus"] |= {"motion": {}, "lines": {"PhaseEncodingAxis": 0}, "spikes": 2}
    assert (
        f"{row}spikes of k-space: 2, uneven lines, lines along left–right, undone in k-space, "
    ) in told()
    inputs["refocus"] |= {"slices": {"Axis": 2, "Thickness": 2.4}}
    assert f"{row}slices of 2.4 mm sharpened, spikes of k-space: 2, uneven" in told()
    inputs["refocus"] |= {"lines": {}, "spikes": 0}
    assert f"{row}slices of 2.4 mm sharpened, gradient entropy" in told()
    inputs["refocus"] = Undefined  # a run without the step
    assert row not in told()


def test_a_summary_of_nothing_has_no_rows():
    text = summary_html({})
    assert "<tr>" not in text
    assert "<span>unknown</span>" in text


def test_the_gate_tells_what_did_not_pass_and_keeps_the_rest_folded():
    rules = [
        {"Rule": "components", "Value": 1.23456, "Verdict": "pass", "Reason": "as it should be"},
        {"Rule": "<edge>", "Value": None, "Verdict": "fail", "Reason": "cut & gone"},
    ]
    text = summary_html({"Gate": {"Verdict": "fail", "Rules": rules}})
    told, folded = text.split("<details>")
    assert '<span class="badge fail">fail</span>' in told
    assert "1 of 2 rules" in told
    assert "<b>&lt;edge&gt;</b> (fail): cut &amp; gone" in told
    assert "components" not in told
    assert "<td>1.23</td><td>as it should be</td>" in folded


def test_pictures_are_cut_to_the_mask_and_keep_their_place(tmp_path):
    data = np.arange(20**3, dtype=np.float32).reshape(20, 20, 20)
    mask = np.zeros(data.shape, np.uint8)
    mask[8:10, 3, 12:19] = 1
    affine = np.diag([-2.0, -2.0, 3.0, 1.0])
    for name, part in (("image", data), ("mask", mask)):
        nib.save(nib.Nifti1Image(part, affine), tmp_path / f"{name}.nii")
    result = cropped(str(tmp_path / "image.nii"), str(tmp_path / "mask.nii"), margin=4)
    np.testing.assert_array_equal(np.asarray(result.dataobj), data[4:14, 0:8, 8:20])
    np.testing.assert_allclose(result.affine[:3, 3], [-8, 0, 24])


def test_the_window_reaches_a_little_above_the_brightest_percent():
    data = np.zeros((10, 10, 10), np.float32)
    data[:5] = 200
    limits = window(nib.Nifti1Image(data, np.eye(4)))
    assert limits == {"vmin": 0.0, "vmax": pytest.approx(210)}
