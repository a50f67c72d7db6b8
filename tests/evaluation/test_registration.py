# SPDX-License-Identifier: Apache-2.0
import numpy as np

from bmex_bids.evaluation.registration import registered_dice
from bmex_bids.metrics.tissue import dice


def blob(centre, radii):
    grid = np.indices((48, 52, 44)).astype(float)
    r = np.sqrt(sum(((g - c) / a) ** 2 for g, c, a in zip(grid, centre, radii, strict=True)))
    labels = np.select([r < 0.5, r < 1], [2, 1], 0).astype(np.uint8)
    return (np.array([0, 300, 600], np.float32)[labels]), labels


def test_registration_brings_shifted_ellipsoids_together():
    moving, moving_labels = blob((22, 25, 20), (15, 17, 13))
    fixed, fixed_labels = blob((25, 27, 22), (17, 16, 15))
    before = np.mean([dice(moving_labels == k, fixed_labels == k) for k in (1, 2)])
    after = registered_dice(moving, moving_labels, fixed, fixed_labels, (1.0, 1.0, 1.0))
    assert before < 0.75 < 0.85 < after


def test_the_same_images_give_the_same_figure():
    """The affine's sample of voxels was drawn by the clock: figures differed by 0.005 and more."""
    noise = np.random.default_rng(0).normal(0, 60, (48, 52, 44)).astype(np.float32)
    moving, moving_labels = blob((22, 25, 20), (15, 17, 13))
    fixed, fixed_labels = blob((25, 27, 22), (17, 16, 15))
    noisy = np.where(moving > 0, moving + noise, 0).astype(np.float32)
    figures = {
        registered_dice(image, moving_labels, fixed, fixed_labels, (1.0, 1.0, 1.0))
        for image in (noisy, noisy, noisy * np.float32(1.003))
    }
    assert max(figures) - min(figures) < 1e-4
