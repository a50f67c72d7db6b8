# SPDX-License-Identifier: Apache-2.0
"""The noise around the head in a ratio of two images."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import scipy.ndimage

from bmex_bids.imaging.background import without_brightness, without_noise
from bmex_bids.interfaces.preprocess import Conform


def ratio(head, noise, seed=0):
    """UNI of a head, −0.5…0.5: two inversions with complex noise, little signal where it is dark."""
    rng = np.random.default_rng(seed)
    wanted = np.clip(0.9 * head / 850 - 0.45, -0.499, 0.499)
    second = np.clip(head / 200, 0, 1)
    first = second * (1 - np.sqrt(1 - 4 * wanted**2)) / np.where(wanted == 0, 1, 2 * wanted)
    one, other = (
        part + noise * (rng.standard_normal(head.shape) + 1j * rng.standard_normal(head.shape))
        for part in (first, second)
    )
    return (np.conj(one) * other).real / (np.abs(one) ** 2 + np.abs(other) ** 2)


@pytest.fixture
def uni(head_phantom):
    phantom = head_phantom(spacing=2.0, noise=0.0)
    head = np.asarray(phantom.image.dataobj)
    scalp = scipy.ndimage.binary_fill_holes(head > 500)
    return phantom, head, scalp


@pytest.mark.parametrize(("scale", "offset"), [(1, 0), (4095, 0.5)])
@pytest.mark.parametrize("noise", [0.04, 0.1])
def test_all_around_the_head_is_low_and_the_head_is_kept(uni, noise, scale, offset):
    phantom, head, scalp = uni
    data = ((ratio(head, noise) + offset) * scale).astype(np.float32)
    found = without_noise(nib.Nifti1Image(data, phantom.image.affine))
    after = np.asarray(found.dataobj)
    assert (after[scalp] == data[scalp]).mean() > 0.999
    inner = scipy.ndimage.binary_erosion(scalp, iterations=2)
    np.testing.assert_array_equal(after[inner], data[inner])
    lowest = (offset - 0.5) * scale
    far = scipy.ndimage.distance_transform_edt(~scalp, sampling=2.0) > 8
    assert after[far].max() == pytest.approx(lowest, abs=0.02 * scale)
    again = without_noise(found)
    np.testing.assert_array_equal(np.asarray(again.dataobj), after)


def test_what_is_not_noisy_around_is_left_as_it_is(uni):
    phantom, head, scalp = uni
    data = ratio(head, 0.05)
    suppressed = np.where(scalp, data, -0.5)  # robust, or the skull stripped
    grainy = head + np.random.default_rng(0).normal(0, 20, head.shape)  # a T1w image
    brain = np.where(phantom.mask, data, 0)
    for values in (suppressed, grainy, brain, np.zeros_like(data)):
        image = nib.Nifti1Image(values.astype(np.float32), phantom.image.affine)
        assert without_noise(image) is image


def test_interpolated_noise_and_thick_voxels_are_known(uni):
    phantom, head, scalp = uni
    data = scipy.ndimage.zoom(ratio(head, 0.05), (2, 1.5, 1), order=3).astype(np.float32)
    affine = phantom.image.affine @ np.diag([1 / 2, 1 / 1.5, 1, 1])
    after = np.asarray(without_noise(nib.Nifti1Image(data, affine)).dataobj)
    where = scipy.ndimage.zoom(scalp.astype(float), (2, 1.5, 1), order=1) > 0.5
    assert (after[where] == data[where]).mean() > 0.995
    assert np.ptp(after[:8, :8, :8]) == 0


def test_the_node_takes_it_away_where_it_is_told_to(uni, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    phantom, head, _ = uni
    image = nib.Nifti1Image(ratio(head, 0.05).astype(np.float32), phantom.image.affine)
    nib.save(image.as_reoriented([[1, 1], [0, -1], [2, 1]]), "uni.nii.gz")
    for noisy in (True, False):
        node = Conform(in_file=str(tmp_path / "uni.nii.gz"), noisy_background=noisy)
        corner = np.asarray(nib.load(node.run().outputs.out_file).dataobj)[:3, :3, :3]
        assert bool(np.ptp(corner) == 0) is noisy


@pytest.mark.parametrize(("level", "noise"), [(2.0, 0.0), (2.0, 0.3), (1.4, 0.15)])
def test_surroundings_that_are_brighter_than_the_head_become_dark(uni, level, noise):
    phantom, head, scalp = uni
    white = np.percentile(head[phantom.mask], 90)
    around = np.random.default_rng(0).normal(level, noise, head.shape) * white
    data = np.where(scalp, head, around).astype(np.float32)
    found = without_brightness(data, (2.0, 2.0, 2.0))
    far = scipy.ndimage.distance_transform_edt(~scalp, sampling=2.0) > 8
    assert (found[far] == data.min()).mean() > 0.97
    np.testing.assert_array_equal(found[phantom.mask], data[phantom.mask])


def test_where_they_are_not_brighter_nothing_is_changed(uni):
    phantom, head, _ = uni
    grainy = head + np.random.default_rng(0).normal(0, 20, head.shape)
    middle = tuple(slice(n // 2 - 12, n // 2 + 12) for n in head.shape)
    flat = np.ones((20, 20, 20))
    for values in (head, grainy, head[middle], np.where(phantom.mask, head, 0), flat, 0 * flat):
        data = values.astype(np.float32)
        assert without_brightness(data, (2.0, 2.0, 2.0)) is data
