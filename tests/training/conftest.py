# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from bmex_bids.training.synthesis import HeadMap


@pytest.fixture(scope="session")
def head():
    """Nested balls on the 2 mm grid: white matter, cortex, something outside."""
    x, y, z = np.meshgrid(*[np.arange(n) - n / 2 for n in (30, 34, 28)], indexing="ij")
    radius = np.sqrt(x**2 + y**2 + z**2)
    parts = [radius < 5, (radius >= 5) & (radius < 9), (radius >= 9) & (radius < 13)]
    fractions = np.stack(parts).astype(np.uint8) * 255
    brain = (radius < 9).astype(np.uint8) * 255
    return HeadMap("balls", ("white", "cortex", "outside-258"), fractions, brain)
