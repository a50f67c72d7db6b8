# SPDX-License-Identifier: Apache-2.0
"""What the pictures show: where it lies, and in which window."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
import pytest
from matplotlib.axes import Axes

from bmex_bids.imaging.intensity import load_histogram
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
        reportlets,
        "plot_registration",
        lambda image, name, **options: calls.append((name, options)) or [],
    )
    monkeypatch.setattr(
        reportlets,
        "compose_view",
        lambda *_, out_file: Path(out_file).write_text("<svg/>"),
    )
    reportlets.draw_before_after(inputs, tmp_path / "out.svg")
    assert [options["order"] for _, options in calls] == [("z",), ("x",), ("y",)] * 2
    # nilearn would write it over the first panel's L; the bar above the picture says it
    assert [options["label"] for _, options in calls] == [None] * 6
    for (first, before), (second, after) in zip(calls[:3], calls[3:], strict=True):
        assert first != second
        figures = [options["plot_params"].pop("figure") for options in (before, after)]
        sizes = [tuple(figure.get_size_inches()) for figure in figures]
        assert sizes[0] == sizes[1]
        assert before["plot_params"] == after["plot_params"]
        assert before["plot_params"]["vmax"] > brain.max() * 1.5
        assert before["cuts"] == after["cuts"]
        assert before["estimate_brightness"] is after["estimate_brightness"] is False


@pytest.mark.parametrize(("axis", "across", "up"), [("z", 10, 12), ("x", 12, 8), ("y", 10, 8)])
def test_a_row_is_as_high_as_its_cuts(make_image, axis, across, up):
    image = make_image("LPS", (10, 6, 4), spacing=(1, 2, 2))
    with reportlets.canvas(image, axis) as figure:
        width, height = figure.get_size_inches()
        assert plt.fignum_exists(figure.number)
    cut = width / reportlets.CUTS
    assert height / reportlets.ROOM == pytest.approx(cut * up / across)
    assert not plt.fignum_exists(figure.number)


def test_the_flicker_stops_at_after_and_the_rest_of_the_picture_is_kept():
    svg = (
        '<svg>\n<style type="text/css">\n@keyframes flickerAnimation1 { 0% {opacity: 1;} }\n'
        ".foreground-svg { animation: 1s paused flickerAnimation1;}\n</style>\n<g/>"
        "<style>*{stroke: 1}</style></svg>"
    )
    settled = reportlets.settled_flicker(svg)
    assert "flickerAnimation" not in settled
    assert ".foreground-svg:hover { animation:" in settled
    assert settled.endswith("</style>\n<g/><style>*{stroke: 1}</style></svg>")
    assert reportlets.settled_flicker("<svg/>") == "<svg/>"


def test_the_bar_lies_above_the_picture_and_changes_nothing_else():
    svg = '<svg viewBox="0 0 400 300"><g/></svg>'
    barred = reportlets.with_bar(svg, '<text width="$rest"/>')
    assert barred == '<svg viewBox="0 -24 400 324"><g/><text width="300"/></svg>'


@pytest.mark.parametrize("suffix", ["T1w", "T2w"])
def test_the_histogram_shows_the_reference_of_the_age(tmp_path, monkeypatch, suffix):
    rng = np.random.default_rng(1)
    image = nib.Nifti1Image(rng.normal(500, 30, (8, 8, 8)).astype(np.float32), np.eye(4))
    nib.save(image, tmp_path / "image.nii")
    nib.save(nib.Nifti1Image(np.ones((8, 8, 8), np.uint8), np.eye(4)), tmp_path / "mask.nii")
    drawn = {}
    original = Axes.fill_between
    monkeypatch.setattr(
        Axes,
        "fill_between",
        lambda self, x, y, **options: drawn.update(x=x, y=y) or original(self, x, y, **options),
    )
    inputs = SimpleNamespace(
        mask_res=str(tmp_path / "mask.nii"),
        matched=str(tmp_path / "image.nii"),
        enhanced_res=str(tmp_path / "image.nii"),
        planned={"age_group": "month6", "name": f"sub-01_{suffix}"},
        intensity_json=str(tmp_path / "chain.json"),
    )
    (tmp_path / "chain.json").write_text('{"reference_levels": null}')
    reportlets.draw_histogram(inputs, tmp_path / "out.svg")
    counts = load_histogram("month6", suffix)[1:1000].astype(float)
    mode = drawn["x"][np.argmax(drawn["y"])]
    smooth = np.add.reduceat(np.concatenate([[0.0], counts]), range(0, 1000, 5))
    assert mode == np.argmax(smooth) * 5 + 2.5
    assert "reference (month6)" in (tmp_path / "out.svg").read_text()


def test_the_histogram_shows_the_levels_that_an_adult_was_matched_to(tmp_path):
    """And not the histogram of a child of 24 months, whose group the weights are listed under."""
    rng = np.random.default_rng(1)
    image = nib.Nifti1Image(rng.normal(500, 30, (8, 8, 8)).astype(np.float32), np.eye(4))
    nib.save(image, tmp_path / "image.nii")
    nib.save(nib.Nifti1Image(np.ones((8, 8, 8), np.uint8), np.eye(4)), tmp_path / "mask.nii")
    (tmp_path / "chain.json").write_text('{"reference_levels": [167, 351, 537]}')
    inputs = SimpleNamespace(
        mask_res=str(tmp_path / "mask.nii"),
        matched=str(tmp_path / "image.nii"),
        enhanced_res=str(tmp_path / "image.nii"),
        planned={"age_group": "month24", "name": "sub-01_T1w"},
        intensity_json=str(tmp_path / "chain.json"),
    )
    reportlets.draw_histogram(inputs, tmp_path / "out.svg")
    drawn = (tmp_path / "out.svg").read_text()
    assert all(f">{label}<" in drawn for label in ("CSF", "GM", "WM", "levels for the age"))
    assert "month24" not in drawn


@pytest.mark.parametrize(
    ("suffix", "chain", "label"),
    [
        ("FLAIR", {"reference_levels": None}, ""),
        ("T1w", {"reference_levels": None, "reference_counts": [9, *[1] * 1000]}, "template"),
    ],
)
def test_the_histogram_without_a_reference_and_with_that_of_a_template(
    tmp_path, suffix, chain, label
):
    rng = np.random.default_rng(1)
    image = nib.Nifti1Image(rng.normal(500, 30, (8, 8, 8)).astype(np.float32), np.eye(4))
    nib.save(image, tmp_path / "image.nii")
    nib.save(nib.Nifti1Image(np.ones((8, 8, 8), np.uint8), np.eye(4)), tmp_path / "mask.nii")
    (tmp_path / "chain.json").write_text(json.dumps(chain))
    inputs = SimpleNamespace(
        mask_res=str(tmp_path / "mask.nii"),
        matched=str(tmp_path / "image.nii"),
        enhanced_res=str(tmp_path / "image.nii"),
        planned={"age_group": "month24", "name": f"sub-01_{suffix}"},
        intensity_json=str(tmp_path / "chain.json"),
    )
    reportlets.draw_histogram(inputs, tmp_path / "out.svg")
    drawn = (tmp_path / "out.svg").read_text()
    assert ("reference (template)" in drawn) == (label == "template")
    assert "reference (month24)" not in drawn


def test_an_image_of_negative_numbers_has_a_window_from_its_darkest():
    values = np.linspace(-5000, -3000, 8**3, dtype=np.float32).reshape(8, 8, 8)
    limits = reportlets.window(nib.Nifti1Image(values, np.eye(4)))
    assert limits["vmin"] == pytest.approx(-4990, abs=5)
    assert limits["vmax"] == pytest.approx(-2902, abs=10)
    nothing = reportlets.window(nib.Nifti1Image(values * 0 - 5, np.eye(4)))
    assert nothing["vmin"] < nothing["vmax"]


@pytest.mark.parametrize("label", ["<img src=x onerror=alert(1)>", "q\" onload='x'", "a&b"])
def test_markup_in_a_label_does_not_get_into_a_picture(label, head_phantom, tmp_path):
    from xml.etree import ElementTree

    phantom = head_phantom(spacing=8.0)
    nib.save(phantom.brain, tmp_path / "conformed.nii")
    nib.save(
        nib.Nifti1Image(phantom.mask.astype(np.uint8), phantom.image.affine),
        tmp_path / "mask.nii",
    )
    inputs = SimpleNamespace(
        conformed=str(tmp_path / "conformed.nii"), mask=str(tmp_path / "mask.nii")
    )
    target = tmp_path / f"sub-{label}_desc-brainmask_T1w.svg"
    reportlets.draw_mask(inputs, target)
    text = target.read_text(encoding="utf-8")
    assert label not in text
    tree = ElementTree.fromstring(text)  # noqa: S314
    assert not [name for node in tree.iter() for name in node.attrib if name.startswith("on")]
