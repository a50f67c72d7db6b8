# SPDX-License-Identifier: Apache-2.0
import numpy as np

from bmex_bids.evaluation.segmentation import fit, segment


def shells(noise, seed=0):
    """A dark shell around a grey one around a bright core; truth 1, 2, 3; 0 outside."""
    r = np.linalg.norm(np.indices((40, 40, 40)) - 19.5, axis=0)
    truth = np.select([r < 9, r < 14, r < 18], [3, 2, 1], 0).astype(np.uint8)
    clean = np.array([0, 200, 400, 600])[truth]
    image = clean + np.random.default_rng(seed).normal(0, noise, truth.shape)
    return image.astype(np.float32), truth


def test_three_classes_are_found_from_dark_to_bright():
    image, truth = shells(20)
    assert (segment(image, truth > 0) == truth).mean() > 0.999


def test_neighbours_help_where_the_noise_is_strong():
    image, truth = shells(70)
    inside = truth > 0
    mean, _ = fit(image[inside])
    alone = np.abs(image - mean[:, None, None, None]).argmin(axis=0) + 1
    right = (segment(image, inside) == truth)[inside].mean()
    assert right > (alone == truth)[inside].mean() + 0.02


def test_the_fit_finds_the_means_and_the_spread_they_share():
    rng = np.random.default_rng(1)
    classes = ((200, 10_000), (400, 20_000), (600, 10_000))
    values = np.concatenate([rng.normal(m, 20, n) for m, n in classes]).astype(np.float32)
    mean, spread = fit(values)
    np.testing.assert_allclose(mean, [200, 400, 600], atol=3)
    assert abs(spread - 20) < 4


def test_a_class_does_not_vanish_when_two_tissues_look_alike():
    # a four-month brain: grey and white 420 and 450, fluid 200; noise moved 80 times the voxels
    rng = np.random.default_rng(2)
    truth = rng.choice([200, 420, 450], p=[0.1, 0.5, 0.4], size=(30, 30, 30))
    mask = truth > 0
    volumes = []
    for noise in (12, 30):
        image = (truth + rng.normal(0, noise, truth.shape)).astype(np.float32)
        volumes.append(np.bincount(segment(image, mask).ravel(), minlength=4)[1:])
    assert (volumes[0] > 0.02 * mask.sum()).all()
    ratio = volumes[1] / volumes[0]
    assert ratio.max() < 5
    assert ratio.min() > 0.2


def test_a_constant_or_absent_brain_is_no_error():
    image = np.full((6, 6, 6), 5, np.float32)
    assert set(np.unique(segment(image, image > 0))) == {1}
    assert not segment(image, image < 0).any()
