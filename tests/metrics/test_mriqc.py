# SPDX-License-Identifier: Apache-2.0
"""MRIQC's measures: the figures of its own functions on one image, and by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from bmex_bids.metrics.mriqc import FWHM, Scan, efc, fwhm, head_mask, measures, padding, summary

#: of :func:`scan`, by the functions of mriqc/qc/anatomical.py of MRIQC 24.0.2, which does not install
#: beside the versions that are pinned here
MRIQC = {
    "cjv": 0.356206,
    "cnr": 2.345596,
    "efc": 0.5158,
    "fber": 1445.6813,
    "icvs_csf": 0.384987,
    "icvs_gm": 0.397479,
    "icvs_wm": 0.217534,
    "inu_med": 1.0,
    "inu_range": 0.072,
    "rpve_csf": 6.243234,
    "rpve_gm": 7.420577,
    "rpve_wm": 15.390721,
    "snr_csf": 2.057073,
    "snr_gm": 5.799484,
    "snr_total": 6.896709,
    "snr_wm": 12.833571,
    "snrd_csf": 13.211204,
    "snrd_gm": 34.00853,
    "snrd_total": 32.615161,
    "snrd_wm": 50.625748,
    "summary_bg_k": -1.2145,
    "summary_bg_mad": 12.6949,
    "summary_bg_mean": 17.0528,
    "summary_bg_median": 17.0,
    "summary_bg_n": 10333.0,
    "summary_bg_p05": 2.0,
    "summary_bg_p95": 32.0,
    "summary_bg_stdv": 9.9281,
    "summary_csf_k": -0.5259,
    "summary_csf_mad": 89.1748,
    "summary_csf_mean": 270.7794,
    "summary_csf_median": 256.0,
    "summary_csf_n": 2778.944824,
    "summary_csf_p05": 85.0,
    "summary_csf_p95": 510.0,
    "summary_csf_stdv": 124.4263,
    "summary_gm_k": 0.3318,
    "summary_gm_mad": 63.5887,
    "summary_gm_mean": 642.7027,
    "summary_gm_median": 659.0,
    "summary_gm_n": 2869.111328,
    "summary_gm_p05": 408.0,
    "summary_gm_p95": 819.0,
    "summary_gm_stdv": 113.611,
    "summary_wm_k": 0.3689,
    "summary_wm_mad": 51.1095,
    "summary_wm_mean": 963.6272,
    "summary_wm_median": 981.0,
    "summary_wm_n": 1570.220947,
    "summary_wm_p05": 795.0,
    "summary_wm_p95": 1049.0,
    "summary_wm_stdv": 76.4158,
    "wm2max": 0.873067,
}


@pytest.fixture
def scan():
    """A ball of tissues in a head; its noise is arithmetic, the same for all versions of NumPy."""
    x, y, z = np.indices((30, 34, 32))
    noise = (x * 7919 + y * 104729 + z * 1299709 + x * y * 31 + y * z * 17 + x * z * 13) % 1009
    noise = noise / 1009 - 0.5
    r = np.sqrt(((x - 15) / 11) ** 2 + ((y - 17) / 13) ** 2 + ((z - 16) / 12) ** 2)
    within = [np.clip((edge - r) * 8 + 0.5, 0, 1) for edge in (0.6, 0.85, 1.0)]
    wm, gm, csf = within[0], within[1] - within[0], within[2] - within[1]
    brain = r < 1.06
    field = (1 + 0.004 * (x - 15)).astype(np.float32)
    values = 180 * csf + 480 * gm + 720 * wm + 800 * ((r > 1.06) & (r < 1.2))
    image = ((values + 25 * (noise + 0.5) + 60 * noise * brain) * field).astype(np.float32)
    maps = (np.stack([csf, gm, wm]) * brain).astype(np.float32)
    return Scan(image, field, maps, brain, r < 1.25)


def test_the_figures_are_those_of_mriqcs_own_functions(scan):
    found = measures(scan)
    smoothness = {f"fwhm_{name}" for name in ("x", "y", "z", "avg")}  # AFNI computes it
    assert set(found) == set(MRIQC) | smoothness
    for name, value in MRIQC.items():
        assert found[name] == pytest.approx(value, rel=1e-4, abs=1e-4), name


def test_without_a_head_what_needs_it_is_absent(scan):
    found = measures(replace(scan, head=None, image=scan.image * scan.brain))
    left = {"cnr", "efc", "fber", "wm2max"}
    left |= {name for name in MRIQC if name.startswith(("snrd_", "summary_bg_"))}
    assert set(MRIQC) - set(found) == left
    for name in set(MRIQC) - left:
        assert found[name] == pytest.approx(MRIQC[name], rel=1e-4, abs=1e-4), name


def test_air_that_was_set_to_zero_measures_nothing(scan):
    found = measures(replace(scan, image=scan.image * scan.head))
    assert "snrd_total" not in found
    assert "cnr" not in found
    assert "fber" not in found
    assert "efc" in found


@pytest.mark.parametrize("change", [{"maps": 0.0}, {"image": 0.0}, {"image": np.nan}])
def test_nothing_to_measure_gives_no_figures(scan, change):
    ((name, factor),) = change.items()
    assert measures(replace(scan, **{name: getattr(scan, name) * np.float32(factor)})) == {}


def test_an_empty_mask_gives_no_figures(scan):
    nothing = np.zeros_like(scan.brain)
    assert measures(replace(scan, brain=nothing, maps=scan.maps * 0)) == {}


def test_smoothness_of_noise_that_was_filtered(scan):
    """Noise under a Gaussian of s voxels has a full width of 2.355 s."""
    import scipy.ndimage

    noise = np.random.default_rng(0).normal(size=(60, 60, 60))
    smooth = scipy.ndimage.gaussian_filter(noise, (1.5, 2.0, 3.0))
    found = fwhm(smooth, np.ones(smooth.shape, bool))
    for name, sigma in (("x", 1.5), ("y", 2.0), ("z", 3.0)):
        assert found[f"fwhm_{name}"] == pytest.approx(FWHM * sigma, rel=0.05)
    assert found["fwhm_avg"] == pytest.approx(FWHM * 6.5 / 3, rel=0.05)


def test_weighted_statistics_by_hand():
    found = summary(np.array([1.0, 2.0, 3.0, 10.0]), np.array([1.0, 1.0, 1.0, 0.0]))
    assert (found["mean"], found["median"], found["n"]) == (2, 2, 3)
    assert found["stdv"] == pytest.approx(math.sqrt(2 / 3), abs=1e-4)
    assert found["mad"] == pytest.approx(1 / 0.67449, abs=1e-4)
    assert found["k"] == -1.5
    assert summary(np.array([1.0, 2.0]), np.array([1.0, 1.0]))["median"] == 1.5


def test_entropy_is_one_where_all_are_equal_and_none_in_one_voxel():
    assert efc(np.ones(1000, np.float32)) == 1
    assert efc(np.eye(1, 1000, dtype=np.float32)) == 0


def test_zeros_around_a_turned_image_are_padding():
    image = np.ones((20, 20, 20), np.float32)
    assert not padding(image).any()
    image[:8] = 0
    image[15, 15, 15] = 0
    assert padding(image)[:7].all()
    assert not padding(image)[8:].any()


def test_the_head_is_what_surrounds_the_brain(head_phantom):
    phantom = head_phantom(spacing=3.0, noise=20.0)
    image = np.abs(np.asarray(phantom.image.dataobj))
    head = head_mask(image, phantom.mask, (3.0, 3.0, 3.0))
    scalp = image > 700
    assert head[scalp].all()
    assert head[phantom.mask].all()
    truth = np.asarray(phantom.image.dataobj) > 400
    assert head.sum() < 1.25 * (truth.sum() + (~truth & phantom.mask).sum() + 4 * scalp.sum())
    assert not head[0, 0].any()
