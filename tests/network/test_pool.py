# SPDX-License-Identifier: Apache-2.0
import torch

from bmex_bids.network.engine.pool import ALIGNED, Memory, Pool, Workspace

PAGE = (ALIGNED,)
BYTE = torch.uint8


def place(pool, tensor):
    """Where in the stretch a tensor begins, in pages."""
    return (tensor.data_ptr() - pool._stretch.ctypes.data) / ALIGNED


def test_arrays_lie_side_by_side_from_both_ends():
    pool = Pool(10 * ALIGNED)
    a, b = (pool.take((2 * ALIGNED,), BYTE) for _ in range(2))
    c = pool.take(PAGE, BYTE, high=True)
    d = pool.take(PAGE, BYTE, high=True)
    assert [place(pool, t) for t in (a, b, c, d)] == [0, 2, 9, 8]
    for k, tensor in enumerate((a, b, c, d)):
        tensor.fill_(k)
    assert [int(t.unique()) for t in (a, b, c, d)] == [0, 1, 2, 3]
    assert pool.missed == 0


def test_memory_is_lent_again_when_the_last_view_is_gone():
    pool = Pool(4 * ALIGNED)
    first = pool.take((3, ALIGNED), BYTE)
    view = first[1, 5:]
    del first
    other = pool.take((2, ALIGNED), BYTE)
    assert pool.missed == 1  # the view still holds all three pages
    view.fill_(7)
    del view
    again = pool.take((2, ALIGNED), BYTE)
    assert place(pool, again) == 0
    assert place(pool, pool.take((2, ALIGNED), BYTE)) == 2  # the one page and the last are joined
    del other


def test_what_does_not_fit_is_made_anew():
    pool = Pool(2 * ALIGNED)
    large = pool.take((3, ALIGNED), BYTE)
    assert large.shape == (3, ALIGNED)
    assert pool.missed == 1
    assert place(pool, pool.take((2, ALIGNED), BYTE)) == 0


def test_shapes_and_types():
    pool = Pool(100 * ALIGNED)
    for dtype in (torch.float32, torch.bfloat16):
        tensor = pool.take((2, 3, 5, 7), dtype)
        assert tensor.shape == (2, 3, 5, 7)
        assert tensor.dtype == dtype
        assert tensor.is_contiguous()


def test_a_tensor_outlives_its_pool():
    tensor = Pool(ALIGNED).take(PAGE, BYTE).fill_(3)
    assert int(tensor.sum()) == 3 * ALIGNED


def test_work_arrays_may_begin_as_zeros_also_when_they_grow():
    space = Workspace(torch.device("cpu"), torch.float32)
    space.take("x", (3, 4), zeros=True)[:, :2] = 5
    assert space.take("x", (2, 4), zeros=True)[:, 2:].eq(0).all()
    grown = space.take("x", (9, 4), zeros=True)
    assert grown[:, 2:].eq(0).all()


def test_the_memory_of_one_run_is_that_of_the_next():
    memory = Memory()
    first = memory.pool(4 * ALIGNED)
    lent = first.take(PAGE, BYTE)
    assert not first.is_free()
    other = memory.pool(2 * ALIGNED)  # something of the first is still in use
    assert other is not first
    assert memory.pool(ALIGNED) is other
    larger = memory.pool(3 * ALIGNED)
    assert (larger.capacity, larger is other) == (3 * ALIGNED, False)
    memory.release()
    assert memory.pool(ALIGNED) is not larger
    del lent
    assert first.is_free()
