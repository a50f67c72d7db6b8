# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
import torch.nn.functional as F

from bmex_bids.network.engine.pool import Workspace
from bmex_bids.network.engine.winograd import convolve, transform_weight, values_needed


def by_winograd(x, weight, workspace=None):
    """x (C, D + 2, H + 2, W + 2) → (out, D, H, W)"""
    d, h, w = (n - 2 for n in x.shape[1:])
    out = torch.full((d, h, w, weight.shape[0]), torch.nan, dtype=x.dtype)
    convolve(
        x.permute(1, 2, 3, 0).contiguous(),
        transform_weight(weight),
        out,
        workspace or Workspace(x.device, x.dtype),
    )
    return out.permute(3, 0, 1, 2)


@pytest.mark.parametrize("sides", [(4, 4, 1), (4, 8, 3), (8, 4, 10), (12, 8, 5)])
@pytest.mark.parametrize("channels", [(1, 1), (3, 5), (8, 2)])
def test_it_is_a_convolution(sides, channels):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((channels[0], *(n + 2 for n in sides)), generator=generator).double()
    weight = torch.randn((channels[1], channels[0], 3, 3, 3), generator=generator).double()
    expected = F.conv3d(x[None], weight)[0]
    torch.testing.assert_close(by_winograd(x, weight), expected, rtol=1e-12, atol=1e-12)


def test_one_tap_moves_the_image_by_hand():
    x = torch.arange(6 * 6 * 3.0).view(1, 6, 6, 3).double()
    weight = torch.zeros(1, 1, 3, 3, 3).double()
    weight[0, 0, 0, 1, 2] = 1  # one back in D, none in H, one on in W
    torch.testing.assert_close(by_winograd(x, weight), x[:, 0:4, 1:5, 2:3], atol=1e-12, rtol=0)


def test_rounding_in_single_precision_stays_small():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn((64, 10, 10, 10), generator=generator)
    weight = torch.randn((16, 64, 3, 3, 3), generator=generator)
    exact = F.conv3d(x[None].double(), weight.double())[0]
    error = (by_winograd(x, weight) - exact).abs().max() / exact.abs().max()
    assert 0 < error < 2e-5


def test_memory_is_lent_again_for_another_shape():
    work = Workspace(torch.device("cpu"), torch.float32)
    first = work.take("a", (4, 5))
    again = work.take("a", (2, 3))
    assert again.data_ptr() == first.data_ptr()
    assert again.is_contiguous()
    assert work.take("b", (2, 3)).data_ptr() != first.data_ptr()
    assert work.take("a", (7, 7)).shape == (7, 7)
    x, weight = torch.ones(2, 10, 10, 6), torch.ones(3, 2, 3, 3, 3)
    for part in (x, x[:, :6, :6, :4], x):  # larger, smaller, larger
        result = by_winograd(part, weight, work)
        torch.testing.assert_close(result, torch.full_like(result, 54.0), rtol=1e-5, atol=0)


def test_the_work_array_is_as_large_as_foretold():
    work = Workspace(torch.device("cpu"), torch.float32)
    by_winograd(torch.ones(3, 6, 10, 9), torch.ones(2, 3, 3, 3, 3), work)
    assert work._held["values"].numel() == values_needed(4, 8, 7, 3) == 36 * 1 * 2 * 9 * 3
