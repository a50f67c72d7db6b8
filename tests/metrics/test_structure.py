# SPDX-License-Identifier: Apache-2.0
"""Against scikit-image, the definitions, and figures that other libraries gave once.

The frozen figures are of :func:`pair`; torchmetrics 1.9.0 and sewar 0.4.10 computed them.
"""

import numpy as np
import pytest
from skimage.metrics import structural_similarity

from bmex_bids.metrics.structure import SCALES, Structure


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
    ours, _ = Structure(reference, mask, 1000).ssim_and_ms_ssim(image)
    assert ours == pytest.approx(full[mask].mean(), abs=2e-5)


@pytest.mark.slow
def test_ms_ssim_in_three_dimensions_is_that_of_torchmetrics():
    # torchmetrics leaves out five voxels at each side of each scale
    reference, image = pair((176, 176, 176))
    product = 1.0
    inner = (slice(5, -5),) * 3
    levels = Structure(reference, whole(reference), 1000).maps(image)
    for weight, (light, cs, _) in zip(SCALES, levels, strict=True):
        value = (light * cs if weight == SCALES[-1] else cs)[inner].mean(dtype=float)
        product *= value**weight
    assert product == pytest.approx(0.991722583770752, abs=5e-6)


def test_ms_ssim_in_two_dimensions_is_near_that_of_sewar():
    # sewar halves with another filter, so the last digits differ
    reference, image = pair((192, 200))
    _, ours = Structure(reference, whole(reference), 1000).ssim_and_ms_ssim(image)
    assert ours == pytest.approx(0.9902152446295296, abs=1e-4)


def test_vif_is_that_of_sewar():
    reference, image = pair((192, 200))
    ours = Structure(reference, whole(reference), 1000).vif(image)
    assert ours == pytest.approx(0.5582065125245149, abs=2e-6)


def test_uqi_is_its_definition_window_by_window():
    reference, image = pair((17, 18))
    mask = np.zeros(reference.shape, bool)
    mask[5:12, 5:12] = True
    found = []
    for i, j in np.argwhere(mask):
        window = (slice(i - 4, i + 4), slice(j - 4, j + 4))
        x, y = image[window].astype(float).ravel(), reference[window].astype(float).ravel()
        covariance = ((x - x.mean()) * (y - y.mean())).mean()
        quality = 4 * covariance * x.mean() * y.mean()
        found.append(quality / ((x.var() + y.var()) * (x.mean() ** 2 + y.mean() ** 2)))
    structure = Structure.__new__(Structure)  # UQI needs no pyramid, for which this is too small
    structure.reference, structure.mask, structure.range = reference / 1000, mask, 1000.0
    assert structure.uqi(image) == pytest.approx(np.mean(found), abs=1e-4)


def test_uqi_of_empty_cubes_is_one_and_of_flat_ones_the_luminance():
    structure = Structure.__new__(Structure)
    structure.mask, structure.range = np.ones((12, 12, 12), bool), 1.0
    structure.reference = np.zeros((12, 12, 12), np.float32)
    assert structure.uqi(structure.reference) == 1
    structure.reference = np.full((12, 12, 12), 0.5, np.float32)
    expected = 2 * 0.5 * 0.25 / (0.5**2 + 0.25**2)
    assert structure.uqi(structure.reference / 2) == pytest.approx(expected)


def test_the_reference_itself_is_perfect_in_a_masked_volume():
    reference, _ = pair((80, 80, 80))
    mask = np.zeros(reference.shape, bool)
    mask[8:-8, 8:-8, 8:-8] = True
    structure = Structure(reference * mask, mask, 1000)
    ssim, ms_ssim = structure.ssim_and_ms_ssim(reference * mask)
    assert ssim == pytest.approx(1, abs=1e-5)
    assert ms_ssim == pytest.approx(1, abs=1e-5)
    assert structure.uqi(reference * mask) == pytest.approx(1, abs=1e-3)
    assert structure.vif(reference * mask) == pytest.approx(1, abs=1e-4)


def test_what_happens_far_from_the_mask_does_not_count():
    reference, image = pair((96, 100))
    mask = whole(reference)
    mask[40:] = False
    spoiled = image.copy()
    spoiled[70:] = 0
    structure = Structure(reference, mask, 1000)
    assert structure.ssim_and_ms_ssim(spoiled)[0] == structure.ssim_and_ms_ssim(image)[0]
    assert structure.uqi(spoiled) == pytest.approx(structure.uqi(image), abs=1e-6)


def test_noise_lowers_all_and_contrast_raises_vif_above_one():
    reference, image = pair((96, 100))
    structure = Structure(reference, whole(reference), 1000)
    noisy = image + np.random.default_rng(0).normal(0, 60, image.shape).astype(np.float32)
    assert structure.ssim_and_ms_ssim(noisy) < structure.ssim_and_ms_ssim(image)
    assert structure.uqi(noisy) < structure.uqi(image)
    assert structure.vif(noisy) < structure.vif(image) < 1
    assert structure.vif(500 + 1.3 * (reference - 500)) > 1


def test_what_cannot_be_measured_is_refused():
    reference, image = pair((64, 64))
    with pytest.raises(ValueError, match="positive data range, got 0"):
        Structure(reference, whole(reference), 0)
    with pytest.raises(ValueError, match="voxels in it"):
        Structure(reference, whole(reference) & False, 1)
    with pytest.raises(ValueError, match="needs a larger image"):
        Structure(reference[:8], whole(reference[:8]), 1)
    structure = Structure(reference, whole(reference), 1000)
    with pytest.raises(ValueError, match=r"got \(8, 64\)"):
        structure.uqi(image[:8])
    with pytest.raises(ValueError, match="41 voxels a side"):
        Structure(*(a[:32, :32] for a in (reference, whole(reference))), 1).vif(image[:32, :32])
