# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from bmex_bids.degrade.blur import average_slabs, thick_slices
from bmex_bids.evaluation import judge, segmentation, torchio_cells
from bmex_bids.training.painting import paint_head


@pytest.fixture
def shells():
    """A ball of three classes, its mask and its classes."""
    r = np.linalg.norm(np.indices((40, 42, 38)) - 19.0, axis=0)
    labels = np.select([r < 8, r < 13, r < 17], [3, 2, 1], 0).astype(np.uint8)
    image = np.array([0, 200, 400, 600], np.float32)[labels]
    return image, labels > 0, labels


def test_a_scanner_with_other_units_is_no_error(shells):
    image, mask, _ = shells
    assert judge.on_input_grid(3 * image + 7, image, mask)["native_psnr"] > 80
    noisy = image + np.random.default_rng(0).normal(0, 6, image.shape).astype(np.float32)
    figures = judge.on_input_grid(noisy, image, mask)
    assert figures["native_psnr"] == pytest.approx(20 * np.log10(600 / 6), abs=0.3)
    assert figures["native_mse"] == pytest.approx(36, rel=0.1)


def test_measures_look_at_the_brain_alone(shells):
    image, mask, _ = shells
    outside = np.where(mask, image + 10, 9999).astype(np.float32)
    assert judge.in_template_units(outside, image, mask)["mse"] == pytest.approx(100)
    assert judge.in_template_units(outside, image, mask)["psnr"] == pytest.approx(40)


@pytest.mark.parametrize("name", judge.segmenters())
def test_both_segmenters_find_the_classes_of_a_noisy_ball(shells, name):
    image, mask, labels = shells
    noisy = image + np.random.default_rng(0).normal(0, 30, image.shape).astype(np.float32)
    found = judge.classes(name, noisy, mask)
    assert not found[~mask].any()
    figures = judge.tissue_agreement(name, found, labels, mask)
    assert figures[f"dice_{name}"] > 0.97
    assert abs(figures[f"volume_{name}_bright"]) < 0.03
    assert judge.tissue_agreement(name, labels, labels, mask)[f"dice_{name}"] == 1


@pytest.mark.parametrize("contrast", ["T1w", "T2w"])
@pytest.mark.parametrize("name", judge.segmenters())
def test_segmenters_find_the_tissues_of_a_painted_brain(head_phantom, name, contrast):
    phantom = head_phantom(spacing=2.5, size=0.7)
    labels = np.array([0, 24, 3, 2], np.int32)[phantom.tissues]  # fluid, cortex, white matter
    image = paint_head(labels, contrast, seed=3)
    tissues = segmentation.TISSUES[contrast]
    truth = np.zeros(labels.shape, np.uint8)
    for number, tissue in enumerate(tissues, start=1):
        truth[phantom.tissues == ("CSF", "GM", "WM").index(tissue) + 1] = number
    found = judge.classes(name, image, phantom.mask)
    assert judge.class_dice(found, truth, phantom.mask) > 0.8
    np.testing.assert_array_equal(judge.classes(name, image, phantom.mask), found)
    inverted = np.where(found > 0, 4 - found, 0).astype(np.uint8)
    assert judge.class_dice(inverted, truth, phantom.mask) < 0.5


def test_known_noise_is_taken_at_its_word(shells):
    image, mask, _ = shells
    noisy = image + np.random.default_rng(0).normal(0, 25, image.shape).astype(np.float32)
    noisy = np.where(mask, noisy, 0).astype(np.float32)
    before = judge.in_template_units(noisy, image, mask)["psnr"]
    for sigma in (None, 25.0):
        mended = judge.denoised(noisy, mask, sigma)
        assert judge.in_template_units(mended, image, mask)["psnr"] > before + 3
    np.testing.assert_array_equal(judge.denoised(noisy, mask, 0.0), noisy)


def test_lanczos_keeps_slow_waves_better_than_linear_interpolation():
    wave = np.sin(np.arange(48) * 2 * np.pi / 16)
    volume = np.broadcast_to(500 + 100 * wave, (4, 4, 48)).astype(np.float32)
    assert average_slabs(volume, 2, 3.0).shape == (4, 4, 16)
    inner = (..., slice(9, -9))
    errors = [
        np.abs(found - volume)[inner].max()
        for found in (judge.lanczos(volume, 2, 3.0), thick_slices(volume, 2, 3.0))
    ]
    assert errors[0] < errors[1]
    np.testing.assert_allclose(judge.lanczos(volume, 2, 1.0), volume, atol=1e-3)


@pytest.mark.parametrize("name", torchio_cells.TRANSFORMS)
def test_the_second_simulator_is_a_function_of_the_seed(shells, name):
    pytest.importorskip("torchio", reason="the extra 'benchmark' is not installed")
    image, _, _ = shells
    first, again, other = (
        torchio_cells.damage(name, image, np.eye(4), seed, 1) for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first, again)
    assert first.shape == image.shape
    assert first.min() >= 0
    assert np.abs(first - image).max() > 1
    assert name == "anisotropy" or np.abs(first - other).max() > 1
