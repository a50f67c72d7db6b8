# SPDX-License-Identifier: Apache-2.0
"""The stage *outputs* as a whole: names that BIDS accepts, for all that raw names may hold."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bmex_bids.exceptions import OutputError
from bmex_bids.inputs.age import Age
from bmex_bids.inputs.collect import SourceImage
from bmex_bids.inputs.plan import PlannedImage
from bmex_bids.inputs.templates import Template
from bmex_bids.workflows.outputs import init_outputs_wf, plan_table
from bmex_bids.workflows.request import Target

FIELDS = ("enhanced_res", "enhanced_native", "preproc_native", "mask_native", "dseg_native")
FETAL = "sub-03_ses-V01"
STEMS = {
    "sub-01": ("T1w", "T2w"),
    "sub-02_ses-A": ("T1w",),
    "sub-02_ses-A_acq-mprage_run-1": ("T1w",),
    "sub-02_ses-A_acq-mprage_run-2": ("T1w", "T2w"),
    "sub-02_ses-B_run-01": ("T2w",),
    FETAL: ("T2w",),
    "sub-04_acq-x_ce-gd_rec-norm_run-1": ("T1w",),
    "sub-05_part-mag_chunk-1": ("T1w", "T2w"),
}


@pytest.fixture
def raw(bids_skeleton):
    """Names of raw images, and the function that plans one of them."""
    bids = bids_skeleton(
        {
            f"{folder_of(stem)}/{stem}_{suffix}.nii.gz": None
            for stem, suffixes in STEMS.items()
            for suffix in suffixes
        }
    )

    def plan(stem: str, suffix: str) -> PlannedImage:
        path = bids / folder_of(stem) / f"{stem}_{suffix}.nii.gz"
        entities = dict(part.split("-", 1) for part in stem.split("_"))
        image = SourceImage(path, entities, suffix, {"MagneticFieldStrength": 3}, bids)
        fetal = stem == FETAL
        age = Age(6.0 if fetal else 24.0, fetal, "2", "years", "participants.tsv", "age")
        spacing, label = (0.75, "0p75") if fetal else (0.8, "0p8")
        group = "fetal" if fetal else "month24"
        return PlannedImage(image, age, group, spacing, label, folder_of(stem))

    return bids, plan


def folder_of(stem: str) -> str:
    return "/".join([part for part in stem.split("_") if part[:4] in {"sub-", "ses-"}] + ["anat"])


@pytest.fixture
def results(make_image, tmp_path):
    """What the earlier stages hand over, as very small images."""

    def image(name: str, dtype: str = "float32") -> str:
        data = np.ones((4, 4, 4), dtype)
        make_image("LPS", dtype=dtype, data=data, path=f"{name}.nii.gz")
        return str(tmp_path / f"{name}.nii.gz")

    return {
        **{name: image(name) for name in FIELDS[:3]},
        **{name: image(name, "uint8") for name in FIELDS[3:]},
        "probseg_native": [image(f"prob{k}") for k in range(3)],
        "uncertainty_native": image("deviation"),
        "structures_native": image("structures", "uint8"),
        "mask_info": {"volume_litres": 1.0, "components": 1, "method": "given", "warnings": []},
        "quality": {"tct_before": 1.0, "tct_after": 2.0, "qi": 0.5},
        "gate": {"Verdict": "pass", "Rules": []},
        "provenance": {
            "weights": "test-1",
            "weights_sha256": "ab" * 32,
            "weights_licence": "MIT",
            "weights_source": "a test",
            "device": "cpu",
            "precision": "float32",
            "mirrored": ["x", "y"],
            "seconds": 1.0,
        },
        "stripped": False,
    }


def save(planned: PlannedImage, bids: Path, out: Path, results: dict) -> list[Path]:
    workflow = init_outputs_wf(planned, Target(bids, out, segment="rois"))
    node = workflow.get_node("save").interface
    for field, value in results.items():
        setattr(node.inputs, field, value)
    return [Path(name) for name in node.run().outputs.out_files]


def validator_errors(folder: Path) -> list[str]:
    beside = Path(sys.executable).with_name("bids-validator-deno")
    program = str(beside) if beside.exists() else shutil.which("bids-validator-deno")
    if program is None:
        pytest.skip("bids-validator-deno is not installed")
    done = subprocess.run(  # a path of ours
        [program, "--format", "json", "--ignoreWarnings", str(folder)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    issues = json.loads(done.stdout)["issues"]["issues"]
    return [
        f"{issue['code']} {issue.get('subCode', '')} {issue['location']}"
        for issue in issues
        if issue["severity"] == "error"
    ]


def test_all_names_are_valid_and_none_is_used_twice(raw, results, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bids, plan = raw
    out = tmp_path / "out"
    written = [
        path
        for stem, suffixes in STEMS.items()
        for suffix in suffixes
        for path in save(plan(stem, suffix), bids, out, results)
    ]
    assert len(set(written)) == len(written) == 10 * 11
    for path in written:
        assert path.is_file()
        assert path.with_name(path.name.replace(".nii.gz", ".json")).is_file()
    # what else a run leaves there, and a file that a killed run could not take away
    for name in (
        "logs/1/status.tsv",
        "sub-01/figures/sub-01_desc-summary_T1w.html",
        "sub-01.html",
    ):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("text")
    (out / "sub-01/anat/.sub-01_desc-brain_mask.nii.gz.abc").write_text("")
    assert validator_errors(out) == []


@pytest.mark.parametrize(
    ("stem", "suffix", "mask"),
    [
        ("sub-01", "T1w", "sub-01_desc-brain_mask"),
        ("sub-01", "T2w", "sub-01_space-T2w_desc-brain_mask"),
        ("sub-02_ses-B_run-01", "T2w", "sub-02_ses-B_run-01_desc-brain_mask"),
        ("sub-05_part-mag_chunk-1", "T2w", "sub-05_part-mag_space-T2w_chunk-1_desc-brain_mask"),
        ("sub-01", "FLAIR", "sub-01_space-FLAIR_desc-brain_mask"),
        ("sub-02_ses-B_run-01", "PDw", "sub-02_ses-B_run-01_space-PDw_desc-brain_mask"),
    ],
)
def test_a_t2w_beside_a_t1w_has_a_mask_of_its_own(
    raw, results, tmp_path, monkeypatch, stem, suffix, mask
):
    monkeypatch.chdir(tmp_path)
    bids, plan = raw
    written = {path.name for path in save(plan(stem, suffix), bids, tmp_path / "out", results)}
    assert f"{mask}.nii.gz" in written
    assert f"{stem}_desc-enhanced_{suffix}.nii.gz" in written  # the contrast says it already


def test_a_result_that_cannot_be_copied_leaves_nothing(raw, results, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bids, plan = raw
    calls = []
    real = shutil.copyfile

    def full(source, target):
        calls.append(source)
        if len(calls) == 5:
            raise OSError(28, "No space left on device")
        return real(source, target)

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OutputError, match="No space left on device"):
        save(plan("sub-01", "T1w"), bids, tmp_path / "out", results)
    assert list((tmp_path / "out/sub-01/anat").iterdir()) == []
    monkeypatch.setattr(shutil, "copyfile", real)
    assert len(save(plan("sub-01", "T1w"), bids, tmp_path / "out", results)) == 10


def test_the_plan_is_plain_values(raw):
    _, plan = raw
    table = plan_table(plan("sub-02_ses-A_acq-mprage_run-2", "T2w"))
    assert json.loads(json.dumps(table)) == table
    assert table["space"] == "T2w"
    assert table["source"] == "sub-02/ses-A/anat/sub-02_ses-A_acq-mprage_run-2_T2w.nii.gz"


def test_the_plan_names_the_template_that_intensities_are_matched_to(raw):
    planned = raw[1]("sub-01", "T1w")
    template = Template("MNIInfant+2", "T1w", "https://archive/tpl", ())
    assert plan_table(planned)["histogram"] is None
    matched = dataclasses.replace(planned, histogram=template)
    assert plan_table(matched)["histogram"] == "MNIInfant+2"


def test_images_are_readable_and_unchanged(raw, results, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bids, plan = raw
    for path in save(plan("sub-01", "T1w"), bids, tmp_path / "out", results):
        assert (np.asarray(nib.load(path).dataobj) == 1).all()


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("by hand: sub-01/anat/m.nii.gz", {"name": "by-hand", "path": "sub-01/anat/m.nii.gz"}),
        ("fmriprep: m.nii.gz", {"name": "fmriprep", "path": "m.nii.gz"}),
        ("m.nii.gz", None),  # of bmex-enhance: no dataset
        ("", None),
    ],
)
def test_where_a_given_mask_comes_from(raw, tmp_path, source, expected):
    path = source.partition(": ")[2] or "m.nii.gz"
    mask = tmp_path / "masks" / path if source else None
    planned = dataclasses.replace(raw[1]("sub-01", "T1w"), mask=mask, mask_source=source)
    if expected is not None:
        expected = {**expected, "folder": str(tmp_path / "masks")}
    assert plan_table(planned)["given_mask"] == expected
