# SPDX-License-Identifier: Apache-2.0
"""Simulated scans of 64 mT through the app."""

from __future__ import annotations

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from bmex_bids.cli import evaluate
from bmex_bids.evaluation import judge, low_field
from bmex_bids.evaluation.app import nodes_of
from bmex_bids.evaluation.low_field import METHODS, by_splines, fault, plan, scanned, seen
from bmex_bids.evaluation.rows import Row
from bmex_bids.evaluation.subjects import load_clean, subject_of
from bmex_bids.exceptions import UsageError
from bmex_bids.interfaces.files import data_of, read


@pytest.fixture
def few(settings, monkeypatch):
    """Non-local means of few patches."""
    monkeypatch.setattr(judge, "NLM_SEARCH", 1)
    return settings


def test_what_has_no_thick_slices_is_brought_as_the_app_brings_it(settings, tmp_path):
    """Bias field, range, grid and map of intensities are those of the app."""
    subject = subject_of("one")
    clean = load_clean(settings.data, subject)
    path, mask = low_field._stored(clean, tmp_path / "there", subject.contrast)
    nodes = nodes_of(path, subject, settings.networks, path.parent, mask)
    wanted = data_of(read(nodes["before"].matched))
    found = by_splines(clean.data, nodes)
    assert wanted.max() > 300
    assert np.abs(found - wanted).max() < 0.01


def test_a_scan_has_the_brain_s_mask_and_its_place(settings):
    clean = load_clean(settings.data, subject_of("one"))
    low = scanned(clean, fault(1000.0, 1))
    assert low.spacing == pytest.approx((2, 2, 5))
    assert not low.data[~low.mask].any()
    assert (low.data[low.mask] > 0).mean() > 0.99
    places = [
        image.affine[:3, :3] @ np.argwhere(image.mask).mean(0) + image.affine[:3, 3]
        for image in (clean, low)
    ]
    assert np.abs(places[0] - places[1]).max() < 0.5


def test_all_ways_are_compared_on_one_grid(few, tmp_path):
    found = seen(few, "one", tmp_path)
    assert set(found.images) == set(METHODS)
    for image in (found.truth, *found.images.values()):
        assert image.shape == found.inside.shape
        assert not image[~found.inside].any()
    assert 0.7 < found.overlap <= 1
    cubic, nlm = (found.images[name][found.inside] for name in ("cubic", "nlm"))
    truth = found.truth[found.inside]
    assert np.corrcoef(cubic, truth)[0, 1] > 0.3
    assert np.corrcoef(nlm, truth)[0, 1] > np.corrcoef(cubic, truth)[0, 1]


def test_the_command_writes_table_and_picture(few, tmp_path, monkeypatch, pool_here, capsys):
    monkeypatch.setattr(low_field, "IMAGES", ("one",))
    out = tmp_path / "low"
    words = ["low-field", "--data", str(few.data), "--out", str(out), "--device", "cpu"]
    from bmex_bids.network.weights import registry

    monkeypatch.setattr(registry, "select", lambda kind, **_: getattr(few.networks, kind))
    monkeypatch.setattr(
        "bmex_bids.evaluation.benchmark.Settings.networks_for", lambda *_: few.networks
    )
    assert evaluate.main(words) == 0
    text = (out / "low-field.md").read_text(encoding="utf-8")
    assert text in capsys.readouterr().out
    assert "| one |" in text
    assert "| mean |" in text
    assert "least in one" in text
    assert (out / "low-field_one.png").stat().st_size > 10_000
    monkeypatch.setattr(low_field, "seen", None)  # all is there already
    assert evaluate.main(words) == 0


def test_goals_are_of_the_means_and_the_least_is_named():
    rows = [
        Row(image, "64 mT", method, "k", measure, value)
        for image, gain in (("a", 2.0), ("b", 0.5))
        for method, more in (("cubic", -1.0), ("nlm", 0.0), ("bmex", gain))
        for measure, value in (("psnr", 20 + more), ("ssim", 0.8 + more / 100))
    ]
    psnr, ssim = low_field.verdict(rows).splitlines()
    assert psnr == "- PSNR: +1.25, goal +1 reached; least in b (+0.50)"
    assert ssim == "- SSIM: +0.013, goal +0.02 NOT reached; least in b (+0.005)"
    table = low_field.table(rows)
    assert "| a | 19.00 / 20.00 / 22.00 | 0.790 / 0.800 / 0.820 |" in table
    assert "| mean | 19.00 / 20.00 / 21.25 | 0.790 / 0.800 / 0.812 |" in table


def test_an_image_that_is_not_there_is_named(settings):
    (settings.data / "brain.nii.gz").unlink()
    with pytest.raises(UsageError, match=r"brain\.nii"):
        list(plan(replace(settings, images=("one",))))


def test_other_damage_has_another_key(settings, monkeypatch):
    def key():
        (unit,) = plan(settings)
        return set(unit.keys.values())

    before = key()
    monkeypatch.setattr(low_field, "STRENGTH", 50.0)
    assert key() != before


def test_a_head_is_scanned_whole(settings):
    clean = load_clean(settings.data, subject_of("two"))
    low = scanned(clean, fault(1000.0, 1))
    assert low.mask is None
    corner = low.data[:3, :3, :3]
    assert corner.std() > 20  # noise in the air
    assert isinstance(low.image(low.data), nib.Nifti1Image)


def test_a_measure_that_one_image_lacks_is_left_out():
    """The second segmenter was installed between two runs."""
    rows = [
        low_field.Row(image, low_field.CELL, method, "key", measure, 30.0)
        for image in ("one", "two")
        for method in low_field.METHODS
        for measure in ("psnr", "dice_hmrf")
        if (image, measure) != ("one", "dice_hmrf")
    ]
    page = low_field.markdown(rows, "tiny")
    assert "PSNR" in page
    assert "HMRF" not in page
