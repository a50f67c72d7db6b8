# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest

from bmex_bids.metrics.reference import mse, psnr, ssim


@pytest.fixture
def three():
    """Image, reference and a mask that leaves the last voxel out."""
    image = np.array([1, 2, 5, 1000], np.float32).reshape(4, 1, 1)
    reference = np.array([1, 4, 1, 0], np.float32).reshape(4, 1, 1)
    return image, reference, np.array([True, True, True, False]).reshape(4, 1, 1)


def test_mse_and_psnr_by_hand(three):
    assert mse(*three) == pytest.approx((0 + 4 + 16) / 3)
    assert psnr(*three, 100) == pytest.approx(10 * math.log10(10_000 * 3 / 20))


def test_equal_images_are_perfect(three):
    image, _, mask = three
    assert mse(image, image, mask) == 0
    assert psnr(image, image, mask, 100) == math.inf
    same = np.random.default_rng(0).random((12, 12, 12)).astype(np.float32)
    assert ssim(same, same, same > 0, 1.0) == pytest.approx(1)


def test_large_whole_numbers_do_not_overflow():
    image = np.full((2, 2, 2), 30_000, np.int16)
    assert mse(image, -image, image > 0) == 60_000.0**2


def test_ssim_of_constants_is_the_term_of_luminance():
    # no variance: SSIM = (2ab + c1) / (a² + b² + c1), c1 = (0.01 range)²
    a, b = np.full((12, 12, 12), 0.5), np.full((12, 12, 12), 0.25)
    c1 = 0.01**2
    expected = (2 * 0.5 * 0.25 + c1) / (0.5**2 + 0.25**2 + c1)
    assert ssim(a, b, a > 0, 1.0) == pytest.approx(expected, rel=1e-6)


def test_ssim_is_taken_inside_the_mask_and_falls_with_noise():
    rng = np.random.default_rng(0)
    reference = rng.random((24, 16, 16))
    image = reference.copy()
    image[:8] += rng.normal(0, 0.5, (8, 16, 16))
    near, far = np.zeros(reference.shape, bool), np.zeros(reference.shape, bool)
    near[:8] = True
    far[16:] = True
    assert ssim(image, reference, far, 1.0) == pytest.approx(1)
    assert ssim(image, reference, near, 1.0) < 0.8


def test_what_cannot_be_measured_is_refused(three):
    image, reference, mask = three
    with pytest.raises(ValueError, match="one shape"):
        mse(image[:2], reference, mask)
    with pytest.raises(ValueError, match="empty"):
        mse(image, reference, mask & False)
    with pytest.raises(ValueError, match="positive data range, got 0"):
        psnr(image, reference, mask, 0)
