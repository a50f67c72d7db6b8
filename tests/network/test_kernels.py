# SPDX-License-Identifier: Apache-2.0
"""Ways of computing a layer that are faster than torch's, against torch's."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from bmex_bids.network.engine import kernels
from bmex_bids.network.engine.kernels import (
    THIN,
    copy_rows,
    halves,
    largest,
    no_less,
    parities,
    rectify,
    thin_convolution,
)
from bmex_bids.network.engine.pool import Workspace


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("many", [False, True])
def test_a_comparison_with_a_floor_is_the_maximum(dtype, many, monkeypatch):
    if many:
        monkeypatch.setattr(kernels, "FEW_BELOW", 2)
    floor = torch.tensor([-3.0, -0.0, 0.0, 1e-6, -0.5, -1e-6, 0.5, 3.0])
    edges = torch.tensor(
        [-torch.inf, -7.0, -0.5, -1e-38, -0.0, 0.0, 1e-38, 0.5, 0.75, 7.0, torch.inf]
    )
    x = torch.cat([edges, torch.randn(41, generator=torch.Generator().manual_seed(0))]).to(dtype)
    wide = torch.zeros(len(x), 12, dtype=dtype)  # a part of an array, as layers have it
    x, out = x[:, None].expand(-1, 8).contiguous(), wide[:, 2:10]
    no_less(x, floor.to(dtype), out, [0, 4, 5])
    assert torch.equal(out, torch.maximum(x, floor.to(dtype)))
    assert not wide[:, [0, 1, 10, 11]].any()


def test_a_16_bit_relu_is_therectify():
    values = [-3.0, -0.0, 0.0, 1e-30, -1e-30, 2.5, float("inf"), -float("inf")]
    x = torch.tensor(values, dtype=torch.bfloat16)
    out = torch.full((8,), 9.0, dtype=torch.bfloat16)
    rectify(x, out)
    assert torch.equal(out, torch.relu(x))
    assert not torch.signbit(out).any()
    every_other = torch.tensor(values * 2, dtype=torch.bfloat16)[::2]
    expected = torch.relu(every_other)
    rectify(every_other)
    assert torch.equal(every_other, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_relu_of_more_bits_is_torchs(dtype):
    x = torch.randn(50, dtype=dtype, generator=torch.Generator().manual_seed(0))
    expected = torch.relu(x)
    rectify(x)
    assert torch.equal(x, expected)


@pytest.mark.parametrize("results", range(1, THIN + 1))
def test_a_thin_convolution_is_a_convolution(results):
    generator = torch.Generator().manual_seed(results)
    x = torch.randn(6, 7, 9, 5, generator=generator)
    weight = torch.randn(results, 5, 3, 3, 3, generator=generator)
    bias = torch.randn(results, generator=generator)
    found = thin_convolution(x, weight, bias, Workspace(x.device, x.dtype))
    expected = F.conv3d(x.permute(3, 0, 1, 2)[None], weight, bias)[0].permute(1, 2, 3, 0)
    assert found.shape == (4, 5, 7, results)
    assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_transposed_convolution_is_eight_small_ones():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 3, 4, 5, 6, generator=generator)
    weight = torch.randn(3, 2, 4, 4, 4, generator=generator)
    expected = F.conv_transpose3d(x, weight, None, 2, 1)
    around = F.pad(x, (1,) * 6)
    found = torch.zeros_like(expected)
    for (a, b, c), taps in parities(weight).items():
        part = around[:, :, a : a + 5, b : b + 6, c : c + 7]
        found[:, :, a::2, b::2, c::2] = F.conv3d(part, taps)
    assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_the_taps_of_even_and_odd_places():
    """One axis by hand: place 2m is 3·(m − 1) + 1·m, place 2m + 1 is 2·m + 0·(m + 1)."""
    weight = torch.zeros(1, 1, 4, 4, 4)
    weight[0, 0, :, 1, 1] = torch.tensor([10.0, 11.0, 12.0, 13.0])
    apart = parities(weight)
    assert apart[0, 0, 0][0, 0, :, 1, 1].tolist() == [13, 11]
    assert apart[1, 0, 0][0, 0, :, 1, 1].tolist() == [12, 10]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("channels", [3, 8, 16, 64])
@pytest.mark.parametrize("first", [0, 4, 5])
def test_rows_are_copied_bit_for_bit_and_nothing_beside_them(dtype, channels, first):
    x = torch.randn(3, 4, 5, channels, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[0, 0, 0, 0], x[0, 0, 0, 1] = torch.nan, -torch.inf
    wide = torch.full((4, 6, 8, 72), 7.0, dtype=dtype)
    target = wide[1:, 1:5, 2:7, first : first + channels]
    copy_rows(x, target)
    assert torch.equal(target.nan_to_num(9), x.nan_to_num(9))
    target.fill_(7)
    assert bool((wide == 7).all())


def test_two_halves_hold_sixteen_bits():
    """By hand: 257 = 256 + 1, which bfloat16 alone cannot hold."""
    assert [h.item() for h in halves(torch.tensor(257.0))] == [256, 1]
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    first, second = halves(x)
    assert first.dtype == second.dtype == torch.bfloat16
    assert float(((first.double() + second.double() - x) / x).abs().max()) < 2**-16
    assert float(((first.double() - x) / x).abs().max()) > 2**-10


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_largest_of_arrays_that_are_not_below_zero(dtype):
    x = torch.rand(3, 9, 4, generator=torch.Generator().manual_seed(0)).mul(100).to(dtype)
    x[:, 0] = torch.tensor([0.0, 1e-38, torch.inf])[:, None]
    kept = x.clone()
    every_other = x[:, ::2]
    found = largest(*every_other)
    assert found.dtype == dtype
    assert torch.equal(found, every_other.amax(dim=0))
    assert torch.equal(x, kept)
