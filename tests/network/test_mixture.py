# SPDX-License-Identifier: Apache-2.0
"""Classes of a network joined with the brightness of one image."""

from __future__ import annotations

import numpy as np
import pytest

from bmex_bids.network.inference import mixture
from bmex_bids.network.inference.mixture import fitted, most_probable_class, refined

MEANS = np.array([100.0, 300, 400])


@pytest.fixture
def voxels():
    """Three classes, and a prior that is right in 70 % of the voxels."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 30000)
    values = (MEANS[truth] + rng.normal(0, 20, truth.shape)).astype(np.float32)
    guess = np.where(rng.random(truth.shape) < 0.7, truth, rng.integers(0, 3, truth.shape))
    prior = np.full((3, len(truth)), 0.2)
    prior[guess, np.arange(len(truth))] = 0.6
    return values, np.log(prior).astype(np.float16), truth


def test_the_gaussians_are_those_of_the_classes(voxels):
    values, prior, _ = voxels
    found = fitted(values, prior)
    np.testing.assert_allclose(found.means, MEANS, atol=3)
    np.testing.assert_allclose(found.deviations, 20, rtol=0.15)


def test_brightness_mends_what_the_prior_gets_wrong(voxels):
    values, prior, truth = voxels
    groups = np.array([1, 2, 3], np.uint8)
    found = refined(values, prior, groups)
    np.testing.assert_allclose(found.sum(axis=0), 1, atol=1e-5)
    assert (prior.argmax(0) == truth).mean() < 0.85
    assert (found.argmax(0) == truth).mean() > 0.97


def test_where_classes_look_alike_the_prior_decides(voxels):
    _, prior, _ = voxels
    values = np.random.default_rng(1).normal(300, 20, prior.shape[1]).astype(np.float32)
    found = refined(values, prior, np.array([1, 2, 3], np.uint8))
    assert (found.argmax(0) == prior.argmax(0)).mean() > 0.97


def test_classes_are_summed_to_groups_in_parts_too(voxels, monkeypatch):
    values, prior, _ = voxels
    each = refined(values, prior, np.array([1, 2, 3], np.uint8))
    monkeypatch.setattr(mixture, "AT_ONCE", 7001)
    both = refined(values, prior, np.array([1, 2, 2], np.uint8))
    np.testing.assert_allclose(both[0], each[0], atol=1e-5)
    np.testing.assert_allclose(both[1], each[1] + each[2], atol=1e-5)


def test_a_class_that_is_not_there_is_no_fault(voxels):
    values, prior, _ = voxels
    absent = np.concatenate([prior, np.full((1, prior.shape[1]), -30, np.float16)])
    found = refined(values, absent, np.array([1, 2, 3, 4], np.uint8))
    assert found[3].max() < 0.05


@pytest.mark.parametrize("level", [0.0, 7.0, 777.0, -1e5])
def test_in_a_flat_image_the_prior_decides_and_not_the_rounding(level):
    rng = np.random.default_rng(0)
    prior = np.log(rng.dirichlet(np.ones(5), 20000).T).astype(np.float16)
    found = most_probable_class(np.full(20000, level, np.float32), prior)
    assert (found == prior.argmax(axis=0) + 1).mean() > 0.98
