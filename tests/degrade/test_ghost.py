# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from numpy.testing import assert_allclose

from bmex_bids.degrade.ghost import ghosting


@pytest.fixture
def box() -> np.ndarray:
    image = np.zeros((6, 24, 8), np.float32)
    image[2:4, 9:14, 2:6] = 100
    return image


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_every_second_line_wrong_makes_one_ghost_half_a_field_of_view_away(box, axis):
    half = box.shape[axis] // 2
    expected = (box + 0.2 * np.roll(box, half, axis)) / 1.2
    assert_allclose(ghosting(box, 0.2, 2, 0.0, phase_axis=axis), expected, atol=1e-4)


def test_a_period_of_four_lines_makes_two_ghosts_a_quarter_away(box):
    result = ghosting(box, 0.2, 4, 0.0)
    expected = (box + 0.1 * np.roll(box, 6, 1) + 0.1 * np.roll(box, -6, 1)) / 1.2
    assert_allclose(result, expected, atol=1e-4)


def test_the_phase_of_the_modulation_is_the_phase_of_the_ghosts(box):
    """A quarter turn: where ghost and image overlap they no longer add up."""
    image = box + 50
    ghosts = 0.1 * (1j * np.roll(image, 6, 1) - 1j * np.roll(image, -6, 1))
    result = ghosting(image, 0.2, 4, np.pi / 2)
    assert_allclose(result, np.abs(image + ghosts), rtol=1e-5)


def test_no_strength_is_the_identity(box):
    assert_allclose(ghosting(box, 0.0, 3, 1.0), box, atol=1e-4)


def test_the_mean_stays(box):
    """Where the ghosts do not take away from each other nothing turns negative."""
    for period in (2, 3, 4):
        assert ghosting(box, 0.3, period, 0.0).mean() == pytest.approx(box.mean(), rel=1e-3)
