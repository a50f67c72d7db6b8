# SPDX-License-Identifier: Apache-2.0
"""A folded brain in a head, and what it looks like when it moves."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from swing import AXIS, FREQUENCY, PHASE, SWING

from bmex_bids.degrade.motion import apply_motion, periodic

#: mm
SPACING = (2.5, 2.3, 2.4)


@pytest.fixture(scope="session")
def head():
    """``image`` (float32, a head of a folded brain with noise), ``mask`` and ``spacing``."""
    rng = np.random.default_rng(0)
    shape = (42, 60, 46)
    axes = [((np.arange(n) - (n - 1) / 2) * step) for n, step in zip(shape, SPACING, strict=True)]
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    radius = np.sqrt((x / 44) ** 2 + (y / 58) ** 2 + (z / 46) ** 2)
    folds = gaussian_filter(rng.normal(size=shape), 1.6)
    folds *= 0.12 / folds.std()
    depth = radius + folds
    image = np.zeros(shape, np.float32)
    image[radius < 1.06] = 850
    image[radius < 0.97] = 60
    mask = radius < 0.88
    image[mask] = 170
    image[mask & (depth < 0.84)] = 480
    image[mask & (depth < 0.66)] = 720
    image[depth < 0.2] = 170
    # a voxel holds what k-space reaches
    image = gaussian_filter(image, 0.5)
    noise = rng.normal(0, 8, (2, *shape)).astype(np.float32)
    image = np.hypot(image + noise[0], noise[1])
    return SimpleNamespace(image=image, mask=mask, spacing=SPACING)


@pytest.fixture(scope="session")
def moved(head):
    """The head as a scan shows it while it swings."""
    path = periodic(head.image.shape[AXIS], np.array(SWING), FREQUENCY, PHASE).centred()
    return apply_motion(head.image, head.spacing, path, phase_axis=AXIS)
