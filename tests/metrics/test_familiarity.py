# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest

from bmex_bids.metrics.familiarity import FEATURES, distance, features, usual


@pytest.fixture
def brain():
    """Labels in slabs of 8 voxels, intensities 200, 400, 600 with noise."""
    rng = np.random.default_rng(0)
    labels = np.repeat([1, 2, 3], 8)[:, None, None] * np.ones((24, 20, 20), int)
    image = (200 * labels + rng.normal(0, 10, labels.shape)).astype(np.float32)
    return image, labels, np.ones(labels.shape, bool)


def test_the_figures_by_name(brain):
    image, labels, mask = brain
    deviation = np.full(image.shape, 40, np.float32)
    found = dict(zip(FEATURES, features(image, image, deviation, labels, mask), strict=True))
    assert found["fluid over white matter"] == pytest.approx(math.log(1 / 3), abs=0.01)
    assert found["grey over white matter"] == pytest.approx(math.log(2 / 3), abs=0.01)
    assert found["volume of grey over white matter"] == 0
    assert found["estimated error after"] == pytest.approx(math.log(0.1), abs=0.01)
    assert found["estimated error before"] == found["estimated error after"]
    noise = 2 * 100 / (200**2 * 2 / 3)
    step = noise + 2 * 200**2 / 23 / (200**2 * 2 / 3)
    expected = math.log((2 * noise + step) / 3)
    assert found["detail"] == pytest.approx(expected, abs=0.05)
    assert found["detail, most over least of the axes"] == pytest.approx(
        math.log(step / noise), abs=0.05
    )


def test_a_brain_without_a_tissue_has_figures(brain):
    image, _, mask = brain
    none = np.zeros(image.shape, int)
    assert np.isfinite(features(image, image, image, none, mask)).all()


def test_what_trained_is_at_one_and_what_did_not_is_far():
    rng = np.random.default_rng(1)
    mixing = rng.normal(0, 1, (8, 8))
    samples = rng.normal(0, 1, (200, 8)) @ mixing
    known = usual(samples)
    near = [distance(sample, known) for sample in samples]
    assert np.sqrt(np.mean(np.square(near))) == pytest.approx(1, abs=0.35)
    # each figure alone within its spread, but not together as in training
    odd = samples.std(axis=0) * np.sign(np.linalg.svd(np.cov(samples.T))[0][:, -1])
    assert distance(samples.mean(axis=0) + 3 * odd, known) > 2 * np.mean(near)
    assert math.isnan(distance([math.nan] * 8, known))
    with pytest.raises(ValueError, match="three images"):
        usual(samples[:2])


def test_a_figure_that_never_varied_does_not_divide_by_zero():
    known = usual(np.ones((5, 8)))
    assert distance(np.ones(8), known) == 0
    assert math.isfinite(distance(np.zeros(8), known))
