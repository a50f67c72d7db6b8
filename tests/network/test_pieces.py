# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from bmex_bids.network.engine.pieces import cut, doubled, halved, joined, voxels
from bmex_bids.network.engine.regions import Regions


def painted(boxes, shape):
    """How many of them each voxel lies in."""
    count = np.zeros(shape, int)
    for box in boxes:
        count[box] += 1
    return count


@pytest.mark.parametrize("width", [2, 8, 46, 48, 50, 96, 104, 158])
@pytest.mark.parametrize("longest", [8, 20, 48])
def test_a_box_is_cut_into_parts_that_are_no_longer_and_begin_at_even_voxels(width, longest):
    box = (slice(0, 1), slice(3, 4), slice(4, 4 + width))
    parts = cut(box, longest)
    np.testing.assert_array_equal(painted(parts, (1, 4, 200)), painted([box], (1, 4, 200)))
    lengths = [part[2].stop - part[2].start for part in parts]
    assert len(parts) == -(-width // longest)
    assert max(lengths) <= longest
    assert all(part[2].start % 2 == 0 for part in parts)


def test_joined_boxes_have_the_same_voxels_once():
    """Those of a ball: longer ones in the middle, which nothing is joined to at the edge."""
    axis = np.arange(96) - 47.5
    mask = axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2 < 44**2
    boxes = [run.box for run in Regions(mask, slab=16).runs(2, 4) if run.box]
    found = joined(boxes)
    np.testing.assert_array_equal(painted(found, (48,) * 3), painted(boxes, (48,) * 3))
    sides = {tuple(s.stop - s.start for s in box[:2]) for box in found}
    assert (16, 16) in sides
    assert sides <= {(8, 8), (8, 16), (16, 8), (16, 16)}
    assert all(s.start % (s.stop - s.start) == 0 for box in found for s in box[:2])


def test_boxes_of_other_lengths_or_further_away_are_left_alone():
    def box(h, end=8, d=0):
        return slice(d, d + 4), slice(h, h + 4), slice(0, end)

    for others in ([box(0, 6)], [box(8)], [box(-4)], [box(4, d=4)]):
        assert sorted(map(str, joined([box(0), *others]))) == sorted(map(str, [box(0), *others]))


def test_grids_of_twice_and_half_the_size():
    box = (slice(2, 4), slice(0, 8), slice(6, 10))
    assert halved(doubled(box)) == box
    assert halved(box) == (slice(1, 2), slice(0, 4), slice(3, 5))
    assert (voxels(box), voxels(doubled(box))) == (64, 512)
