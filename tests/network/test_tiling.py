# SPDX-License-Identifier: Apache-2.0
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bmex_bids.network.inference.tiling import (
    WeightedSum,
    boxes,
    network_order,
    starts,
    volume_order,
)


@st.composite
def lines(draw):
    length = draw(st.integers(1, 60))
    tile = draw(st.integers(1, length))
    overlap = draw(st.integers(0, tile - 1))
    return length, tile, overlap


@settings(deadline=None)
@given(lines())
def test_tiles_cover_a_line_and_share_the_overlap(line):
    length, tile, overlap = line
    firsts = starts(length, tile, tile - overlap)
    assert firsts[0] == 0
    assert firsts[-1] + tile == length
    for a, b in pairwise(firsts):
        assert a < b
        assert a + tile - b >= overlap


def test_a_tile_longer_than_the_line_is_refused():
    with pytest.raises(ValueError, match="at most 4 voxels, got 5"):
        starts(4, 5, 1)


@settings(deadline=None)
@given(st.tuples(lines(), lines(), lines()).filter(lambda t: np.prod([a[0] for a in t]) < 20_000))
def test_boxes_cover_a_volume_with_whole_tiles(axes):
    shape = tuple(a[0] for a in axes)
    tile = tuple(max(a[1], (a[0] + 4) // 5) for a in axes)  # not too many
    count = np.zeros(shape, int)
    for box in boxes(shape, tile, min(t - 1 for t in tile) // 2):
        assert count[box].shape == tile
        count[box] += 1
    assert count.min() >= 1


def test_boxes_by_hand():
    found = [tuple((s.start, s.stop) for s in box) for box in boxes((4, 3, 6), (4, 3, 4), 1)]
    assert found == [((0, 4), (0, 3), (0, 4)), ((0, 4), (0, 3), (2, 6))]


def test_overlapping_values_are_averaged_by_weight_and_gaps_stay_zero():
    sums = WeightedSum.zeros(1, (1, 1, 4))
    whole = slice(None)
    sums.add(
        (whole, whole, slice(0, 2)), np.full((1, 1, 1, 2), 10, np.float32), np.float32([[[1, 1]]])
    )
    sums.add(
        (whole, whole, slice(1, 3)), np.full((1, 1, 1, 2), 40, np.float32), np.float32([[[2, 2]]])
    )
    assert sums.result().ravel().tolist() == [10, 30, 40, 0]


def test_the_network_sees_z_x_y():
    volume = np.zeros((2, 3, 4))
    volume[1, 2, 3] = 1
    assert network_order(volume).shape == (4, 2, 3)
    assert network_order(volume)[3, 1, 2] == 1


@pytest.mark.parametrize("lead", [(), (5,), (2, 5)])
def test_volume_order_is_the_inverse_with_channels_in_front(lead):
    rng = np.random.default_rng(0)
    fed = rng.random((*lead, 4, 2, 3))
    volume = volume_order(fed)
    assert volume.shape == (*lead, 2, 3, 4)
    np.testing.assert_array_equal(volume_order(torch.from_numpy(fed)).numpy(), volume)
    for index in np.ndindex(lead):
        np.testing.assert_array_equal(network_order(volume[index]), fed[index])
    plain = torch.from_numpy(rng.random((2, 3, 4)))
    assert torch.equal(volume_order(network_order(plain)), plain)


def test_the_weighted_sum_of_a_constant_is_the_constant():
    sums = WeightedSum.zeros(1, (9, 8, 8))
    for box in boxes((9, 8, 8), (5, 8, 8), 2):
        sums.add(box, np.full((1, 5, 8, 8), 7, np.float32), np.full((5, 8, 8), 0.3, np.float32))
    np.testing.assert_allclose(sums.result(), 7, rtol=1e-6)
