# SPDX-License-Identifier: Apache-2.0
"""The demo: its dataset is valid BIDS, its damage can be made again, its figure is right."""

from __future__ import annotations

import json
import math

import nibabel as nib
import numpy as np
import pytest

from bmex_bids.cli import demo
from bmex_bids.degrade.recipe import Recipe
from bmex_bids.exceptions import OutputError, UsageError


@pytest.fixture
def small_template(monkeypatch: pytest.MonkeyPatch, head_phantom):
    """A brain of 6 mm instead of the template of 1 mm, 0...1 as nilearn gives it."""
    brain = head_phantom(spacing=6.0).brain
    values = np.asarray(brain.dataobj)
    template = nib.Nifti1Image(values / values.max(), brain.affine)
    monkeypatch.setattr("nilearn.datasets.load_mni152_template", lambda resolution: template)
    return template


def test_the_dataset_is_valid_bids_and_has_an_age_with_its_unit(small_template, tmp_path):
    demo.write_dataset(tmp_path, severity="minor")
    assert demo.check(tmp_path / "bids")
    rows = (tmp_path / "bids/participants.tsv").read_text().splitlines()
    assert rows == ["participant_id\tage", "sub-0001\t30"]
    units = json.loads((tmp_path / "bids/participants.json").read_text())["age"]["Units"]
    assert units == "years"


def test_the_damage_can_be_made_again_from_the_recipe(small_template, tmp_path):
    clean = demo.write_dataset(tmp_path, severity="moderate")
    damaged = nib.load(tmp_path / "bids/sub-0001/anat/sub-0001_T1w.nii.gz")
    np.testing.assert_array_equal(damaged.affine, small_template.affine)

    recipe = Recipe.from_json((tmp_path / "recipe.json").read_text())
    values = np.asarray(small_template.dataobj, np.float32) * demo.PEAK
    again = np.clip(recipe.apply(values, (1.0, 1.0, 1.0)), 0, None)
    assert recipe.steps[-1] == {"kind": "rician-noise", "sigma": 25.0, "seed": demo.SEED}
    brain = values > 0
    difference = np.asarray(damaged.dataobj)[brain] - again[brain]
    assert np.abs(difference).max() <= 0.5  # stored as whole numbers
    assert not np.asarray(damaged.dataobj)[~brain].any()
    assert not np.array_equal(np.asarray(clean.dataobj), np.asarray(damaged.dataobj))


def test_a_folder_that_cannot_be_written_is_named(small_template, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="Name another folder"):
        demo.write_dataset(tmp_path / "file", severity="minor")


@pytest.fixture
def stages(head_phantom, tmp_path):
    """What the stage preprocess leaves, of a clean brain: scaled, shaded and matched on purpose."""
    clean = head_phantom(spacing=4.0, noise=0.0).brain
    values = np.asarray(clean.dataobj)
    inside = values > 0
    ramp = np.linspace(0.8, 1.2, values.shape[1])[None, :, None]
    corrected = values * (1000 / 800) * ramp  # the scale is 0...800
    matched = np.where(inside, np.interp(corrected, [0, 500, 2000], [0, 250, 2000]), 0)
    chain = {
        "scale": {"lower": 0.0, "upper": 800.0},
        "match": {"source": [0.0, 500.0, 2000.0], "reference": [0.0, 250.0, 2000.0]},
    }

    def save(data, name):
        path = tmp_path / "stages" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(data.astype(np.float32), clean.affine), path)
        return path

    save(values, "conform/conformed.nii.gz")
    save(corrected, "correct_brain/brain.nii.gz")
    save(matched, "match_histogram/matched.nii.gz")
    (tmp_path / "stages/match_histogram/intensity.json").write_text(json.dumps(chain))
    return clean, tmp_path / "stages", matched, save


def test_the_truth_is_treated_as_the_image_was(stages):
    clean, folder, matched, _ = stages
    truth = demo.treated(clean, folder, nib.load(folder / "match_histogram/matched.nii.gz"))
    inside = matched > 0
    assert np.array_equal(truth > 0, inside)
    # the field is found from smoothed images, so it is not exact at sharp steps
    assert np.abs(truth - matched)[inside].mean() < 0.01 * matched[inside].mean()


def test_psnr_before_and_after_by_hand(stages):
    clean, folder, matched, save = stages
    noise = np.random.default_rng(0).normal(0, 40, matched.shape)
    save(np.where(matched > 0, matched + noise, 0), "before/matched.nii.gz")  # as it came
    enhanced = save(np.where(matched > 0, matched + noise / 2, 0), "enhanced.nii.gz")
    before, after = demo.measure(clean, folder, enhanced)
    assert before == pytest.approx(20 * math.log10(1000 / 40), abs=0.3)
    assert after == pytest.approx(20 * math.log10(1000 / 20), abs=0.6)


def test_a_work_folder_that_is_gone_is_a_message(tmp_path):
    with pytest.raises(UsageError, match="remove the demo's folder"):
        demo._stages(tmp_path)
