# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from bmex_bids.degrade.noise import gaussian, rician

FLAT = np.full((60, 60, 60), 300, np.float32)


def test_gaussian_moments():
    noisy = gaussian(FLAT, 20, np.random.default_rng(0))
    assert noisy.mean() == pytest.approx(300, abs=0.3)
    assert noisy.std() == pytest.approx(20, rel=0.01)


def test_rician_second_moment_is_signal_plus_twice_the_variance():
    noisy = rician(FLAT, 40, np.random.default_rng(0)).astype(float)
    assert (noisy**2).mean() == pytest.approx(300**2 + 2 * 40**2, rel=2e-3)


def test_rician_background_is_rayleigh():
    noisy = rician(np.zeros_like(FLAT), 40, np.random.default_rng(1))
    assert noisy.mean() == pytest.approx(40 * np.sqrt(np.pi / 2), rel=5e-3)
    assert noisy.std() == pytest.approx(40 * np.sqrt(2 - np.pi / 2), rel=1e-2)
    assert noisy.min() >= 0
