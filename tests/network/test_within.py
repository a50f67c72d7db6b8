# SPDX-License-Identifier: Apache-2.0
"""The network within slices: neighbourhoods, turns, brightness, and where it is applied."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from bmex_bids.network.inference.within import within_slices
from bmex_bids.network.models.within import EDGE, SLICES, WithinSlices, build, neighbourhoods
from bmex_bids.network.weights.registry import bundled_of, unregistered


@pytest.fixture
def network():
    torch.manual_seed(0)
    made = WithinSlices((12, 8))
    torch.nn.init.normal_(made.conclude.weight)
    return made.eval()


@pytest.fixture
def record(network, tmp_path):
    path = tmp_path / "within.safetensors"
    save_file(network.state_dict(), path)
    return unregistered(path, "bmex-within")


def test_a_file_says_the_widths(network):
    again = build(network.state_dict())
    again.load_state_dict(network.state_dict())
    assert [layer.out_features for layer in again.layers] == [12, 8]


def test_neighbourhoods_are_those_of_each_voxel():
    slices = torch.arange(9 * 8 * 7, dtype=torch.float32).reshape(9, 8, 7)
    around = neighbourhoods(slices, 3, turned=False).reshape(9, 8, SLICES, EDGE, EDGE)
    half, reach = EDGE // 2, SLICES // 2
    assert around[4, 3, reach, half, half] == slices[4, 3, 3]
    assert around[4, 3, 0, half + 1, half] == slices[5, 3, 1]
    assert around[4, 3, 4, half, half - 2] == slices[4, 1, 5]
    # beyond the edges the last voxel and the last slice go on
    assert around[0, 0, reach, 0, 0] == slices[0, 0, 3]
    turned = neighbourhoods(slices, 6, turned=True).reshape(9, 8, SLICES, EDGE, EDGE)
    assert turned[4, 3, :, half, half].tolist() == slices[4, 3, [6, 6, 6, 5, 4]].tolist()


def test_an_untrained_network_is_the_estimate():
    torch.manual_seed(0)
    around, estimate = torch.rand(5, SLICES, EDGE**2), torch.rand(5)
    one = torch.tensor(1.0)
    assert torch.equal(WithinSlices()(around, torch.rand(5), estimate, 3 * one, one), estimate)


def test_brightness_and_its_scale_go_through(network):
    torch.manual_seed(1)
    around, place, estimate = torch.rand(6, SLICES, EDGE**2), torch.rand(6) / 2, torch.rand(6)
    thickness, deviation = torch.tensor(2.5), torch.tensor(0.3)
    with torch.no_grad():
        plain = network(around, place, estimate, thickness, deviation)
        other = network(70 * around + 9, place, 70 * estimate + 9, thickness, 70 * deviation)
    assert other.tolist() == pytest.approx((70 * plain + 9).tolist(), rel=1e-4)


def test_it_works_where_the_estimate_is_wanted(record, network):
    torch.manual_seed(2)
    slices, estimate = torch.rand(10, 9, 6) * 500, torch.rand(10, 9, 14) * 500
    estimate[:3] = torch.nan
    result = within_slices(slices, estimate, 0.7, 2.4, record=record)
    assert bool(result[:3].isnan().all())
    assert bool(result[3:].isfinite().all())
    # a voxel by hand: plane 8 lies behind the centre of slice 3 (0.7 + 3 × 2.4 = 7.9)
    plane, place = 8, (8 - 0.7) / 2.4
    around = neighbourhoods(slices, 3, turned=False)[5 * 9 + 4][None]
    wanted = estimate[estimate.isfinite()]
    with torch.no_grad():
        expected = network(
            around,
            torch.tensor([place - 3]),
            estimate[5, 4, plane][None],
            torch.tensor(2.4),
            wanted.std(),
        )
    assert float(result[5, 4, plane]) == pytest.approx(float(expected), rel=1e-4)


def test_nothing_wanted_is_nothing_done(record):
    estimate = torch.full((4, 4, 6), torch.nan)
    assert within_slices(torch.rand(4, 4, 3), estimate, 0.5, 2.0, record=record) is estimate


def test_another_network_is_refused(record):
    score = bundled_of("score")
    with pytest.raises(TypeError, match="expected a network within slices"):
        within_slices(torch.rand(4, 4, 3), torch.rand(4, 4, 6), 0.5, 2.0, record=score)


def test_the_bundled_weights_are_found_by_their_kind():
    record = bundled_of("within")
    assert record is not None
    assert record.variant == "bmex-within"
    assert bundled_of("nothing") is None
