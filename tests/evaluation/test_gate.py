# SPDX-License-Identifier: Apache-2.0
"""The gate's table: samples as they are and broken, and the page that is made from it."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

from bmex_bids.cli import evaluate
from bmex_bids.evaluation.gate import BROKEN, DAMAGED, GOOD, ages, read_rows

#: what an error of these kinds must never pass with
FATAL = [kind for kind in BROKEN if "swapped" in kind or "half" in kind or "inverted" in kind]


@pytest.fixture
def data(tmp_path, head_phantom):
    """A brain, a head with its mask, a fetal and an adult label map, an output of ``bmex``."""
    phantom = head_phantom(spacing=3.0)
    affine = phantom.image.affine

    def save(name, array):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(array, affine), path)

    tissues = phantom.tissues.astype(np.uint8)
    brain, head = (np.asarray(image.dataobj) for image in (phantom.brain, phantom.image))
    save("data/adult-brains/sub-01_T1w.nii.gz", brain)
    save("data/heads-open/adult_T1w.nii.gz", head)
    save("masks/adult_T1w_mine.nii.gz", phantom.mask.astype(np.uint8))
    save("data/label-maps/one.nii.gz", np.array([0, 4, 3, 2], np.int16)[tissues])
    save("data/fetal-atlas/GA30_labels.nii.gz", np.array([0, 2, 5, 1], np.int16)[tissues])
    stem = "out/sub-01/anat/sub-01_desc-"
    save(f"{stem}brain_mask.nii.gz", phantom.mask.astype(np.uint8))
    save(f"{stem}enhanced_dseg.nii.gz", np.array([0, 3, 1, 2], np.uint8)[tissues])
    save(f"{stem}enhanced_T1w.nii.gz", brain)
    litres = {"csf": 0.17, "gm": 0.48, "wm": 0.65}
    quality = {
        "correlation": 0.99,
        "mean_shift": 0.0,
        "tct_before": 1.5,
        "tct_after": 1.5,
        "qi": 1.0,
    }
    for when in ("before", "after"):
        quality |= {f"{name}_litres_{when}": value for name, value in litres.items()}
    record = {
        "Age": {"months": 300.0, "fetal": False},
        "Mask": {"volume_litres": 1.3, "components": 1, "border_contact": 0.0},
        "Quality": quality,
    }
    (tmp_path / f"{stem}enhanced_T1w.json").write_text(json.dumps({"BMEX": record}))
    (tmp_path / "data/MANIFEST.tsv").write_text(
        "file\tage\nadult-brains/sub-01_T1w.nii.gz\t39 y m\n"
    )
    return tmp_path


def run(data, *more):
    words = ["--outputs", data / "out", "--data", data / "data", "--masks", data / "masks"]
    return evaluate.main(["gate", *map(str, [*words, "--out", data / "gate", *more])])


def test_good_samples_pass_and_broken_ones_fail_and_the_page_says_it(data, capsys):
    page = data / "page.md"
    page.write_text("before\n<!-- gate: begin -->\nold\n<!-- gate: end -->\nafter\n")
    assert run(data, "--page", page) == 0
    rows = read_rows(data / "gate/gate.tsv")
    whole = {(row.sample, row.kind): row.verdict for row in rows if not row.rule}
    samples = {"out/sub-01_T1w", "sub-01_T1w", "adult_T1w", "one", "GA30_labels"}
    assert {name for name, _ in whole} == samples
    for name in samples - {"GA30_labels"}:  # no fetus has a brain of 1.3 litres
        assert whole[name, GOOD] == "pass", [r for r in rows if r.sample == name]
    for (name, kind), verdict in whole.items():
        if kind in FATAL:
            assert verdict == "fail", (name, kind)
    text = page.read_text()
    assert "old" not in text
    assert text.startswith("before\n")
    assert "| GM and WM swapped | 4 | 0 | 0 |" in text
    assert "| result inverted | 3 | 0 | 0 |" in text
    assert "GA30_labels: mask volume" in text
    assert "| flat face of mask | 5 |" in capsys.readouterr().out
    assert run(data) == 0  # nothing is measured again
    assert capsys.readouterr().out.startswith("\n5 samples.")


def test_an_output_of_a_damaged_scan_is_no_good_one(data):
    assert run(data, "--damaged", "^out/") == 0
    kinds = {
        row.sample: row.kind for row in read_rows(data / "gate/gate.tsv") if row.kind not in BROKEN
    }
    assert kinds["out/sub-01_T1w"] == DAMAGED
    assert set(kinds.values()) == {GOOD, DAMAGED}


def test_ages_are_read_from_the_manifest(data):
    assert ages(data / "data/MANIFEST.tsv") == {"sub-01_T1w.nii.gz": 468.0}


def test_nothing_to_measure_is_said(tmp_path, capsys):
    assert evaluate.main(["gate", "--out", str(tmp_path)]) == 2
    assert "--outputs or --data" in capsys.readouterr().err
