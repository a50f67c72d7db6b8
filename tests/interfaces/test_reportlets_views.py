# SPDX-License-Identifier: Apache-2.0
"""What the pictures show: where it lies, and in which window."""

from __future__ import annotations

from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from bmex_bids.interfaces import reportlets


def test_an_oblique_grid_is_drawn_as_it_is_stored(make_image):
    image = make_image("LPS", (6, 7, 8), spacing=(1, 1, 3), oblique=25)
    turned = reportlets.upright(image)
    np.testing.assert_allclose(turned.affine[:3, :3], np.diag([1, 1, 3]), atol=1e-5)
    stored = nib.as_closest_canonical(image)
    np.testing.assert_array_equal(np.asarray(turned.dataobj), np.asarray(stored.dataobj))


def test_a_straight_grid_keeps_its_place(make_image):
    image = make_image("LPS", (6, 7, 8), spacing=(1, 1, 3))
    assert reportlets.upright(image) is image


def test_the_window_holds_the_brighter_of_two_images():
    low, high = (
        nib.Nifti1Image(np.full((4, 4, 4), value, np.float32), np.eye(4)) for value in (100, 300)
    )
    assert reportlets.window(low, high) == {"vmin": 0.0, "vmax": pytest.approx(315)}
    assert reportlets.window(low, high) == reportlets.window(high, low)


def test_before_and_after_share_window_and_cuts(head_phantom, tmp_path, monkeypatch):
    phantom = head_phantom(spacing=8.0)

    def save(name, data):
        nib.save(nib.Nifti1Image(data, phantom.image.affine), tmp_path / f"{name}.nii")
        return str(tmp_path / f"{name}.nii")

    brain = np.asarray(phantom.brain.dataobj)
    inputs = SimpleNamespace(
        matched=save("before", brain),
        enhanced_res=save("after", (brain * 2).astype(np.float32)),
        mask_res=save("mask", phantom.mask.astype(np.uint8)),
    )
    calls = []
    monkeypatch.setattr(
        "nireports.reportlets.mosaic.plot_registration",
        lambda image, name, **options: calls.append((name, options)) or [],
    )
    monkeypatch.setattr("nireports.reportlets.utils.compose_view", lambda *_, **__: None)
    reportlets.draw_before_after(inputs, tmp_path / "out.svg")
    (first, before), (second, after) = calls
    assert first != second
    assert (before["label"], after["label"]) == ("before", "after")
    assert before["plot_params"] == after["plot_params"]
    assert before["plot_params"]["vmax"] > brain.max() * 1.5
    assert before["cuts"] == after["cuts"]
    assert before["estimate_brightness"] is after["estimate_brightness"] is False
