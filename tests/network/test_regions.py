# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bmex_bids.network.engine.regions import Regions


def painted(regions, scale, need):
    """0 untouched, 1 filled, 2 computed."""
    result = np.zeros([n // scale for n in regions.shape], int)
    for run in regions.runs(scale, need):
        for box in run.around:
            assert not result[box].any()
            result[box] = 1
        if run.box is not None:
            assert not result[run.box].any()
            result[run.box] = 2
    return result


def dilated(mask, by):
    where = np.argwhere(mask)
    result = np.zeros_like(mask)
    for point in where:
        result[tuple(slice(max(p - by, 0), p + by + 1) for p in point)] = True
    return result


@st.composite
def masks(draw):
    shape = tuple(8 * draw(st.integers(1, 5)) for _ in range(3))
    mask = np.zeros(shape, bool)
    for _ in range(draw(st.integers(1, 4))):
        mask[tuple(draw(st.integers(0, n - 1)) for n in shape)] = True
    return mask


@settings(deadline=None, max_examples=50)
@given(masks(), st.integers(0, 20), st.integers(0, 12))
def test_what_is_needed_is_computed_and_its_neighbours_are_known(mask, need, reach):
    regions = Regions(mask, reach=reach)
    at = painted(regions, 1, need)
    assert (at[dilated(mask, min(need, reach))] == 2).all()
    # a 3×3×3 convolution there finds its neighbours computed or filled
    assert (at[dilated(at == 2, 1)] > 0).all()


@settings(deadline=None, max_examples=50)
@given(masks(), st.integers(0, 20))
def test_a_coarser_layer_finds_what_it_reads(mask, need):
    regions = Regions(mask, reach=8)
    for scale in (2, 4, 8):
        fine, coarse = painted(regions, scale // 2, need), painted(regions, scale, need)
        computed = np.kron(coarse == 2, np.ones((2, 2, 2), int)) > 0
        assert (fine[computed] == 2).all()
        assert (fine[dilated(computed, 1)] > 0).all()


def test_by_hand():
    mask = np.zeros((32, 32, 64), bool)
    mask[20, 3, 30] = True
    (run,) = [r for r in Regions(mask).runs(1, 0) if r.box]
    assert run.box == (slice(16, 32), slice(0, 16), slice(24, 32))
    assert run.around == (
        (slice(16, 32), slice(0, 16), slice(16, 24)),
        (slice(16, 32), slice(0, 16), slice(32, 40)),
    )
    # 8 further: rows −5…12, planes 12…29 reach into the slab above, 22…39 along the row
    assert sorted((r.box[0].start, r.box[1].start) for r in Regions(mask).runs(1, 8) if r.box) == [
        (0, 0),
        (16, 0),
    ]
    assert all(r.box[2] == slice(16, 40) for r in Regions(mask).runs(1, 8) if r.box)


def test_a_core_limits_what_is_computed_and_the_context_how_far():
    context = np.zeros((16, 16, 64), bool)
    context[8, 8, 8:56] = True
    core = context.copy()
    core[..., 16:] = False
    regions = Regions(core, context, reach=8)
    assert [r.box[2] for r in regions.runs(1, 0)] == [slice(8, 16)]
    assert [r.box[2] for r in regions.runs(1, 10)] == [slice(0, 32)]
    assert [r.box[2] for r in regions.runs(1, 1000)] == [slice(0, 64)]


def test_all_of_it():
    regions = Regions(np.zeros((16, 8, 8), bool), whole=True)
    for scale, shape in ((1, (16, 8, 8)), (2, (8, 4, 4))):
        found = painted(regions, scale, 0)
        assert found.shape == shape
        assert (found == 2).all()


def test_odd_sizes_are_refused():
    with pytest.raises(ValueError, match="multiples of 8"):
        Regions(np.zeros((8, 12, 8), bool))
