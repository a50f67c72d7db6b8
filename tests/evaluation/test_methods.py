# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from bmex_bids.degrade.blur import slab_centres, thick_slices
from bmex_bids.evaluation import methods
from bmex_bids.evaluation.cells import CELLS
from bmex_bids.exceptions import WeightsError
from bmex_bids.metrics.reference import psnr
from bmex_bids.training.images import CleanImage


@pytest.fixture
def smooth():
    """A volume of waves in a box, and its mask."""
    g = np.meshgrid(np.arange(30), np.arange(32), np.arange(36), indexing="ij")
    data = 450 + 150 * np.sin(0.5 * g[0]) * np.cos(0.4 * g[1]) * np.cos(0.35 * g[2])
    mask = np.zeros(data.shape, bool)
    mask[4:-4, 4:-4, 4:-4] = True
    return data.astype(np.float32), mask


def job_of(image, mask, cell, offset=0, length=None):
    clean = CleanImage(
        "x", image, mask, np.zeros(mask.shape, np.uint8), (0.8, 0.8, 0.8), "month24", "T1w"
    )
    masked = np.where(mask, image, 0).astype(np.float32)
    return methods.Job(masked, image, mask, clean, CELLS[cell], length or image.shape[2], offset)


def test_the_noise_is_found_and_a_clean_image_has_next_to_none(smooth):
    data, mask = smooth
    noisy = data + np.random.default_rng(0).normal(0, 20, data.shape).astype(np.float32)
    assert methods.noise_sigma(noisy * mask, mask) == pytest.approx(20, rel=0.05)
    assert methods.noise_sigma(data * mask, mask) < 2
    assert methods.noise_sigma(data, mask & False) == 0


@pytest.mark.parametrize("method", [methods.nlm, methods.total_variation])
def test_denoisers_denoise(smooth, method):
    data, mask = smooth
    noisy = data + np.random.default_rng(0).normal(0, 25, data.shape).astype(np.float32)
    job = job_of(noisy, mask, "gaussian 2.5%")
    assert psnr(method(job), data, mask, 1000) > psnr(noisy, data, mask, 1000) + 3


@pytest.mark.parametrize("factor", [2.0, 3.0, 2.5])
def test_slices_are_recovered_from_their_linear_interpolation(smooth, factor):
    data, _ = smooth
    centres = slab_centres(data.shape[2], factor)
    found = methods.slabs(thick_slices(data, 2, factor), centres)
    if factor.is_integer():
        whole = data[:, :, : int(36 // factor * factor)]
        expected = whole.reshape(30, 32, -1, int(factor)).mean(axis=3)
        np.testing.assert_allclose(found, expected, atol=0.05)
    again = np.stack([np.interp(np.arange(36), centres, found[3, 5])], axis=0)[0]
    np.testing.assert_allclose(again, thick_slices(data, 2, factor)[3, 5], atol=0.05)


@pytest.mark.parametrize("method", [methods.cubic, methods.lanczos])
def test_better_kernels_beat_linear_interpolation_also_in_a_box_of_a_larger_head(smooth, method):
    data, mask = smooth
    bad = thick_slices(data, 2, 3.0)
    before = psnr(bad, data, mask, 1000)
    job = job_of(bad, mask, "2.4 mm")
    assert psnr(method(job), data, mask, 1000) > before + 0.3
    # a box that begins inside a slab gives the same values
    boxed = job_of(bad[:, :, 4:], mask[:, :, 4:], "2.4 mm", offset=4, length=36)
    np.testing.assert_allclose(method(boxed)[:, :, 8:-8], method(job)[:, :, 12:-8], atol=1.0)


def test_interpolation_weights_sum_to_one_and_keep_the_slabs(smooth):
    centres = slab_centres(20, 2.0) + 0.5  # on voxels
    for kernel in (methods._linear, methods._lanczos):
        weights = methods.interpolation(20, centres, kernel)
        np.testing.assert_allclose(weights.sum(axis=1), 1)
        np.testing.assert_allclose(weights[centres.astype(int)[:9]], np.eye(10)[:9], atol=1e-12)


def test_up_sampling_is_asked_only_where_there_are_slices():
    table = methods.methods(None)
    assert not table["cubic"].serves(CELLS["moderate"])
    assert table["cubic"].serves(CELLS["moderate 1.6 mm"])
    assert "bmex" not in table
    with pytest.raises(ValueError, match="thick slices"):
        methods._centres(job_of(np.ones((8, 8, 8), np.float32), np.ones((8, 8, 8), bool), "minor"))


def test_the_network_is_given_matched_images_and_slices_by_cubic_spline(smooth, tiny_records):
    data, mask = smooth
    record = next(r for r in tiny_records if r.kind == "enhance")
    run = methods.methods(record)["bmex"].run
    from bmex_bids.network.inference.predict import enhance

    job = job_of(thick_slices(data, 2, 3.0), mask, "2.4 mm")
    fine = np.where(mask, methods.cubic(job), 0).astype(np.float32)
    fed = methods.matched(job_of(fine, mask, "2.4 mm"))
    np.testing.assert_array_equal(run(job), enhance(fed, mask, record, threads=1).image)


def test_weights_by_file_are_keyed_by_their_content(tmp_path):
    path = tmp_path / "new.safetensors"
    with pytest.raises(WeightsError, match="found none"):
        methods.weight_record(path)
    path.write_bytes(b"one")
    first = methods.methods(None, methods.weight_record(path))["ablation"].version
    one_pass = methods.methods(None, methods.weight_record(path), mirroring=False)
    assert one_pass["ablation"].version != first
    path.write_bytes(b"two")
    assert methods.methods(None, methods.weight_record(path))["ablation"].version != first
