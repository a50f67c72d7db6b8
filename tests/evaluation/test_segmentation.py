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
    mean, deviation, share = fit(image[inside])
    alone = np.stack(
        [np.log(p / s) - 0.5 * ((image - m) / s) ** 2
         for m, s, p in zip(mean, deviation, share, strict=True)]
    ).argmax(axis=0) + 1  # fmt: skip
    right = (segment(image, inside) == truth)[inside].mean()
    assert right > (alone == truth)[inside].mean() + 0.02


def test_the_fit_finds_the_gaussians_it_was_given():
    rng = np.random.default_rng(1)
    values = np.concatenate(
        [
            rng.normal(m, s, n)
            for m, s, n in ((200, 20, 10_000), (400, 30, 20_000), (600, 15, 10_000))
        ]
    ).astype(np.float32)
    mean, deviation, share = fit(values)
    np.testing.assert_allclose(mean, [200, 400, 600], atol=4)
    np.testing.assert_allclose(deviation, [20, 30, 15], atol=4)
    np.testing.assert_allclose(share, [0.25, 0.5, 0.25], atol=0.01)


def test_a_constant_or_absent_brain_is_no_error():
    image = np.full((6, 6, 6), 5, np.float32)
    assert set(np.unique(segment(image, image > 0))) == {1}
    assert not segment(image, image < 0).any()
