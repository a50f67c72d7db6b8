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
from bmex_bids.exceptions import OutputError


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
    brain = values > 0
    difference = np.asarray(damaged.dataobj)[brain] - again[brain]
    assert np.abs(difference).max() <= 0.5  # stored as whole numbers
    assert not np.asarray(damaged.dataobj)[~brain].any()
    assert not np.array_equal(np.asarray(clean.dataobj), np.asarray(damaged.dataobj))


def test_a_folder_that_cannot_be_written_is_named(small_template, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="Name another folder"):
        demo.write_dataset(tmp_path / "file", severity="minor")


def test_psnr_does_not_depend_on_the_intensity_scale(tmp_path):
    truth = np.tile([100.0, 200.0, 300.0, 400.0], (4, 4, 1))
    noise = np.array([10.0, -10.0, -10.0, 10.0])  # mean 0, and no slope along the ramp
    clean = nib.Nifti1Image(truth.astype(np.float32), np.eye(4))
    paths = []
    for name, values in (("a", truth + noise), ("b", (truth + noise) / 2 + 50)):
        path = tmp_path / f"{name}.nii.gz"
        nib.save(nib.Nifti1Image(values.astype(np.float32), np.eye(4)), path)
        paths.append(path)
    before, after = demo.measure(clean, *paths, peak=1000)
    assert before == pytest.approx(after, abs=1e-3)
    # the best line maps x to truth up to the noise: its error is a little less than 10
    assert before == pytest.approx(20 * math.log10(1000 / 10), abs=0.1)


def test_psnr_of_as_many_voxels_as_a_brain_has(tmp_path):
    truth = np.tile(np.linspace(100, 900, 100, dtype=np.float32), (200, 100, 1))
    clean = nib.Nifti1Image(truth, np.eye(4))
    path = tmp_path / "half.nii.gz"
    nib.save(nib.Nifti1Image(truth / 2, np.eye(4)), path)
    before, after = demo.measure(clean, path, path, peak=1000)
    assert min(before, after) > 100  # the same image in another unit; in float32 it was 11 dB


def test_psnr_does_not_depend_on_shading(head_phantom, tmp_path):
    clean = head_phantom(spacing=4.0, noise=0.0).brain
    values = np.asarray(clean.dataobj)
    ramp = np.linspace(0.8, 1.2, values.shape[1])[None, :, None]
    noise = np.random.default_rng(0).normal(0, 20, values.shape) * (values > 0)
    plain, shaded = tmp_path / "plain.nii.gz", tmp_path / "shaded.nii.gz"
    nib.save(nib.Nifti1Image((values + noise).astype(np.float32), clean.affine), plain)
    nib.save(nib.Nifti1Image(((values + noise) * ramp).astype(np.float32), clean.affine), shaded)
    before, after = demo.measure(clean, plain, shaded, peak=1000)
    assert before == pytest.approx(20 * math.log10(1000 / 20), abs=0.2)
    assert after == pytest.approx(before, abs=0.5)
