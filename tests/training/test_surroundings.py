# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from numpy.testing import assert_array_equal
from scipy.ndimage import distance_transform_edt

from bmex_bids.training.surroundings import FLUID, ROOM, surround, take_out


@pytest.fixture(scope="module")
def brain():
    """A ball of 500 units, off the middle of its array."""
    x, y, z = np.meshgrid(*[np.arange(n) for n in (34, 41, 30)], indexing="ij")
    mask = (x - 15) ** 2 + (y - 22) ** 2 + (z - 14) ** 2 < 11**2
    return np.where(mask, np.float32(500), np.float32(0)), mask


@pytest.mark.parametrize("seed", range(4))
def test_the_brain_is_unchanged_in_its_head_and_air_is_around_that(brain, seed):
    data, mask = brain
    head = surround(data, mask, "T1w", np.random.default_rng(seed))
    assert head.shape == (74, 81, 70)
    assert head.dtype == np.float32
    assert_array_equal(take_out(head)[mask], 500)
    assert head.min() >= 0
    distance = distance_transform_edt(~np.pad(mask, ROOM))
    assert head[distance > 2 * (4 + 8 + 9)].max(initial=0) == 0  # layers at their thickest
    ring = (distance > 0) & (distance < 12)
    assert head[ring].std() > 20  # something is there, and not one value


def test_fluid_is_bright_or_dark_by_contrast_and_next_to_the_brain(brain):
    data, mask = brain
    next_to_it = distance_transform_edt(~np.pad(mask, ROOM)) == 1
    found = {
        name: np.median(
            [
                np.median(surround(data, mask, name, np.random.default_rng(k))[next_to_it])
                for k in range(8)
            ]
        )
        for name in FLUID
    }
    assert found["T1w"] < 320
    assert found["T2w"] > 400


def test_a_head_is_a_function_of_the_seed(brain):
    first, again, other = (
        surround(*brain, "T2w", np.random.default_rng(seed)) for seed in (3, 3, 4)
    )
    assert_array_equal(first, again)
    assert (first != other).any()
