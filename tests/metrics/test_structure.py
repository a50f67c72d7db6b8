# SPDX-License-Identifier: Apache-2.0
"""Against scikit-image, the definitions, and figures that other libraries gave once.

The frozen figures are of :func:`pair`; torchmetrics 1.9.0 and sewar 0.4.10 computed them.
"""

import numpy as np
import pytest
from skimage.metrics import structural_similarity

from bmex_bids.metrics.structure import SCALES, Similarity


def pair(shape):
    """A reference of waves, and the same darker, of less contrast and with a fixed 'noise'."""
    g = np.meshgrid(*[np.arange(n) for n in shape], indexing="ij")
    reference = 500 + 200 * np.sin(0.31 * g[0] + 0.17 * g[1]) * np.cos(0.23 * g[-1])
    reference += 60 * np.sin(1.3 * g[0]) * np.sin(1.1 * g[1])
    noise = np.arange(np.prod(shape)) * 2654435761 % 4294967296 / 4294967296 - 0.5
    image = 0.9 * reference + 30 + 80 * noise.reshape(shape)
    return reference.astype(np.float32), image.astype(np.float32)


def whole(array):
    return np.ones(array.shape, bool)


def test_ssim_is_that_of_scikit_image():
    reference, image = pair((80, 84))
    _, full = structural_similarity(
        reference.astype(float), image.astype(float), data_range=1000, gaussian_weights=True,
        sigma=1.5, use_sample_covariance=False, full=True,
    )  # fmt: skip
    mask = whole(reference)
    mask[:30] = False
    ours, _ = Similarity(reference, mask, 1000).ssim_and_ms_ssim(image)
    assert ours == pytest.approx(full[mask].mean(), abs=2e-5)


@pytest.mark.slow
def test_ms_ssim_in_three_dimensions_is_that_of_torchmetrics():
    # torchmetrics leaves out five voxels at each side of each scale
    reference, image = pair((176, 176, 176))
    product = 1.0
    inner = (slice(5, -5),) * 3
    levels = Similarity(reference, whole(reference), 1000).maps(image)
    for weight, (light, cs, _) in zip(SCALES, levels, strict=True):
        value = (light * cs if weight == SCALES[-1] else cs)[inner].mean(dtype=float)
        product *= value**weight
    assert product == pytest.approx(0.991722583770752, abs=5e-6)


def test_ms_ssim_in_two_dimensions_is_near_that_of_sewar():
    # sewar halves with another filter, so the last digits differ
    reference, image = pair((192, 200))
    _, ours = Similarity(reference, whole(reference), 1000).ssim_and_ms_ssim(image)
    assert ours == pytest.approx(0.9902152446295296, abs=1e-4)


def test_the_reference_itself_is_perfect_in_a_masked_volume():
    reference, _ = pair((80, 80, 80))
    mask = np.zeros(reference.shape, bool)
    mask[8:-8, 8:-8, 8:-8] = True
    structure = Similarity(reference * mask, mask, 1000)
    ssim, ms_ssim = structure.ssim_and_ms_ssim(reference * mask)
    assert ssim == pytest.approx(1, abs=1e-5)
    assert ms_ssim == pytest.approx(1, abs=1e-5)


def test_what_happens_far_from_the_mask_does_not_count():
    reference, image = pair((96, 100))
    mask = whole(reference)
    mask[40:] = False
    spoiled = image.copy()
    spoiled[70:] = 0
    structure = Similarity(reference, mask, 1000)
    assert structure.ssim_and_ms_ssim(spoiled)[0] == structure.ssim_and_ms_ssim(image)[0]


def test_noise_lowers_both():
    reference, image = pair((96, 100))
    structure = Similarity(reference, whole(reference), 1000)
    noisy = image + np.random.default_rng(0).normal(0, 60, image.shape).astype(np.float32)
    assert structure.ssim_and_ms_ssim(noisy) < structure.ssim_and_ms_ssim(image)


def test_what_cannot_be_measured_is_refused():
    reference, image = pair((64, 64))
    with pytest.raises(ValueError, match="positive data range, got 0"):
        Similarity(reference, whole(reference), 0)
    with pytest.raises(ValueError, match="voxels in it"):
        Similarity(reference, whole(reference) & False, 1)
    with pytest.raises(ValueError, match="needs a larger image"):
        Similarity(reference[:8], whole(reference[:8]), 1)
    structure = Similarity(reference, whole(reference), 1000)
    with pytest.raises(ValueError, match=r"got \(8, 64\)"):
        structure.ssim_and_ms_ssim(image[:8])
